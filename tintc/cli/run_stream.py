"""`tintc run --stream`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tintc.cli.console import block_progress, check_writable, print_json, print_table, silence_libraries, stages
from tintc.cli.texts import STDIN, read_text, tokenise
from tintc.errors import OptionError
from tintc.evaluation.processes import launched
from tintc.evaluation.streaming import evaluate_stream
from tintc.progress import LOGGER, NOTE
from tintc.runtime.load import load
from tintc.runtime.model.adapted_state import AdaptedState
from tintc.runtime.model.finite import without_nan_warning
from tintc_cli.groups import Execution, Reading

BLOCK_OPTIONS = ("train_fraction", "block_size", "max_blocks", "partial", "split_steps")
"""Options of `tintc run` that have to do with blocks, which a stream does not have."""
STREAM_OPTIONS = ("chunk_size", "context", "state", "save_state")
"""Options of `tintc run` that need --stream."""


def check_stream_options(stream: bool, options: dict[str, Any]) -> None:
    """Raise `OptionError` for options that --stream excludes, or, where it is not given, for those that need it."""
    others = BLOCK_OPTIONS if stream else STREAM_OPTIONS
    for name in others:
        if options[name] not in (None, False):
            shown = f"--{name.replace('_', '-')}"
            if stream:
                raise OptionError(f"A stream has chunks and no blocks; leave out {shown}.")
            raise OptionError(f"{shown} is for streams; pass --stream with it, or leave it out.")
    if stream and options["chunk_size"] is None:
        raise OptionError("A stream is cut into chunks; pass their size with --chunk-size, such as --chunk-size 64.")
    if stream and "rates" in options:
        raise OptionError("A stream learns at one learning rate; pass a single one with --lr.")


def stream_text(path: str, reading: Reading, options: dict[str, Any], execution: Execution, as_json: bool) -> None:
    """Stream a text, and print its perplexity under frozen weights and under those that learn; `options` are the
    command's."""
    silence_libraries()
    if launched() > 1:
        raise OptionError("A stream is learnt from its beginning to its end by one process; start a single one.")
    target: Path | None = options["save_state"]
    check_writable(target, "--save-state")
    content = read_text(reading.text, reading.file)
    with stages():
        LOGGER.info("loading the simulator")
        sim = load(path, **vars(execution))
        ids = tokenise(path, sim.tokenizer, content, special=options["bos"]).to(sim.device)
        state = None
        if options["state"] is not None:
            state = AdaptedState.load(options["state"], sim)
    LOGGER.info("running the chunks")
    with block_progress("chunks") as progress, without_nan_warning():
        evaluation, learnt = evaluate_stream(
            sim,
            ids,
            options["chunk_size"],
            options["context"] or 0,
            options["inner_lr"],
            options["bos"],
            state,
            progress,
        )
    if target is not None:
        learnt.save(target)
    values = evaluation.to_json()
    if as_json:
        print_json(values)
    else:
        del values["hint"]
        name = "the text" if reading.file in (None, STDIN) else reading.file
        print_table(f"{path} on {name}, as a stream", values)
    if evaluation.hint is not None:
        LOGGER.log(NOTE, f"hint: {evaluation.hint}")
