"""Finding q, k, v, scale and masks of an attention, fused (`scaled_dot_product_attention`) or written out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch.fx import Node

from tintc.frontend.attention.masks import EXCLUDED, Mask
from tintc.frontend.attention.sinks import sinks_beside, sinks_of_gate
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.node_queries import is_noise, peel, scalar, single_sources
from tintc.frontend.graph.regions import moves
from tintc.frontend.rules.base import Fail

PRODUCTS = frozenset({"matmul", "bmm", "baddbmm"})


@dataclass(frozen=True)
class Scores:
    """softmax(cap(scale * q k^T) + masks) v at `result`; problems: sentences.

    k_transposed: k is ``[B, H, d, T]``; soft_cap: c of ``c tanh(score / c)``, 0 if there is none; sinks: name of the
    heads' sinks, empty if there are none; softmax_of: what a softmax written out is taken of.
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
    """The attention whose result the node is; None if it is none, `Fail` if its scores cannot be read."""
    if opname(node) == "scaled_dot_product_attention":
        return _fused(node)
    if opname(node) in ("matmul", "bmm"):
        return _written_out(graph, node)
    if opname(node) == "mul":
        return _gated(graph, node)
    return None


def _gated(graph: CapturedGraph, node: Node) -> Scores | None:
    """Attention times a gate that is a sink, written in another way."""
    for product, gate in (node.args[:2], node.args[1::-1]):
        if not isinstance(product, Node) or not isinstance(gate, Node) or gate not in graph.live:
            continue
        inner = peel(graph, product)
        found = _written_out(graph, inner) if opname(inner) in ("matmul", "bmm") else None
        if isinstance(found, Scores) and found.softmax_of is not None and not found.sinks:
            sinks = sinks_of_gate(graph, gate, found.softmax_of)
            if sinks is not None:
                return replace(found, result=node, sinks=sinks)
    return None


def _fused(node: Node) -> Scores:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    mask, scale = given.get("attn_mask"), given.get("scale")
    head_dim = given["query"].meta["val"].shape[-1]
    problems = ("it drops probabilities at random",) if given.get("dropout_p", 0.0) else ()
    return Scores(
        node,
        given["query"],
        given["key"],
        given["value"],
        k_transposed=False,
        scale=head_dim**-0.5 if scale is None else float(scale),
        masks=() if mask is None else (Mask(mask),),
        causal=bool(given.get("is_causal", False)),
        problems=problems,
    )


def _written_out(graph: CapturedGraph, node: Node) -> Scores | Fail | None:
    probabilities, v = node.args[:2]
    assert isinstance(probabilities, Node) and isinstance(v, Node)
    softmax = _through_layout(graph, probabilities)
    if opname(softmax) not in ("softmax", "_softmax"):
        return None
    at, dim = softmax.args[:2]
    walk = _Walk(graph)
    if dim not in (-1, len(softmax.meta["val"].shape) - 1):
        walk.problems.append("its softmax is not over the keys")
    assert isinstance(at, Node)
    top = at = peel(graph, at)
    beside = sinks_beside(graph, at, softmax, probabilities)
    at = at if beside is None else beside[0]
    while opname(at) not in PRODUCTS:
        below = walk.step(at)
        if below is None:
            return Fail(f"its scores are made by aten.{opname(at)}, not by a product of q and k", at)
        at = below
    walk.product(at)
    q, k = at.args[-2:]
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
        sinks="" if beside is None else beside[1],
        softmax_of=top,
    )


def _through_layout(graph: CapturedGraph, node: Node) -> Node:
    return [node, *single_sources(graph, node, lambda at: moves(at) or is_noise(graph, at))][-1]


class _Walk:
    """From the softmax down to the product, operation by operation.

    factor: product of the constants met so far, since the tanh if there was one; above: their product before it.
    """

    def __init__(self, graph: CapturedGraph):
        self.graph = graph
        self.factor = 1.0
        self.above: float | None = None
        self.masks: list[Mask] = []
        self.problems: list[str] = []

    def step(self, node: Node) -> Node | None:
        """Take one operation off; what is below it, None if that is not one value."""
        live, name = self.graph.live_inputs(node), opname(node)
        below = live[0] if len(live) == 1 else None
        if name == "cat":
            self.problems.append("its softmax is over more than the scores and one constant for each head")
        if below is None or moves(node) or is_noise(self.graph, node):
            return below
        factors = name == "mul" or (name == "div" and node.args[0] is below and not node.kwargs)
        if factors and (number := scalar(self.graph, node.args[node.args[0] is below])):
            self.factor *= number if name == "mul" else 1 / number
        elif name == "tanh" and self.above is None and self.factor > 0:
            self.above, self.factor = self.factor, 1.0
        elif self._floor(node, name, below):
            pass
        elif (mask := self._mask(node, name, below)) is not None:
            if self.above is not None:
                self.problems.append("a mask is applied before its scores are capped")
            self.masks.append(mask)
        else:
            self.problems.append(f"its scores pass through aten.{name}, which is not supported")
        return below

    def _mask(self, node: Node, name: str, below: Node) -> Mask | None:
        """The mask that an operation on the scores applies."""
        if name == "add" and not node.kwargs:
            other = node.args[node.args[0] is below]
            return Mask(other, factor=self.factor) if isinstance(other, Node) else None
        if name == "sub" and not node.kwargs and node.args[0] is below:
            other = node.args[1]
            return Mask(other, factor=-self.factor) if isinstance(other, Node) else None
        if name == "mul":
            other = node.args[node.args[0] is below]
            return Mask(other, "multiply") if isinstance(other, Node) else None
        if name == "where":
            condition, chosen, fill = node.args
            keeps = chosen is below
            return self._exclusion(condition, fill if keeps else chosen, "add" if keeps else "exclude")
        return self._exclusion(node.args[1], node.args[2], "exclude") if name == "masked_fill" else None

    def _floor(self, node: Node, name: str, below: Node) -> bool:
        """Whether the operation raises scores to a number whose probability is 0, and so changes none that counts."""
        if name not in ("max", "maximum", "clamp_min", "clamp") or "max" in node.kwargs or self.factor <= 0:
            return False
        numbers = [scalar(self.graph, value) for value in (*node.args, *node.kwargs.values()) if value is not below]
        return len(numbers) == 1 and numbers[0] is not None and numbers[0] * self.factor <= EXCLUDED

    def _exclusion(self, condition: Any, fill: Any, effect: str) -> Mask | None:
        """The mask that puts `fill` in place of some scores, if that makes their probabilities 0."""
        number = scalar(self.graph, fill)
        excludes = number is not None and number * self.factor <= EXCLUDED
        return Mask(condition, effect) if excludes and isinstance(condition, Node) else None

    def product(self, node: Node) -> None:
        """The product itself; ``baddbmm(bias, q, k)`` adds a bias too."""
        if opname(node) == "baddbmm":
            beta, alpha = (float(node.kwargs.get(key, 1.0)) for key in ("beta", "alpha"))  # pyright: ignore[reportArgumentType]
            bias = node.args[0]
            if beta and isinstance(bias, Node):
                if self.above is not None:
                    self.problems.append("a bias is added before its scores are capped")
                self.masks.append(Mask(bias, factor=self.factor * beta))
            self.factor *= alpha

    def scale_and_cap(self) -> tuple[float, float]:
        """``above * tanh(factor * qk)`` is ``c tanh(scale qk / c)`` with c = above and scale = factor * c."""
        return (self.factor, 0.0) if self.above is None else (self.factor * self.above, self.above)
