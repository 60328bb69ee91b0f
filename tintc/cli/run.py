"""`tintc run`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tintc.cli.console import block_progress, print_json, print_table, silence_libraries, stages
from tintc.cli.texts import STDIN, read_text, tokenise
from tintc.errors import OptionError
from tintc.evaluation.blocks import train_tokens
from tintc.evaluation.perplexity import Evaluation, evaluate_blocks
from tintc.evaluation.processes import launched, processes
from tintc.progress import LOGGER, NOTE
from tintc.runtime.load import load
from tintc.runtime.model.finite import without_nan_warning
from tintc_cli.groups import Execution, Reading


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
