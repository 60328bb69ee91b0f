"""Which train token taught this: the change of an updated layer's output, as a sum over train tokens.

A linear layer's weights after N steps are ``W - sum_s eta_s sum_j dy_sj x_sj^T``, with the inputs x and the gradients
dy of the train tokens j in step s. So at a token t, whose input in the last pass is x_t, the update has changed the
layer's output by exactly

    sum_j c_tj,    c_tj = -sum_s eta_s (<x_t, x_sj> + m) dy_sj

where m is how many times the bias is stored (0 without one). Of experts it is this for each expert that both tokens
have chosen. A norm ``y = gain f(x) + bias`` is linear in its gain and bias, so there

    c_tj = -sum_s eta_s (f(x_t) (f(x_sj) dy_sj) + dy_sj),

coordinate by coordinate, of which only the parts that descend are left, and which are added over the heads that share a
gain. Nothing is estimated. What a layer *reads* may have changed too, by updates below it; that is those layers' doing,
and is not in its sum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tintc.ir.core import Value
from tintc.ir.functions import normalise_groups
from tintc.ir.inputs import Inputs
from tintc.ir.simulator import (
    ExpertsDescent,
    ExpertsForward,
    LinearDescent,
    LinearForward,
    NormDescent,
    NormForward,
    SimOp,
)
from tintc.ir.simulator.interface.chosen_experts import Routing
from tintc.ir.simulator.shared.descent_common import DescentOp
from tintc.ir.simulator.shared.linear_common import copies_of_bias
from tintc.report.taught import ExpertsUpdate, LayerUpdate, LinearUpdate, NormStep, NormUpdate, Step
from tintc.runtime.execution.run import execute_program
from tintc.runtime.model.precision import in_its_own_dtype

if TYPE_CHECKING:
    from tintc.runtime.model.causal_lm import TintForCausalLM

Values = dict[str, Tensor]
"""Values of a run by name, of its one text: ``[T, width]``, and of routed values ``[T, k, width]``."""


@torch.no_grad()
@in_its_own_dtype
def updates_of(sim: TintForCausalLM, inputs: Inputs) -> list[LayerUpdate]:
    """Return the updates of everything that descends on one text, in the order of the last pass.

    It is one run of the simulator, by the executor that it would choose, with stored rates. Nothing is returned where
    steps are not plain: momentum, norms and decay make other sums. inputs: of batch size one.
    """
    if sim.config.optimizer != "sgd" or sim.config.decay:
        return []
    uses = _uses(sim)
    wanted: dict[str, Value] = {}
    for forward, descents in uses:
        for value in (*forward.operands[1:], forward.result):
            wanted[value.name] = value
        for descent in descents:
            for value in descent.operands[1:]:
                wanted[value.name] = value
    program = replace(sim.program, outputs=wanted)
    executor = sim.choose_executor()
    values = execute_program(sim, program, inputs, None, executor)
    reading = _Reading(sim, inputs, {name: value[0].to(torch.float64) for name, value in values.items()}, executor)
    return [reading.update(forward, descents) for forward, descents in uses]


def _uses(sim: TintForCausalLM) -> list[tuple[SimOp, list[DescentOp]]]:
    """Return every module of the last pass whose weights a descent gives, with these descents, last first."""
    makers = sim.program.producers()
    uses: list[tuple[SimOp, list[DescentOp]]] = []
    for op in sim.program.ops:
        if not isinstance(op, LinearForward | ExpertsForward | NormForward):
            continue
        descents: list[DescentOp] = []
        maker = makers.get(op.operands[0])
        while isinstance(maker, DescentOp):
            descents.append(maker)
            maker = makers.get(maker.operands[0])
        if descents and op.step == sim.program.attributes["n_steps"]:
            uses.append((op, descents))
    return uses


@dataclass(frozen=True)
class _Reading:
    """A run in which updates are read."""

    sim: TintForCausalLM
    inputs: Inputs
    values: Values
    executor: str

    def update(self, forward: SimOp, descents: list[DescentOp]) -> LayerUpdate:
        """Return the update that descents have made of the weights of a module."""
        about: dict[str, Any] = {
            "name": descents[0].target,
            "origin": forward.origin,
            "layer": forward.layer,
            "output": self.values[forward.result.name],
        }
        x = self.values[forward.operands[-1].name]
        if isinstance(forward, NormForward):
            normed = normalise_groups(forward.kind, x, forward.eps, forward.groups)
            steps = tuple(self._norm_step(op) for op in descents if isinstance(op, NormDescent))
            return NormUpdate(**about, normed=normed, steps=steps)
        if isinstance(forward, ExpertsForward):
            steps = tuple(self._step(op, self._chosen(op)) for op in descents if isinstance(op, ExpertsDescent))
            chosen = self._chosen(forward)
            about["output"] = about["output"] * (chosen >= 0)[..., None]
            return ExpertsUpdate(**about, x=x, chosen=chosen, steps=steps)
        steps = tuple(self._step(op, None) for op in descents if isinstance(op, LinearDescent))
        return LinearUpdate(**about, x=x, steps=steps)

    def _step(self, op: DescentOp, chosen: Tensor | None) -> Step:
        dy, x = (self.values[operand.name] for operand in op.operands[-2:])
        count = min(len(dy), len(x))
        if chosen is not None:
            chosen = chosen[:count]
        trained = self._trained(op, dy[:count])
        return Step(x[:count], trained, self._rate(op), copies_of_bias(op.operands[0].type), chosen)

    def _norm_step(self, op: NormDescent) -> NormStep:
        """Return a step of a norm; what heads share is added up, and handed to each of them."""
        dy = self.values[op.operands[1].name]
        shared = op.operands[0].type.width
        gain = None
        if "gain" in op.parts:
            normed = self.values[op.operands[2].name]
            dy = dy[: len(normed)]
            gain = _over_heads(self._trained(op, dy * normed[: len(dy)]), shared)
        bias = None
        if "bias" in op.parts:
            bias = _over_heads(self._trained(op, dy), shared)
        return NormStep(gain, bias, self._rate(op))

    def _trained(self, op: DescentOp, dy: Tensor) -> Tensor:
        """Return dy where the step sums it, else zero."""
        mask = self.inputs.train_mask(op.step)[0, : len(dy)].to(dy)
        return dy * mask.reshape(-1, *[1] * (dy.dim() - 1))

    def _rate(self, op: DescentOp) -> float:
        return float(self.sim.rate(op.target)[op.step]) * op.rate_scale

    def _chosen(self, op: SimOp) -> Tensor:
        """Return the experts ``[n, k]`` whose vectors a routed value has, -1 where one is not chosen: of literal
        execution all, in their order, of fused execution those that a token has chosen."""
        weights = self.values[op.operands[1].name]
        experts = torch.arange(weights.shape[-1], device=weights.device).expand(weights.shape)
        if self.executor != "literal":
            experts = Routing.of(weights[None], op.operands[-1].type.dims[1]).experts[0]
        return experts.masked_fill(weights.gather(-1, experts) == 0, -1)


def _over_heads(gradients: Tensor, width: int) -> Tensor:
    """Return ``[n, D]`` added over the heads of that width, for each of them."""
    heads = gradients.shape[-1] // width
    return gradients.unflatten(-1, (heads, width)).sum(1).repeat(1, heads)


def by_layer(updates: list[LayerUpdate]) -> dict[int, Tensor]:
    """Return the shares ``[T, T]`` of all weights of a layer of the auxiliary together, by layer."""
    shares: dict[int, Tensor] = {}
    for update in updates:
        own = update.shares()
        shares[update.layer] = shares.get(update.layer, 0) + own
    return shares


def strongest(shares: Tensor, start: int, count: int) -> list[tuple[int, int, float]]:
    """Return the pairs (token t from `start` on, train token j, share) of the largest size, at most one for each t."""
    rows = shares[start:]
    best = rows.abs().amax(1)
    chosen = best.argsort(descending=True)[:count].tolist()
    pairs: list[tuple[int, int, float]] = []
    for row in chosen:
        j = int(rows[row].abs().argmax())
        pairs.append((row + start, j, float(rows[row, j])))
    return pairs
