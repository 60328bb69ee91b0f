"""`tintc rates`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tintc.cli.console import block_progress, print_json, print_lines, print_rows, silence_libraries, stages
from tintc.cli.pictures import check_plot, pyplot, save_figure
from tintc.cli.run import checked_text, learning_rates, print_notes
from tintc.cli.texts import tokenise
from tintc.errors import OptionError
from tintc.evaluation.perplexity import evaluate_blocks
from tintc.evaluation.rate_grid import RateGrid, Tried, grid, set_rate
from tintc.progress import LOGGER
from tintc.runtime.load import load
from tintc.runtime.model.finite import without_nan_warning
from tintc_cli.groups import Placement, Reading

WIDTH = 40
"""Characters of the longest bar."""


def show_rates(
    path: str,
    reading: Reading,
    lr: str | None,
    options: dict[str, Any],
    placement: Placement,
    png: Path | None,
    write: bool,
    as_json: bool,
) -> None:
    """Compare learning rates on a text; `options` are those of `evaluate_blocks`."""
    silence_libraries()
    if png is not None:
        check_plot(png)
    content = checked_text(reading, options)
    chosen = learning_rates(lr)
    with stages():
        LOGGER.info("loading the simulator")
        sim = load(path, **vars(placement))
        ids = tokenise(path, sim.tokenizer, content, special=options["bos"])
    if write and not Path(path).is_dir():
        raise OptionError(f"{path} is not a folder on this machine, so no rate can be written to it.")
    rates = grid(sim.config.optimizer)
    if lr is not None:
        rates = chosen.get("rates") or [chosen["inner_lr"]]
    LOGGER.info("running the blocks")
    with block_progress() as progress, without_nan_warning():
        evaluation = evaluate_blocks(sim, ids, on_block=progress, rates=rates, **options)
    tried = RateGrid.of(evaluation)
    written = write and tried.useful
    if png is not None:
        draw(tried, png, path)
    if written:
        set_rate(sim, tried.best.inner_lr)
        sim.to("cpu").save_pretrained(path)
    if as_json:
        print_json(tried.to_json() | {"output": path, "written": written})
    else:
        _print(tried, path, written)
    print_notes(replace(evaluation, hint=None), options["partial"])  # the remark says what the hint would


def _print(tried: RateGrid, path: str, written: bool) -> None:
    """Print the table, with a bar for every gain."""
    best = tried.best
    largest = best.gain or 0.0
    rows = [
        (f"{one.inner_lr:g}", _number(one.loss), _number(one.gain, signed=True), _bar(one, largest))
        for one in tried.rates
    ]
    title = (
        f"Loss of {tried.evaluation.tokens_scored} tokens after the update of {path}, {tried.loss_before:.4f} before"
    )
    print_rows(title, ("rate", "loss", "gain", ""), rows, bold=tried.rates.index(best))
    if tried.remark is not None:
        print_lines([tried.remark])
    if written:
        print_lines([f"{best.inner_lr:g} is now the stored rate of {path}."])
    elif tried.remark is None:
        print_lines([f"The best is {best.inner_lr:g}; it was chosen on these tokens, so report on others."])


def _number(value: float | None, signed: bool = False) -> str:
    if value is None:
        return "not finite"
    if signed:
        return f"{value:+.4f}"
    return f"{value:.4f}"


def _bar(one: Tried, largest: float) -> str:
    """Return a bar as long as the gain, or a word where there is none."""
    if one.gain is None or one.gain <= 0 or largest <= 0:
        return "worse"
    return "\u2588" * max(1, round(WIDTH * one.gain / largest))


def draw(tried: RateGrid, png: Path, title: str) -> None:
    """Draw loss over rate; losses that are far above the one before are cut off."""
    shown = [(one.inner_lr, one.loss) for one in tried.rates if one.loss is not None and one.inner_lr > 0]
    figure, axis = pyplot().subplots(figsize=(6, 4), constrained_layout=True)
    axis.plot([rate for rate, _ in shown], [loss for _, loss in shown], "o-")
    axis.axhline(tried.loss_before, color="grey", linestyle="--", label="before the update")
    spread = max(tried.best.gain or 0.0, 1e-3)
    axis.set(xscale="log", xlabel="learning rate", ylabel="loss", title=title)
    axis.set_ylim(tried.loss_before - 1.2 * spread, tried.loss_before + spread)
    axis.grid(True, which="both", alpha=0.25)
    axis.legend()
    save_figure(figure, png)
