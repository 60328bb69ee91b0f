"""`tintc eval ppl`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tintc.cli.console import counted_progress, print_json, print_rows, silence_libraries, stages
from tintc.cli.eval_plot import draw_perplexities
from tintc.cli.pictures import check_plot
from tintc.cli.texts import check_tokenizer
from tintc.errors import OptionError
from tintc.evaluation.blocks import Blocks, cut_blocks
from tintc.evaluation.experiments.columns import Column, Explicit, Simulated, Streamed, Unchanged
from tintc.evaluation.experiments.explicit import ExplicitTuning
from tintc.evaluation.experiments.language_modelling import Row, evaluate_row
from tintc.evaluation.experiments.records import Records
from tintc.evaluation.experiments.texts import data_folder, rows_of, token_ids, validation_rows
from tintc.evaluation.processes import processes
from tintc.frontend.source.load import load_auxiliary
from tintc.ir.special import opening_of
from tintc.progress import LOGGER
from tintc.runtime.load import load
from tintc.runtime.model.causal_lm import TintForCausalLM
from tintc.runtime.model.finite import without_nan_warning
from tintc_cli.groups import Setup

COLUMNS = ("before", "explicit", "explicit-normalized", "tint", "stream")
EXPLICIT = {"explicit": False, "explicit-normalized": True}
"""Columns of explicit tuning, and whether gradients are normalised."""
GRID = (1e-6, 3e-6, 1e-5, 3e-5, 6e-5, 1e-4, 2.4e-4, 1e-3, 5e-3, 1e-2, 2e-2, 4e-2, 8e-2)
"""Rates that ``--rates grid`` stands for: small ones for plain steps, large ones for normalised steps."""


def evaluate_perplexity(paths: list[str], dataset: str, options: dict[str, Any], setup: Setup, as_json: bool) -> None:
    """Print Table 1 for simulators of one model; `options` are the command's others, by name."""
    silence_libraries()
    paths = [*dict.fromkeys(paths)]
    fractions = numbers(options["train_fraction"], "train fraction")
    names = chosen_columns(options["columns"], setup.model, COLUMNS)
    rates = chosen_rates(setup.rates)
    if setup.png is not None:
        check_plot(setup.png)
    records = Records(setup.predictions)
    with processes(setup.device) as together:
        with stages():
            LOGGER.info("loading")
            place = together.device or setup.device
            sims = [load(path, device=place, dtype=setup.dtype) for path in paths]
            for path, sim in zip(paths, sims, strict=True):
                check_tokenizer(path, sim.tokenizer)
            columns = made_columns(names, paths, sims, setup.model, setup.trust_remote_code, bool(rates))
            texts = _Texts(dataset, options, data_folder(setup.data), sims, len(rates) > 1)
        cut = [(fraction, *texts.blocks(fraction)) for fraction in fractions]
        total = sum(
            len(together.share(len(part))) * len(columns) for _, *parts in cut for part in parts if part is not None
        )
        rows = []
        with counted_progress("blocks", total) as (progress, task), without_nan_warning():
            for fraction, blocks, validation in cut:
                row = evaluate_row(
                    columns,
                    blocks,
                    validation,
                    rates,
                    fraction,
                    records,
                    together,
                    lambda: progress.advance(task),
                )
                rows.append(row)
    if together.main:
        facts = {"outputs": paths, "model": setup.model, "dataset": dataset} | texts.facts()
        if setup.png is not None:
            draw_perplexities(rows, [column.name for column in columns], setup.png, _title(rows, facts))
        _print(rows, columns, facts, as_json)


class _Texts:
    """The text that is scored, and another to choose rates on, as token ids."""

    def __init__(
        self, dataset: str, options: dict[str, Any], data: Path | None, sims: Sequence[TintForCausalLM], several: bool
    ):
        self.options = options
        tokenizer = sims[0].tokenizer
        self.limit = min(sim.layout.max_length for sim in sims)
        self.opening = opening_of(tokenizer)
        rows = rows_of(dataset, "test", data)
        self.validation = None
        if several:
            others, held_back = validation_rows(dataset, data, options["validation"], rows)
            self.validation = token_ids(tokenizer, others)
            rows = rows[: len(rows) - held_back]
            if held_back:
                LOGGER.warning(
                    "rates are chosen on the last %d lines of %s, which are not scored; pass another text to "
                    "--validation",
                    held_back,
                    dataset,
                )
        self.ids = token_ids(tokenizer, rows)

    def blocks(self, fraction: float) -> tuple[Blocks, Blocks | None]:
        """Return the blocks that are scored, and those to choose rates on, if any."""
        size = self.options["block_size"]
        if size is None:
            size = self.limit
        most = self.options["max_blocks"]
        blocks = cut_blocks(self.ids, self.limit, size, most, fraction, self.opening)
        if self.validation is None:
            return blocks, None
        most = self.options["validation_blocks"]
        return blocks, cut_blocks(self.validation, self.limit, size, most, fraction, self.opening)

    def facts(self) -> dict[str, Any]:
        """Return what a reader of the table should know of the text."""
        size = self.options["block_size"]
        if size is None:
            size = self.limit
        return {"block_size": size, "opening_tokens": len(self.opening)}


def made_columns(
    names: Sequence[str],
    paths: list[str],
    sims: Sequence[TintForCausalLM],
    model: str | None,
    trusted: bool,
    chosen: bool,
) -> list[Column]:
    """Return the columns of these names; a simulator's is called ``tint``, or ``tint:OUT`` where there are several, and
    ``stream`` likewise.

    Explicit tuning is of the parameters that the first simulator updates. chosen: whether rates are chosen, not stored.
    """
    columns: list[Column] = []
    tuning = None
    if "explicit" in names and not chosen and sims[0].config.optimizer == "normalized":
        LOGGER.warning(
            "the column explicit takes plain steps at the stored rate, %g, which is meant for normalised ones; pass "
            "--rates grid, or the column explicit-normalized",
            sims[0].config.inner_lr,
        )
    if any(name in EXPLICIT for name in names):
        assert model is not None
        source = load_auxiliary(model, trust_remote_code=trusted)
        tuning = ExplicitTuning(source.model.to(sims[0].dtype), sims[0].program)
    for name in names:
        if name == "before":
            columns.append(Unchanged(name, sims[0]))
        elif name in EXPLICIT:
            assert tuning is not None
            columns.append(Explicit(name, sims[0], tuning, EXPLICIT[name]))
        else:
            kind = Streamed if name == "stream" else Simulated
            shown = [name] if len(sims) == 1 else [f"{name}:{path}" for path in paths]
            columns += [kind(own, sim) for own, sim in zip(shown, sims, strict=True)]
    return columns


def numbers(text: str, noun: str) -> list[float]:
    """Return numbers separated by commas; raise `OptionError` for anything else."""
    try:
        return [float(one) for one in text.split(",")]
    except ValueError as error:
        raise OptionError(
            f"The {noun} is {text!r}; pass a number, or several separated by commas, such as 0.3,0.5."
        ) from error


def chosen_rates(text: str | None) -> list[float]:
    """Return the rates to choose from; none if the stored one is to be taken."""
    if text is None:
        return []
    if text == "grid":
        return list(GRID)
    rates = numbers(text, "learning rate")
    for rate in rates:
        if not 0 <= rate < float("inf"):
            raise OptionError(f"The learning rate is {rate}; it must be a finite number, zero or more.")
    return rates


def chosen_columns(text: str, model: str | None, known: Sequence[str]) -> list[str]:
    """Return the names of columns in a list with commas; raise `OptionError` for others than the known ones, and for
    explicit tuning without a model."""
    names = [*dict.fromkeys(text.split(","))]
    for name in names:
        if name not in known:
            raise OptionError(f"The column {name!r} is unknown; choose among {', '.join(known)}.")
        if name in EXPLICIT and model is None:
            raise OptionError(f"The column {name} needs the model that was compiled; pass it to --model.")
    return names


def _print(rows: Sequence[Row], columns: Sequence[Column], facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json({"rows": [asdict(row) for row in rows], **facts})
        return
    header = ["train fraction", "tokens", *(column.name for column in columns)]
    shown = []
    for row in rows:
        cells = [_cell(row, column.name) for column in columns]
        shown.append([f"{row.train_fraction:g}", row.tokens, *cells])
    print_rows(_title(rows, facts), header, shown)


def _title(rows: Sequence[Row], facts: dict[str, Any]) -> str:
    return f"Perplexity of the rest of {rows[0].blocks} blocks of {facts['block_size']} tokens of {facts['dataset']}"


def _cell(row: Row, name: str) -> str:
    """Return a perplexity with its interval, and the rate it was reached at."""
    perplexity = row.perplexity[name]
    if perplexity is None:
        return "not finite"
    text = f"{perplexity:.3f}"
    ends = row.interval[name]
    if ends is not None:
        text += f" ({ends[0]:.2f}-{ends[1]:.2f})"
    if name in row.rates:
        text += f" at {row.rates[name]:g}"
    return text
