"""`tintc run`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tintc.cli.console import block_progress, print_json, print_table, silence_libraries, stages
from tintc.errors import ArtefactError, InputError, OptionError
from tintc.runtime.artefact import load
from tintc.runtime.evaluate import evaluate_blocks, train_tokens
from tintc.runtime.processes import processes


def run_text(
    path: str,
    text: str | None,
    file: Path | None,
    options: dict[str, Any],
    executor: str,
    device: str,
    dtype: str | None,
    as_json: bool,
) -> None:
    """Score a text before and after the update; `options` are those of `evaluate_blocks`. Processes that a launcher has
    started share the blocks, and the first of them prints."""
    silence_libraries()
    content = read_text(text, file)
    if options["block_size"] is not None and options["train_fraction"] is not None:
        train_tokens(options["block_size"], options["train_fraction"])
    with processes(device) as together:
        with stages():
            sim = load(path, executor=executor, device=together.device or device, dtype=dtype)
            ids = tokenise(path, sim.tokenizer, content)
        with block_progress() as progress:
            found = asdict(evaluate_blocks(sim, ids, on_block=progress, processes=together, **options))
    if as_json and together.main:
        print_json(found)
    elif together.main:
        print_table(f"{path} on {file or 'the text'}", found)


def read_text(text: str | None, file: Path | None) -> str:
    """The text of the one option that was given."""
    if (text is None) == (file is None):
        raise OptionError("Pass the text either with --text or with --file, and not with both.")
    if text is not None:
        content = text
    else:
        assert file is not None
        try:
            content = file.read_bytes().decode("utf-8")
        except OSError as error:
            raise InputError(f"Cannot read {file}: {error.strerror or error}.") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{file} is not UTF-8 text (byte {error.start}); convert it first.") from error
    if not content:
        raise InputError("The text is empty; pass at least a few words.")
    if any("\ud800" <= character <= "\udfff" for character in content):
        raise InputError("The text is not valid Unicode; pass UTF-8.")
    return content


def tokenise(path: str, tokenizer: Any, text: str) -> Tensor:
    """Token ids ``[n]`` as the tokenizer gives them: those of Llama and Gemma begin a text with a token of its own."""
    if tokenizer is None:
        raise ArtefactError(
            f"{path} has no tokenizer, because the model it was compiled from had none; call the simulator from Python "
            "with token ids, or compile a folder that has a tokenizer."
        )
    return torch.tensor(tokenizer(text)["input_ids"], dtype=torch.long)
