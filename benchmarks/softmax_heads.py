"""Theorem C.2 shown: stories260K's perplexity after the update, with linear heads and with softmax heads instead.

    python benchmarks/softmax_heads.py [--blocks 3] [--block-size 256] [--lr 1e-4] [--no-write]

In fp32 and in fp64, on the text of ``real_input.py``; softmax heads are calibrated on the built-in text. The model is
expected in ``../shared``. Writes its section of ``benchmarks/RESULTS.md``.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import report

import tintc
from tintc.analysis.parameter_counts import unique_count
from tintc.evaluation.blocks import cut_blocks
from tintc.evaluation.perplexity import held_out_loss

HERE = Path(__file__).resolve().parent
MODEL, TEXT = HERE.parents[1] / "shared" / "models" / "stories260K", HERE / "data" / "story.txt"
KINDS = tuple((heads, dtype) for dtype in ("float64", "float32") for heads in ("linear", "softmax"))
"""The first one is what the others are compared with."""


@dataclass
class Run:
    """One simulator on all blocks: summed losses before and after, its logits before and after, stored values."""

    losses: tuple[float, float]
    before: list[Tensor]
    after: list[Tensor]
    stored: int

    def errors(self, right: Run) -> tuple[float, float]:
        """Distance of the logits before, relative to their size; of the update, relative to the update."""
        mine, theirs = torch.stack(self.before), torch.stack(right.before)
        update, wanted = (torch.stack(run.after) - torch.stack(run.before) for run in (self, right))
        return float((mine - theirs).norm() / theirs.norm()), float((update - wanted).norm() / wanted.norm())


def measure(heads: str, dtype: str, blocks: int, size: int, lr: float) -> Run:
    sim = tintc.compile(MODEL, inner_lr=lr, max_length=size, linear_attention=heads, dtype=dtype)
    ids = torch.tensor(sim.tokenizer(TEXT.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"])
    cut = cut_blocks(ids, size, size, blocks, 0.5)
    sim.executor = "auto" if heads == "linear" else "literal"
    run = Run((0.0, 0.0), [], [], unique_count(sim.program))
    for block in cut:
        text = block.ids[None]
        with torch.no_grad():
            out = sim(text, train_mask=block.train_mask, return_before=True)
        found = out.logits_before, out.logits
        before, after = (held_out_loss(logits, text, block.start) for logits in found)
        run.losses = (run.losses[0] + before, run.losses[1] + after)
        run.before.append(found[0].double())
        run.after.append(found[1].double())
    return run


def rows(found: dict[tuple[str, str], Run], scored: int) -> list[list[str]]:
    cells = [["heads", "type", "before", "after", "change", "logits before off", "update off", "stored values"]]
    right = found[KINDS[0]]
    for kind, run in found.items():
        before, after = (math.exp(loss / scored) for loss in run.losses)
        errors = ["-", "-"] if run is right else [f"{error:.1e}" for error in run.errors(right)]
        cells.append([*kind, f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}", *errors, f"{run.stored:,}"])
    return cells


def main(
    blocks: Annotated[int, typer.Option(help="Blocks of the text.")] = 3,
    block_size: Annotated[int, typer.Option(help="Tokens in a block; the first half is trained on.")] = 256,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-4,
    write: Annotated[bool, typer.Option(help="Update RESULTS.md.")] = True,
) -> None:
    """Measure, print and write down."""
    transformers.logging.set_verbosity_error()
    if not MODEL.is_dir():
        raise SystemExit(f"This needs {MODEL}, which is not here.")
    found = {}
    for kind in KINDS:
        found[kind] = measure(*kind, blocks, block_size, lr)
        print(f"{' '.join(kind)}: done", file=sys.stderr, flush=True)
    scored = len(found[KINDS[0]].before) * (block_size - block_size // 2)
    body = [
        report.setting("fp64 and fp32"),
        "",
        f"{MODEL.name} on {scored // (block_size - block_size // 2)} blocks of {block_size} tokens, one step of rate "
        f"{lr:g} on the first half of each;",
        "perplexity of the second halves. *off*: distance from the linear simulator in fp64, of the logits before",
        "relative to them, of the update that logits receive relative to that update.",
        "",
        *report.table(rows(found, scored)),
        "",
    ]
    print("\n".join(body))
    if write:
        report.write_section("softmax_heads", "Linear heads as softmax heads (Theorem C.2)", body)


if __name__ == "__main__":
    typer.run(main)
