"""Finding q, k, v, scale and masks of an attention, fused (`scaled_dot_product_attention`) or written out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from tintc.frontend.execution import opname
from tintc.frontend.graph import CapturedGraph
from tintc.frontend.patterns import is_noise, peel, scalar
from tintc.frontend.rules.base import Fail


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
    softmax = peel(graph, probabilities)
    if opname(softmax) not in ("softmax", "_softmax"):
        return None
    scores, dim = softmax.args[:2]
    if dim not in (-1, 3) or not isinstance(scores, Node):
        return Fail("its softmax is not over the keys", softmax)
    scale, masks = 1.0, []
    at = scores
    while opname(at) not in ("matmul", "bmm"):
        step = _step(graph, at)
        if step is None:
            return Fail(f"its scores pass through aten.{opname(at)} (a soft cap or a bias?), which is not supported", at)
        at, factor, mask = step
        scale *= factor
        masks += [mask] if mask is not None else []
    q, k = at.args[:2]
    assert isinstance(q, Node) and isinstance(k, Node)
    return Scores(node, q, k, v, k_transposed=True, scale=scale, masks=tuple(masks))


def _step(graph: CapturedGraph, node: Node) -> tuple[Node, float, Node | None] | None:
    """One operation on the scores taken off: what is below, a factor, a mask that was added."""
    name = opname(node)
    if is_noise(graph, node):
        return graph.live_inputs(node)[0], 1.0, None
    if name in ("mul", "div"):
        below, number = node.args[0], scalar(graph, node.args[1])
        if isinstance(below, Node) and number:
            return below, number if name == "mul" else 1 / number, None
    if name == "add" and not node.kwargs:
        for below, mask in (node.args[:2], node.args[1::-1]):
            if isinstance(below, Node) and isinstance(mask, Node) and below in graph.live and mask not in graph.live:
                return below, 1.0, mask
    return None
