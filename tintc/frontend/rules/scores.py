"""Finding q, k, v, scale and masks of an attention, fused (`scaled_dot_product_attention`) or written out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from tintc.frontend.execution import opname
from tintc.frontend.graph import CapturedGraph
from tintc.frontend.patterns import is_noise, scalar, single_sources
from tintc.frontend.regions import moves
from tintc.frontend.rules.base import Fail

PRODUCTS = frozenset({"matmul", "bmm", "baddbmm"})


@dataclass(frozen=True)
class Scores:
    """softmax(scale * q k^T + masks) v at `result`; k_transposed: k is ``[B, H, d, T]``; problems: sentences."""

    result: Node
    q: Node
    k: Node
    v: Node
    k_transposed: bool
    scale: float
    masks: tuple[Node, ...]
    causal: bool = False
    problems: tuple[str, ...] = ()


def find_scores(graph: CapturedGraph, node: Node) -> Scores | Fail | None:
    """The attention whose result the node is; None if it is none, `Fail` if its scores cannot be read."""
    if opname(node) == "scaled_dot_product_attention":
        return _fused(node)
    if opname(node) in ("matmul", "bmm"):
        return _written_out(graph, node)
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
        masks=() if mask is None else (mask,),
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
    problems: list[str] = [] if dim in (-1, 3) else ["its softmax is not over the keys"]
    scale, masks = 1.0, []
    assert isinstance(at, Node)
    while opname(at) not in PRODUCTS:
        below, factor, mask = _step(graph, at)
        if below is None:
            return Fail(f"its scores are made by aten.{opname(at)}, not by a product of q and k", at)
        if factor is None:
            problems.append(f"its scores pass through aten.{opname(at)}, which is not supported")
        at, scale = below, scale * (factor or 1.0)
        masks += [mask] if mask is not None else []
    if opname(at) == "baddbmm":
        problems.append("a bias is added to the scores (ALiBi or a learned one)")
    q, k = at.args[-2:]
    assert isinstance(q, Node) and isinstance(k, Node)
    return Scores(node, q, k, v, k_transposed=True, scale=scale, masks=tuple(masks), problems=tuple(problems))


def _through_layout(graph: CapturedGraph, node: Node) -> Node:
    return [node, *single_sources(graph, node, lambda at: moves(at) or is_noise(graph, at))][-1]


def _step(graph: CapturedGraph, node: Node) -> tuple[Node | None, float | None, Node | None]:
    """One operation on the scores taken off: what is below, a factor (None: not one), a mask that was added."""
    name, live = opname(node), graph.live_inputs(node)
    below = live[0] if len(live) == 1 else None
    if moves(node) or is_noise(graph, node):
        return below, 1.0, None
    if name in ("mul", "div"):
        number = scalar(graph, node.args[1])
        return below, (number if name == "mul" else 1 / number) if number else None, None
    if name == "add" and not node.kwargs:
        mask = next((value for value in node.args if isinstance(value, Node) and value not in graph.live), None)
        return below, 1.0 if mask is not None else None, mask
    return below, None, None
