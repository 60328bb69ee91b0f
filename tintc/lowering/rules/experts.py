"""Mixtures of experts: the router, the sums, and the experts' linear layers (construction.md, section 15)."""

from __future__ import annotations

from tintc.ir import auxiliary as aux
from tintc.ir import simulator as sim
from tintc.ir.core import Program, Type, Value
from tintc.lowering.rules.base import Module, Rule, lowers, stem
from tintc.lowering.rules.sweep import Sweep, WeightGroup
from tintc.options import Options


@lowers(aux.Route)
class RouteRule(Rule[aux.Route]):
    """Emit the gradient of the logits for the full gradient, the choice of experts held constant; otherwise nothing,
    because their weights count as constants too."""

    def forward(self, op: aux.Route) -> Module:
        return Module(sim.Route, op.options())

    def carriers(self, op: aux.Route, options: Options) -> tuple[Value, ...]:
        if options.gradient == "full":
            return op.operands
        return ()

    def backward(self, sweep: Sweep, op: aux.Route, dy: Value) -> None:
        (z,) = op.operands
        sweep.receive(z, sweep.emit(sim.RouteBackward, op, (dy, sweep.values[z]), **op.options()))


def _weighing(op: aux.Spread | aux.Combine, options: Options) -> bool:
    """Return True if the routing weights receive a gradient from an op."""
    return op.weighted and options.gradient == "full"


def _receive_weights(sweep: Sweep, op: aux.Spread | aux.Combine, a: Value, y: Value) -> None:
    """Emit the gradient ``<a_t, y_te>`` of the routing weights, if it is wanted."""
    r = op.operands[0]
    if _weighing(op, sweep.options) and r in sweep.wanted:
        operands = (sweep.values[r], a, y)
        sweep.receive(r, sweep.emit(sim.WeightsBackward, op, operands, gives=r.type))


@lowers(aux.Spread)
class SpreadRule(Rule[aux.Spread]):
    """Emit the sum over a token's experts, the transpose."""

    def forward(self, op: aux.Spread) -> Module:
        return Module(sim.Spread, {"weighted": op.weighted})

    def carriers(self, op: aux.Spread, options: Options) -> tuple[Value, ...]:
        """Return x, and the routing if it weighs x and is differentiated."""
        return op.operands[1 - _weighing(op, options) :]

    def backward(self, sweep: Sweep, op: aux.Spread, dy: Value) -> None:
        r, x = op.operands
        _receive_weights(sweep, op, sweep.values[x], dy)
        operands = (sweep.values[r], dy)
        sweep.receive(x, sweep.emit(sim.Combine, op, operands, gives=x.type, weighted=op.weighted))


@lowers(aux.Combine)
class CombineRule(Rule[aux.Combine]):
    """Emit the gradient for each of a token's experts, the transpose."""

    def forward(self, op: aux.Combine) -> Module:
        return Module(sim.Combine, {"weighted": op.weighted})

    def carriers(self, op: aux.Combine, options: Options) -> tuple[Value, ...]:
        """Return y, and the routing if it weighs y and is differentiated."""
        return op.operands[1 - _weighing(op, options) :]

    def backward(self, sweep: Sweep, op: aux.Combine, dy: Value) -> None:
        r, y = op.operands
        _receive_weights(sweep, op, dy, sweep.values[y])
        operands = (sweep.values[r], dy)
        sweep.receive(y, sweep.emit(sim.Spread, op, operands, gives=y.type, weighted=op.weighted))


@lowers(aux.Experts)
class ExpertsRule(Rule[aux.Experts]):
    """Emit dx where it is wanted, and the descent of weight and bias, of all experts together."""

    def forward(self, op: aux.Experts) -> Module:
        return Module(sim.ExpertsForward, {})

    def layer(self, program: Program, op: aux.Experts, options: Options) -> WeightGroup:
        parts = {"weight": op.weight}
        held: tuple[str, ...] = ()
        if op.bias:
            parts["bias"] = op.bias
            held = ("bias",)
        return WeightGroup(stem(op.weight), Type("experts", program.parameters[op.weight].shape, held), parts)

    def carriers(self, op: aux.Experts, options: Options) -> tuple[Value, ...]:
        """Return x: the routing receives no gradient."""
        return op.operands[1:]

    def backward(self, sweep: Sweep, op: aux.Experts, dy: Value) -> None:
        r, x = op.operands
        routing = sweep.values[r]
        if x in sweep.wanted:
            operands = (*sweep.weights_of(op), routing, dy)
            sweep.receive(x, sweep.emit(sim.ExpertsBackward, op, operands, gives=x.type))
        sweep.descend(sim.ExpertsDescent, op, (routing, dy, sweep.values[x]))
