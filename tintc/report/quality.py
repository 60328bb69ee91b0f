"""How good a simulator's gradient is: beside autograd layer by layer, approximation by approximation, rate by rate."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tintc.evaluation.rate_sweep import sweep
from tintc.reference.approximations import Approximations
from tintc.reference.tune import Tuned
from tintc.reference.verify import approximations_of, plain, tuned_with
from tintc.report.text import TextRun, token_losses

if TYPE_CHECKING:
    from tintc.frontend.graph.captured import CapturedGraph
    from tintc.reference.verdict import Verdict
    from tintc.runtime.model.causal_lm import TintForCausalLM

FACTORS = (0.1, 0.3, 1.0, 2.0, 3.0, 5.0, 10.0)
"""Rates at which the loss is shown, as multiples of the stored one."""
NUMBER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Rate:
    """A multiple of the stored rates, and its loss: the mean over the tokens that were not trained on, in nats."""

    rate: float
    loss: float


@dataclass(frozen=True)
class Cost:
    """An approximation by itself beside none. cosine, error: of the first step's gradient, all parameters that a
    simulator updates together; loss: of the tokens that were not trained on, after its own update."""

    name: str
    cosine: float
    error: float
    loss: float


def rate_curve(sim: TintForCausalLM, run: TextRun) -> list[Rate]:
    """Return the loss over the rate, without one first; nothing for a simulator whose stored rate is zero."""
    stored = sim.config.inner_lr
    if not stored:
        return []
    mask = run.inputs.train

    def score(logits: Tensor) -> float:
        return run.scored(token_losses(logits, run.ids))

    rates = [factor * stored for factor in FACTORS]
    before, after = sweep(sim, run.inputs.input_ids, mask, rates, score)
    curve = [Rate(0.0, before), *(Rate(rate, loss) for rate, loss in zip(rates, after, strict=True))]
    return [one for one in curve if math.isfinite(one.loss)]


def layers_of(verdict: Verdict) -> list[dict[str, Any]]:
    """Return the gradients of `verify` as rows: parameter, layer and what it is there, cosine and error to autograd."""
    rows: list[dict[str, Any]] = []
    for name, compared in verdict.parameters.items():
        layer, what = place_of(name)
        rows.append(
            {
                "parameter": name,
                "layer": layer,
                "what": what,
                "cosine": compared.cosine_autograd,
                "error": compared.error_autograd,
                "reference": compared.error,
            }
        )
    return rows


def place_of(name: str) -> tuple[int, str]:
    """Return the number in a parameter's name and what follows it; -1 and the name where there is no number."""
    number = NUMBER.search(name)
    if number is None:
        return -1, name
    return int(number.group(1)), name[number.end() :]


def approximation_costs(
    sim: TintForCausalLM, graph: CapturedGraph, run: TextRun, compared: tuple[Verdict, Tuned], dtype: torch.dtype
) -> list[Cost]:
    """Return what each of the simulator's approximations costs by itself, by explicit fine-tuning of the model, and
    last what all of them cost, by the simulator.

    graph: the captured model; compared: the verdict of `verify` on the same text, and the one step by autograd that it
    has compared with; dtype: that of the reference.
    """
    verdict, exact = compared
    own = approximations_of(sim)
    none = plain(own)
    if sim.config.n_steps > 1:
        exact = _tuned(sim, graph, run, none, dtype)
    scores = "attention scores held constant"
    if own.scores is not True:
        scores = "attention scores by finite differences"
    others = {
        scores: replace(none, scores=own.scores),
        "norms by finite differences": replace(none, norms=own.norms),
        "activations by finite differences": replace(none, activations=own.activations),
    }
    costs = [Cost("none: autograd", 1.0, 0.0, _loss(exact, run))]
    for name, approximations in others.items():
        tuned = _tuned(sim, graph, run, approximations, dtype)
        cosine, error = _compared(tuned, exact)
        costs.append(Cost(name, cosine, error, _loss(tuned, run)))
    together = verdict.gradient
    last = Cost("all together: the simulator", together.cosine_autograd, together.error_autograd, run.scored(run.after))
    return [*costs, last]


def _tuned(
    sim: TintForCausalLM, graph: CapturedGraph, run: TextRun, approximations: Approximations, dtype: torch.dtype
) -> Tuned:
    config = sim.config
    return tuned_with(graph, config, run.ids, run.inputs.train.cpu(), approximations, config.n_steps, dtype)


def _loss(tuned: Tuned, run: TextRun) -> float:
    return run.scored(token_losses(tuned.logits, run.ids))


def _compared(tuned: Tuned, exact: Tuned) -> tuple[float, float]:
    """Return cosine and relative error of the first step's gradients to the exact ones, all together."""
    sums: dict[str, float] = defaultdict(float)
    for name, right in exact.gradients[0].items():
        own = tuned.gradients[0][name]
        sums["own"] += float(own.square().sum())
        sums["right"] += float(right.square().sum())
        sums["both"] += float((own * right).sum())
        sums["apart"] += float((own - right).square().sum())
    if not sums["own"] or not sums["right"]:
        return float(sums["own"] == sums["right"]), 0.0
    return sums["both"] / (sums["own"] * sums["right"]) ** 0.5, (sums["apart"] / sums["right"]) ** 0.5
