"""q, k, v, scale and masks of an attention, fused (`scaled_dot_product_attention`) or written out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch.fx import Node

from tintc.frontend.attention.masks import EXCLUDED, Mask
from tintc.frontend.attention.sinks import sinks_beside, sinks_of_gate
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.elementwise import factor_of
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.node_queries import PROBES, argument, is_noise, peel, scalar, single_sources
from tintc.frontend.graph.obstacle_words import SCORES
from tintc.frontend.graph.regions import moves
from tintc.frontend.rule import Fail

PRODUCTS = frozenset({"matmul", "bmm", "baddbmm"})


@dataclass(frozen=True)
class Scores:
    """softmax(cap(scale * q k^T) + masks) v at `result`; problems: sentences.

    k_transposed: k is ``[B, H, d, T]``; soft_cap: c of ``c tanh(score / c)``, 0 if there is none; sinks: name of the
    heads' sinks, empty if there are none; softmax_of: the operand of a softmax written out.
    """

    result: Node
    q: Node
    k: Node
    v: Node
    k_transposed: bool
    scale: float
    masks: tuple[Mask, ...]
    causal: bool = False
    soft_cap: float = 0.0
    problems: tuple[str, ...] = ()
    sinks: str = ""
    softmax_of: Node | None = None


def find_scores(graph: CapturedGraph, node: Node) -> Scores | Fail | None:
    """Return the attention whose result the node is; None if it is none, `Fail` if its scores cannot be read."""
    if opname(node) == "scaled_dot_product_attention":
        return _fused(node)
    if opname(node) in ("matmul", "bmm"):
        return _written_out(graph, node)
    if opname(node) == "mul":
        return _gated(graph, node)
    return None


def _gated(graph: CapturedGraph, node: Node) -> Scores | None:
    """Return the attention if the node is one times a gate, which is a sink written in another way."""
    for product, gate in (node.args[:2], node.args[1::-1]):
        if not isinstance(product, Node) or not isinstance(gate, Node) or gate not in graph.live:
            continue
        inner = peel(graph, product)
        if opname(inner) not in ("matmul", "bmm"):
            continue
        scores = _written_out(graph, inner)
        if not isinstance(scores, Scores) or scores.softmax_of is None or scores.sinks:
            continue
        sinks = sinks_of_gate(graph, gate, scores.softmax_of)
        if sinks is not None:
            return replace(scores, result=node, sinks=sinks)
    return None


def _fused(node: Node) -> Scores:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    arguments: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    scale = arguments.get("scale")
    if scale is None:
        scale = arguments["query"].meta["val"].shape[-1] ** -0.5
    masks: list[Mask] = []
    if arguments.get("attn_mask") is not None:
        masks.append(Mask(arguments["attn_mask"]))
    problems: list[str] = []
    if arguments.get("dropout_p", 0.0):
        problems.append("it drops probabilities at random")
    return Scores(
        node,
        arguments["query"],
        arguments["key"],
        arguments["value"],
        k_transposed=False,
        scale=float(scale),
        masks=tuple(masks),
        causal=bool(arguments.get("is_causal", False)),
        problems=tuple(problems),
    )


def _written_out(graph: CapturedGraph, node: Node) -> Scores | Fail | None:
    probabilities, v = node.args[:2]
    assert isinstance(probabilities, Node) and isinstance(v, Node)
    softmax = _through_layout(graph, probabilities)
    if opname(softmax) not in ("softmax", "_softmax"):
        return None
    operand, dim = softmax.args[:2]
    walk = _Walk(graph)
    if dim not in (-1, len(softmax.meta["val"].shape) - 1):
        walk.problems.append("its softmax is not over the keys")
    assert isinstance(operand, Node)
    operand = _without_shift(graph, operand)
    node_below = operand
    sinks = ""
    beside = sinks_beside(graph, operand, softmax, probabilities)
    if beside is not None:
        node_below, sinks = beside
    while opname(node_below) not in PRODUCTS:
        below = walk.step(node_below)
        if below is None:
            made_by = opname(node_below)
            why = f"its scores are made by aten.{made_by}, not by a product of q and k"
            return Fail(why, node_below, obstacle=SCORES)
        node_below = below
    walk.product(node_below)
    q, k = node_below.args[-2:]
    assert isinstance(q, Node) and isinstance(k, Node)
    scale, cap = walk.scale_and_cap()
    return Scores(
        node,
        q,
        k,
        v,
        k_transposed=True,
        scale=scale,
        masks=tuple(walk.masks),
        soft_cap=cap,
        problems=tuple(walk.problems),
        sinks=sinks,
        softmax_of=operand,
    )


def _without_shift(graph: CapturedGraph, operand: Node) -> Node:
    """Return what a softmax over keys reads, without a number for each query that is subtracted from all scores, such
    as their maximum: it changes nothing."""
    operand = peel(graph, operand)
    shift = argument(operand, 1, None)
    if opname(operand) != "sub" or operand.kwargs or not isinstance(shift, Node):
        return operand
    shapes = [graph.shape(shift, *probe) for probe in PROBES]
    if any(shape is None or shape[-1:] != (1,) for shape in shapes) or not isinstance(operand.args[0], Node):
        return operand
    return peel(graph, operand.args[0])


def _through_layout(graph: CapturedGraph, node: Node) -> Node:
    """Return the farthest node behind one through moves and noise."""
    *_, farthest = node, *single_sources(graph, node, lambda behind: moves(behind) or is_noise(graph, behind))
    return farthest


class _Walk:
    """A walk from the softmax down to the product, operation by operation.

    factor: product of the constants met so far, since the tanh if there was one; above: their product before it.
    """

    def __init__(self, graph: CapturedGraph):
        self.graph = graph
        self.factor = 1.0
        self.above: float | None = None
        self.masks: list[Mask] = []
        self.problems: list[str] = []

    def step(self, node: Node) -> Node | None:
        """Take one operation off and return the value below it; None if there is not exactly one."""
        live = self.graph.live_inputs(node)
        name = opname(node)
        if name == "cat":
            self.problems.append("its softmax is over more than the scores and one constant for each head")
        if len(live) != 1:
            return None
        (below,) = live
        if moves(node) or is_noise(self.graph, node) or self._floor(node, name, below):
            return below
        product = factor_of(self.graph, node)
        if product is not None and name != "neg":
            self.factor *= product[1]
        elif name == "tanh" and self.above is None and self.factor > 0:
            self.above = self.factor
            self.factor = 1.0
        elif (mask := self._mask(node, name, below)) is not None:
            if self.above is not None:
                self.problems.append("a mask is applied before its scores are capped")
            self.masks.append(mask)
        else:
            self.problems.append(f"its scores pass through aten.{name}, which is not supported")
        return below

    def _mask(self, node: Node, name: str, below: Node) -> Mask | None:
        """Return the mask that an operation on the scores applies; None if it is anything else."""
        if name == "where":
            condition, where_true, where_false = node.args
            if where_true is below:
                return self._exclusion(condition, where_false, "add")
            return self._exclusion(condition, where_true, "exclude")
        if name == "masked_fill":
            return self._exclusion(node.args[1], node.args[2], "exclude")
        if name not in ("add", "sub", "mul") or (node.kwargs and name != "mul"):
            return None
        first, other = node.args[:2]
        if first is not below:
            first, other = other, first
        if not isinstance(other, Node) or (name == "sub" and node.args[0] is not below):
            return None
        if name == "mul":
            return Mask(other, "multiply")
        return Mask(other, factor=-self.factor if name == "sub" else self.factor)

    def _floor(self, node: Node, name: str, below: Node) -> bool:
        """Return True if the operation raises scores to a number whose probability is 0, which changes nothing."""
        if name not in ("max", "maximum", "clamp_min", "clamp") or "max" in node.kwargs or self.factor <= 0:
            return False
        numbers = [scalar(self.graph, value) for value in (*node.args, *node.kwargs.values()) if value is not below]
        return len(numbers) == 1 and numbers[0] is not None and numbers[0] * self.factor <= EXCLUDED

    def _exclusion(self, condition: Any, fill: Any, effect: str) -> Mask | None:
        """Return the mask that puts `fill` in place of some scores; None unless that makes their probabilities 0."""
        number = scalar(self.graph, fill)
        excludes = number is not None and number * self.factor <= EXCLUDED
        if not excludes or not isinstance(condition, Node):
            return None
        return Mask(condition, effect)

    def product(self, node: Node) -> None:
        """Take the product itself; ``baddbmm(bias, q, k)`` adds a bias too."""
        if opname(node) == "baddbmm":
            beta, alpha = (float(node.kwargs.get(key, 1.0)) for key in ("beta", "alpha"))  # pyright: ignore[reportArgumentType]
            bias = node.args[0]
            if beta and isinstance(bias, Node):
                if self.above is not None:
                    self.problems.append("a bias is added before its scores are capped")
                self.masks.append(Mask(bias, factor=self.factor * beta))
            self.factor *= alpha

    def scale_and_cap(self) -> tuple[float, float]:
        """Return scale and c: ``above * tanh(factor * qk)`` is ``c tanh(scale qk / c)`` with scale = factor * c."""
        if self.above is None:
            return self.factor, 0.0
        return self.factor * self.above, self.above
