"""Which train token taught this: the change of an updated layer's output, as a sum over train tokens.

A linear layer's weights after N steps are ``W - sum_s eta_s sum_j dy_sj x_sj^T``, with the inputs x and the gradients
dy of the train tokens j in step s. So at a token t, whose input in the last pass is x_t, the update has changed the
layer's output by exactly

    sum_j c_tj,    c_tj = -sum_s eta_s (<x_t, x_sj> + m) dy_sj

where m is how many times the bias is stored (0 without one). Nothing is estimated. What a layer *reads* may have
changed too, by updates below it; that is those layers' doing, and is not in its sum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tintc.ir.core import Program, Value
from tintc.ir.inputs import Inputs
from tintc.ir.simulator import LinearDescent, LinearForward, SimOp
from tintc.ir.simulator.shared.linear_common import copies_of_bias
from tintc.runtime.execution.run import execute_program
from tintc.runtime.model.precision import in_its_own_dtype

if TYPE_CHECKING:
    from tintc.runtime.model.causal_lm import TintForCausalLM


@dataclass(frozen=True)
class Step:
    """One step of a layer's descent. x ``[n, din]``: inputs of the first n tokens; dy ``[n, dout]``: gradients of the
    outputs there, zero at tokens that are not trained on; rate: what they are multiplied by; copies: of the bias."""

    x: Tensor
    dy: Tensor
    rate: float
    copies: int


@dataclass(frozen=True)
class LayerUpdate:
    """The update of one linear layer, where the last pass uses it.

    name: the layer's weights; origin: the auxiliary's value; layer: of the auxiliary, -1 outside; x ``[T, din]`` and
    output ``[T, dout]``: the layer's in the last pass.
    """

    name: str
    origin: str
    layer: int
    x: Tensor
    output: Tensor
    steps: tuple[Step, ...]

    def change(self) -> Tensor:
        """Return the change of the output that the update has made, ``[T, dout]``."""
        return torch.stack([self._weights(step) @ step.dy for step in self.steps]).sum(0)

    def contribution(self, token: int) -> Tensor:
        """Return ``c_tj`` for all tokens t and the train token j, ``[T, dout]``: what it has taught this layer."""
        parts = [self._weights(step)[:, token, None] * step.dy[token] for step in self.steps if token < len(step.dy)]
        if not parts:
            return torch.zeros_like(self.output)
        return torch.stack(parts).sum(0)

    def shares(self) -> Tensor:
        """Return ``[T, T]``: by how much of the output's length train token j (column) has moved it at token t (row).

        It is ``<c_tj, d_t> / (|d_t| |y_t|)`` for the change d_t and the output y_t, so that a row adds up to
        ``|d_t| / |y_t|``. Below zero a token has pulled against the change that all together have made.
        """
        length = len(self.x)
        change = self.change()
        unit = change / (change.norm(dim=1, keepdim=True) * self.output.norm(dim=1, keepdim=True)).clamp(min=1e-30)
        shares = self.x.new_zeros(length, length)
        for step in self.steps:
            shares[:, : len(step.dy)] += self._weights(step) * (unit @ step.dy.T)
        return shares

    def _weights(self, step: Step) -> Tensor:
        """Return ``-eta (<x_t, x_j> + m)``, ``[T, n]``."""
        return -step.rate * (self.x @ step.x.T + step.copies)


@torch.no_grad()
@in_its_own_dtype
def updates_of(sim: TintForCausalLM, inputs: Inputs) -> list[LayerUpdate]:
    """Return the updates of all linear layers that descend on one text, in the order of the last pass.

    It is one run of the simulator, by the executor that it would choose, with stored rates. Nothing is returned where
    steps are not plain: momentum, norms and decay make other sums. inputs: of batch size one.
    """
    if sim.config.optimizer != "sgd" or sim.config.decay:
        return []
    uses = _uses(sim)
    wanted: dict[str, Value] = {}
    for forward, descents in uses:
        for value in (forward.operands[1], forward.result):
            wanted[value.name] = value
        for descent in descents:
            for value in descent.operands[1:]:
                wanted[value.name] = value
    program = replace(sim.program, outputs=wanted)
    values = execute_program(sim, program, inputs, None, sim.choose_executor())
    found = {name: value[0].to(torch.float64) for name, value in values.items()}
    return [_update(sim, inputs, found, forward, descents) for forward, descents in uses]


def _uses(sim: TintForCausalLM) -> list[tuple[LinearForward, list[LinearDescent]]]:
    """Return every linear module of the last pass whose weights a descent gives, with these descents, last first."""
    makers = sim.program.producers()
    uses: list[tuple[LinearForward, list[LinearDescent]]] = []
    for op in sim.program.ops:
        if not isinstance(op, LinearForward):
            continue
        descents: list[LinearDescent] = []
        maker = makers.get(op.operands[0])
        while isinstance(maker, LinearDescent):
            descents.append(maker)
            maker = makers.get(maker.operands[0])
        if descents and op.step == sim.program.attributes["n_steps"]:
            uses.append((op, descents))
    return uses


def _update(
    sim: TintForCausalLM,
    inputs: Inputs,
    values: dict[str, Tensor],
    forward: LinearForward,
    descents: list[LinearDescent],
) -> LayerUpdate:
    steps: list[Step] = []
    for op in descents:
        _, dy, x = (values.get(operand.name) for operand in op.operands)
        assert dy is not None and x is not None
        count = min(len(dy), len(x))
        trained = inputs.train_mask(op.step)[0, :count, None].to(dy)
        rate = float(sim.rate(op.target)[op.step]) * op.rate_scale
        steps.append(Step(x[:count], dy[:count] * trained, rate, copies_of_bias(op.operands[0].type)))
    read = values[forward.operands[1].name]
    return LayerUpdate(descents[0].target, forward.origin, forward.layer, read, values[forward.result.name], (*steps,))


def left_out(program: Program) -> str:
    """Return a sentence on updates that are no linear layer's, which are not in these sums; empty if there are none."""
    descents = [op for op in program.ops if isinstance(op, SimOp) and op.phase == "descent"]
    kinds = {op.operands[0].type.kind for op in descents if not isinstance(op, LinearDescent)}
    if not kinds:
        return ""
    names = sorted(kind.removesuffix("s") + "s" for kind in kinds)
    return f"Updates of {' and '.join(names)} are not in these sums."


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
