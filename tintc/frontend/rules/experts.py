"""Mixtures of experts as ops: routing, the two layers of every expert, what is between them, and the weighted sum."""

from __future__ import annotations

from torch.fx import Node

from tintc.frontend.builder import Builder
from tintc.frontend.experts.router_region import Routing, find_routing
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.captured_experts import CapturedExperts
from tintc.frontend.graph.node_queries import parameter_vector, peel
from tintc.frontend.graph.obstacle_words import ROUTING, SPECIAL_EXPERTS
from tintc.frontend.matching import NamedMatch, build_all, match_all
from tintc.frontend.rule import NOT_MINE, Fail, Match, Rule
from tintc.frontend.rules.activations import ActivationRule, ClampRule, MixtureRule, SwishRule, UnknownFunctionRule
from tintc.frontend.rules.arithmetic import AddRule, MultiplyRule, ScaleRule, ShiftedProductRule, SubtractRule
from tintc.frontend.rules.columns import SelectRule
from tintc.ir.auxiliary import Combine, Experts, Route, Spread
from tintc.ir.core import Value, tokens
from tintc.ir.routed import routed
from tintc.ir.router import RouterOptions

GATE_RULES: tuple[type[Rule], ...] = (
    ActivationRule,
    SwishRule,
    MixtureRule,
    ClampRule,
    SelectRule,
    ScaleRule,
    AddRule,
    SubtractRule,
    ShiftedProductRule,
    MultiplyRule,
    UnknownFunctionRule,
)
"""Rules for what is between the two layers of an expert, in order."""


class ExpertsRule:
    """A node of `CapturedExperts`, and the router before it -> `aux.route`, `aux.spread`, two `aux.experts` with the
    gate between them, `aux.combine`."""

    def __init__(self) -> None:
        self._gates: dict[CapturedGraph, dict[Node, NamedMatch] | str] = {}
        self._known: list[RouterOptions] = []

    def match(self, graph: CapturedGraph, node: Node) -> Match | Fail:
        experts = node.target
        if not isinstance(experts, CapturedExperts):
            return NOT_MINE
        x, index, weights, *parameters = node.args
        assert isinstance(x, Node) and isinstance(weights, Node)
        assert index is None or isinstance(index, Node)
        names = [parameter_vector(graph, parameter) for parameter in parameters]
        if None in names:
            return Fail("the weights of the experts are computed, they must be parameters", inputs=(x,))
        gate = self._gate(experts.gate)
        if isinstance(gate, str):
            why = f"the function between the two layers of an expert is not supported: {gate}"
            return Fail(why, inputs=(x,), obstacle=SPECIAL_EXPERTS)
        count = graph.tensors[names[0] or ""].shape[0]
        routing = find_routing(graph, index, weights, count, self._known)
        if routing is None:
            why = "routing that tintc does not know: no rule for scores and weights agrees with it"
            return Fail(why, inputs=(x,), obstacle=ROUTING)
        if routing.options not in self._known:
            self._known.append(routing.options)

        def build(builder: Builder, values: tuple[Value, ...]) -> Value:
            return _build(builder, node, experts, names, gate, routing, values)

        return Match((x, routing.logits), build)

    def _gate(self, gate: CapturedGraph) -> dict[Node, NamedMatch] | str:
        """Return the matches in a gate's graph, which layers share; or the first reason why there are none."""
        if gate not in self._gates:
            matches, reasons = match_all(gate, gate.logits, [rule() for rule in GATE_RULES], {gate.input_ids})
            self._gates[gate] = matches
            if reasons:
                self._gates[gate] = f"{reasons[0].what}, {reasons[0].why}"
        return self._gates[gate]


def _build(
    builder: Builder,
    node: Node,
    experts: CapturedExperts,
    names: list[str | None],
    gate: dict[Node, NamedMatch],
    routing: Routing,
    values: tuple[Value, ...],
) -> Value:
    """Emit all ops of a mixture and return its result."""
    x, z = values
    options = routing.options.attributes()
    options |= {key: builder.parameter(routing.vectors[name]) for key, name in routing.options.vectors().items()}
    weights = builder.emit(Route, node, (z,), tokens(z.type.width), "route", **options)
    count = z.type.width
    chosen = routing.options.chosen

    def layer(source: Value, weight: str, bias: str | None, hint: str) -> Value:
        stack = builder.parameter(weight, experts.is_transposed, stacked=True)
        width = builder.program.parameters[stack].shape[-2]
        vectors = bias and builder.parameter(bias, stacked=True)
        kind = routed(count, chosen, width)
        return builder.emit(Experts, node, (weights, source), kind, hint, weight=stack, bias=vectors or "")

    up, up_bias, down, down_bias = experts.layers(*names)
    spread = builder.emit(
        Spread, node, (weights, x), routed(count, chosen, x.type.width), "spread", weighted=experts.scales_input
    )
    hidden = layer(spread, up, up_bias, "up")
    inside = builder.within(experts.gate, node, count, chosen)
    placed = build_all(inside, experts.gate, gate, {experts.gate.input_ids: hidden})
    builder.inner[node] = placed
    result = layer(placed.values[peel(experts.gate, experts.gate.logits)], down, down_bias, "down")
    return builder.emit(
        Combine, node, (weights, result), tokens(result.type.width), "combine", weighted=not experts.scales_input
    )
