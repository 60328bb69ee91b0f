"""`tintc run`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tintc.bounded import check_path
from tintc.cli.console import block_progress, print_json, print_table, silence_libraries, stages
from tintc.errors import ArtefactError, InputError, OptionError
from tintc.evaluation.blocks import train_tokens
from tintc.evaluation.perplexity import Evaluation, evaluate_blocks
from tintc.evaluation.processes import launched, processes
from tintc.frontend.source.load import TOKENIZER_PROBLEM
from tintc.progress import LOGGER, NOTE
from tintc.runtime.artefact.folder import read_config
from tintc.runtime.load import load
from tintc.runtime.model.finite import without_nan_warning
from tintc_cli.groups import Execution, Reading

STDIN = Path("-")
"""The file that stands for standard input."""


def run_text(path: str, reading: Reading, options: dict[str, Any], execution: Execution, as_json: bool) -> None:
    """Score a text before and after the update; `options` are those of `evaluate_blocks`. Processes that a launcher has
    started share the blocks, and the first of them prints."""
    silence_libraries()
    if reading.file == STDIN and launched() > 1:
        raise OptionError("Several processes cannot share standard input; pass a file of its own with --file.")
    content = checked_text(reading, options)
    with processes(execution.device) as together:
        with stages():
            LOGGER.info("loading the simulator")
            sim = load(path, **vars(replace(execution, device=together.device or execution.device)))
            most = needed_tokens(options, sim.config.max_position_embeddings)
            ids = tokenise(path, sim.tokenizer, content, special=options.get("bos", True), most=most)
        LOGGER.info("running the blocks")
        with block_progress() as progress, without_nan_warning():
            evaluation = evaluate_blocks(sim, ids, on_block=progress, processes=together, **options)
    if not together.main:
        return
    if as_json:
        print_json(evaluation.to_json())
    else:
        shown = {name: value for name, value in evaluation.to_json().items() if name not in ("hint", "rates")}
        name = "the text" if reading.file in (None, STDIN) else reading.file
        if evaluation.rates:
            shown["rates"] = _by_rate(evaluation)
        print_table(f"{path} on {name}", shown)
    print_notes(evaluation, options.get("partial", False))


def needed_tokens(options: dict[str, Any], limit: int) -> int | None:
    """Return the most tokens that the blocks asked for have, None for all of the text. limit: of a text."""
    blocks = options.get("max_blocks")
    if blocks is None:
        return None
    return max(1, blocks) * (options.get("block_size") or limit)


def checked_text(reading: Reading, options: dict[str, Any]) -> str:
    """Return the text to score; raise `OptionError` for blocks without enough train tokens."""
    content = read_text(reading.text, reading.file)
    if options["block_size"] is not None and options["train_fraction"] is not None:
        train_tokens(options["block_size"], options["train_fraction"])
    return content


def learning_rates(text: str | None) -> dict[str, Any]:
    """Return what `--lr` says, as `evaluate_blocks` takes it: a number, or several separated by commas."""
    if text is None:
        return {"inner_lr": None}
    try:
        rates = [float(one) for one in text.split(",")]
    except ValueError as error:
        raise OptionError(
            f"The learning rate is {text!r}; pass a number, or several separated by commas, such as 1e-5,1e-4."
        ) from error
    if len(rates) == 1:
        return {"inner_lr": rates[0]}
    return {"rates": rates}


def _by_rate(evaluation: Evaluation) -> dict[str, Any]:
    """Return perplexities of several rates, by rate."""
    rates = evaluation.rates or []
    return {f"{one['inner_lr']:g}": "not finite" if (p := one["perplexity_after"]) is None else p for one in rates}


def print_notes(evaluation: Evaluation, partial: bool) -> None:
    """Print on standard error what there is to say beside the result."""
    for note in _notes(evaluation, partial):
        LOGGER.log(NOTE, note)


def _notes(evaluation: Evaluation, partial: bool) -> list[str]:
    """Return what to say beside the result."""
    notes: list[str] = []
    left = evaluation.tokens_left_out
    if left:
        why = "make no whole block and are left out; --partial scores them as a shorter one if they are enough"
        if partial:
            why = f"are too few for a block, with {evaluation.opening_tokens} in front, and are left out"
        notes.append(f"note: {left} token{'s' if left > 1 else ''} at the end {why}.")
    if evaluation.hint is not None:
        notes.append(f"hint: {evaluation.hint}")
    return notes


def check_writable(target: Path | None, option: str) -> None:
    """Raise `ArtefactError` for a file whose folder does not exist, before anything is run for it."""
    if target is not None:
        check_path(target, ArtefactError)
    if target is not None and not target.absolute().parent.is_dir():
        raise ArtefactError(f"The folder {target.parent} does not exist; choose another place for {option}.")


def read_text(text: str | None, file: Path | None) -> str:
    """Return the text of the one option that is there; of standard input if the file is ``-``."""
    if (text is None) == (file is None):
        raise OptionError("Pass the text either with --text or with --file, and not with both.")
    if text is not None:
        content = text
    else:
        assert file is not None
        name = "standard input" if file == STDIN else file
        try:
            content = _bytes_of(file, name).decode("utf-8")
        except OSError as error:
            raise InputError(f"Cannot read {name}: {error.strerror or error}.") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{name} is not UTF-8 text (byte {error.start}); convert it first.") from error
    if not content:
        raise InputError("The text is empty; pass at least a few words.")
    if any("\ud800" <= character <= "\udfff" for character in content):
        raise InputError("The text is not valid Unicode; pass UTF-8.")
    return content


MOST_TEXT = 1 << 26
"""Bytes of the longest text that is read: a tokenizer takes two hundred times as many of memory."""


def _bytes_of(file: Path, name: object) -> bytes:
    """Return the bytes of a file, which may be a pipe; raise `InputError` for more than a tokenizer can take."""
    if file == STDIN:
        data = sys.stdin.buffer.read(MOST_TEXT + 1)
    else:
        with file.open("rb") as opened:
            data = opened.read(MOST_TEXT + 1)
    if len(data) > MOST_TEXT:
        raise InputError(
            f"{name} has more than {MOST_TEXT:,} bytes, which is the most that is read; pass a part of it."
        )
    return data


LONGEST_TOKEN = 256
"""Characters of a token that hardly any is longer than."""


def tokenise(path: str, tokenizer: Any, text: str, special: bool = True, most: int | None = None) -> Tensor:
    """Return token ids ``[n]`` as the tokenizer gives them: those of Llama and Gemma begin a text with a token of its
    own.

    special: False leaves such tokens out. most: tokens that are looked at; of a text that is much longer only the
    beginning is read, if it has more than so many.
    """
    check_tokenizer(path, tokenizer)
    if most is not None and len(text) > (most + 1) * LONGEST_TOKEN:
        beginning = tokenise(path, tokenizer, text[: (most + 1) * LONGEST_TOKEN], special)
        if len(beginning) > most + 1:
            return beginning
    return torch.tensor(tokenizer(text, add_special_tokens=special)["input_ids"], dtype=torch.long)


def check_tokenizer(path: str, tokenizer: Any) -> None:
    """Raise `ArtefactError`, which says why, if there is none."""
    if tokenizer is None:
        problem = read_config(path).get("provenance", {}).get(TOKENIZER_PROBLEM)
        why = f"could not be read ({problem.rstrip('.')})" if problem else "had none"
        raise ArtefactError(
            f"{path} has no tokenizer, because {'that of ' if problem else ''}the model it was compiled from {why}; "
            "call the simulator from Python with token ids, or compile a folder that has a tokenizer."
        )
