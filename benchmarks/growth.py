"""How fused simulation grows with length, train tokens, batch, steps, updated layers and width, beside the peer.

    python benchmarks/growth.py [--only length,batch] [--rounds 3] [--threads 2] [--quick] [--no-write]

Decoders of OPT's kind with random weights. Every point is measured in turn with the explicit peer (example by example):
seconds, their ratio, and the memory a run takes beyond the weights. Each curve is set against the multiply-adds of its
plan (`tintc.runtime.execution.fused.costs`): on doubly logarithmic axes the two slopes should agree. A plot per curve.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import torch
import transformers
import typer
from matplotlib.ticker import FuncFormatter, NullLocator
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import report
import shapes
from peer import Peer

import tintc
from tintc.runtime.execution.fused.costs import multiply_adds, peak_bytes
from tintc.runtime.execution.fused.plan import Sizes
from tintc.runtime.execution.fused.planner import make_plan
from tintc.runtime.model.causal_lm import TintForCausalLM

RATE = 1e-5


@dataclass(frozen=True)
class Point:
    """One run: sizes of the decoder and of the text."""

    length: int = 256
    train: int = 128
    batch: int = 1
    n_steps: int = 1
    layers: int = 4
    width: int = 512


CURVES: dict[str, list[Point]] = {
    "length": [Point(length=n, train=n // 2) for n in (128, 256, 512, 1024, 2048)],
    "train": [Point(length=512, train=n) for n in (32, 64, 128, 256, 448)],
    "batch": [Point(batch=n) for n in (1, 2, 4, 8, 16)],
    "n_steps": [Point(n_steps=n) for n in (1, 2, 4, 8)],
    "layers": [Point(layers=n) for n in (1, 2, 3, 4)],
    "width": [Point(width=n) for n in (128, 256, 512, 1024)],
}
NAMES = {
    "length": "tokens (half trained on)",
    "train": "train tokens of 512",
    "batch": "texts in a batch",
    "n_steps": "simulated steps",
    "layers": "updated layers of 4",
    "width": "width",
}


@dataclass(frozen=True)
class Measured:
    """Medians of a point: seconds, explicit seconds, planned memory in bytes, multiply-adds."""

    value: int
    fused: float
    explicit: float
    memory: float
    products: float


def build(point: Point) -> tuple[TintForCausalLM, Peer]:
    model = shapes.opt_like(point.width)
    sim = tintc.compile(model, n_steps=point.n_steps, n_update_layers=point.layers, inner_lr=RATE)
    return sim, Peer(model, sim.program, RATE)


def measure(curve: str, point: Point, rounds: int) -> Measured:
    """Both in turn; the first round is not counted."""
    sim, peer = build(point)
    vocab = sim.config.vocab_size
    ids = torch.randint(5, vocab, (point.batch, point.length), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(point.length) < point.train).expand_as(ids)

    def fused() -> Tensor:
        with torch.no_grad():
            return sim(ids, train_mask=mask).logits

    ours, theirs = [], []
    for turn in range(rounds + 1):
        pair = seconds(fused), seconds(lambda: peer.run_batch(ids, point.train))
        if turn:
            ours.append(pair[0])
            theirs.append(pair[1])
    plan = make_plan(sim.program, ("logits",), Sizes(point.batch, point.length, point.train, vocab))
    value = getattr(point, curve)
    memory = float(peak_bytes(plan, 4))
    return Measured(value, statistics.median(ours), statistics.median(theirs), memory, float(multiply_adds(plan)))


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def slope(points: list[Measured], field: str) -> float:
    """Exponent between the two largest values: ``d log(field) / d log(value)``."""
    a, b = points[-2], points[-1]
    return math.log(getattr(b, field) / getattr(a, field)) / math.log(b.value / a.value)


def lines(curve: str, points: list[Measured]) -> list[str]:
    head = [NAMES[curve], "fused s", "explicit s", "ratio", "memory MB", "1e9 multiply-adds", "1e9 per s"]
    cells = [head]
    for p in points:
        speed = p.products / p.fused / 1e9
        cells.append([str(p.value), f"{p.fused:.3f}", f"{p.explicit:.3f}", f"{p.fused / p.explicit:.3f}"])
        cells[-1] += [f"{p.memory / 1e6:.0f}", f"{p.products / 1e9:.1f}", f"{speed:.0f}"]
    slopes = f"Slope at the end: measured {slope(points, 'fused'):.2f}, predicted {slope(points, 'products'):.2f}"
    return [f"### {NAMES[curve]}", "", *report.table(cells), "", f"{slopes}; ![{curve}](plots/growth_{curve}.png)", ""]


def plot(curve: str, points: list[Measured], folder: Path) -> None:
    """Seconds with the slope that the multiply-adds predict, and memory, over the curve's value."""
    folder.mkdir(exist_ok=True)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    values = [p.value for p in points]
    scale = points[-1].fused / points[-1].products
    left.loglog(values, [p.fused for p in points], "o-", label="fused")
    left.loglog(values, [p.explicit for p in points], "s-", label="explicit")
    left.loglog(values, [p.products * scale for p in points], "k--", lw=1, label="multiply-adds, scaled")
    right.loglog(values, [p.memory / 1e6 for p in points], "o-", label="planned peak")
    left.set_ylabel("seconds")
    right.set_ylabel("MB beyond the weights")
    for axes in (left, right):
        axes.set_xlabel(NAMES[curve])
        axes.set_xticks(values, [str(value) for value in values])
        axes.xaxis.set_minor_locator(NullLocator())
        for axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            axis(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(folder / f"growth_{curve}.png", dpi=110)
    plt.close(figure)


def quick(points: list[Point]) -> list[Point]:
    """The first three points of a curve, in a narrow decoder."""
    return [replace(point, width=min(point.width, 256)) for point in points[:3]]


def main(
    only: Annotated[str, typer.Option(help="Which curves, by name.")] = ",".join(CURVES),
    rounds: Annotated[int, typer.Option(help="Counted rounds of every point.")] = 3,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch.")] = 2,
    small: Annotated[bool, typer.Option("--quick", help="Small sizes, to try the script out.")] = False,
    write: Annotated[bool, typer.Option(help="Update RESULTS.md and the plots.")] = True,
) -> None:
    """Measure, print, plot and write down."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    body = [
        report.setting(),
        "",
        "Decoders of OPT's kind, 4 layers, width 512, 8192 words, 256 tokens of which 128 are",
    ]
    body += ["trained on, unless the table says otherwise. Memory is what the plan says, beyond the weights.", ""]
    for curve in only.split(","):
        points = [measure(curve, point, rounds) for point in (quick(CURVES[curve]) if small else CURVES[curve])]
        body += lines(curve, points)
        print("\n".join(lines(curve, points)), flush=True)
        if write:
            plot(curve, points, report.PLOTS)
    if write:
        report.write_section("growth", "Growth", body)


if __name__ == "__main__":
    typer.run(main)
