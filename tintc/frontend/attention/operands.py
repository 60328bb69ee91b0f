"""Where q, k and v come from: the vectors they are cut from, how, and a norm of single heads after their rotation."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.attention.head_map import Heads, Region, classify, distinct_heads
from tintc.frontend.attention.rotations import NotHeads
from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.layouts import vector_layout
from tintc.frontend.graph.node_queries import single_sources
from tintc.frontend.graph.regions import Signatures, is_linear, leaves
from tintc.frontend.rules.rms_norm import read_rms_norm
from tintc.ir.auxiliary import Concat, Norm, Select
from tintc.ir.columns import runs_of
from tintc.ir.core import Value, tokens


@dataclass
class Regions:
    """What has been found out about the regions of one graph, by their signatures."""

    signatures: Signatures
    heads: dict[tuple[int, bool], Heads | str] = field(default_factory=dict)

    def classify(self, region: Region) -> Heads:
        """`heads.classify`, once for all regions that compute the same."""
        key = (self.signatures.of(region.root, region.sources), region.transposed)
        if key not in self.heads:
            try:
                self.heads[key] = classify(region)
            except NotHeads as reason:
                self.heads[key] = str(reason)
        found = self.heads[key]
        if isinstance(found, str):
            raise NotHeads(found)
        return found


@dataclass(frozen=True)
class RotatedNorm:
    """An RMSNorm of heads that have been rotated, of `rotated`; gain: a parameter ``[d]``, or empty."""

    rotated: Heads
    eps: float
    gain: str


@dataclass(frozen=True)
class Operand:
    """q, k or v: `heads` as columns of the vectors at `sources`, side by side.

    norm: RMSNorm and rotation change places, since rotating a head keeps its length: with it, `heads` are columns of
    the normalised vector, which is made of ``norm.rotated``. The gain stays behind the rotation.
    """

    sources: tuple[Node, ...]
    heads: Heads
    norm: RotatedNorm | None = None

    @property
    def rotation(self) -> Heads:
        """The heads that carry the rotation."""
        return self.heads if self.norm is None else self.norm.rotated

    @property
    def gain(self) -> str:
        return "" if self.norm is None else self.norm.gain

    def build(self, builder: Builder, node: Node, values: tuple[Value, ...], label: str, count: int) -> Value:
        """The value of `count` distinct heads, head after head."""
        whole = values[0]
        if len(values) > 1:
            together = tokens(sum(value.type.width for value in values))
            whole = builder.emit(Concat, node, values, together, f"{label}_sources")
        if self.norm is not None:
            inner = self.norm.rotated.columns
            cut = select(builder, node, whole, label, inner)
            sizes = {"kind": "rms", "eps": self.norm.eps, "groups": len(inner)}
            whole = builder.emit(Norm, node, (cut,), cut.type, f"{label}_norm", **sizes)
        return select(builder, node, whole, label, self.heads.grouped(count).columns)


def select(builder: Builder, node: Node, value: Value, label: str, columns: Tensor) -> Value:
    """The columns of a value; the value itself if that is all of them in order."""
    wanted = columns.flatten().tolist()
    if wanted == list(range(value.type.width)):
        return value
    return builder.emit(Select, node, (value,), tokens(len(wanted)), label, columns=runs_of(wanted))


def find_operand(
    graph: CapturedGraph, root: Node, transposed: bool, regions: Regions
) -> tuple[tuple[Node, ...], Operand | str]:
    """The operand at `root`, or why it is none; and where to look for further problems."""
    sources = _sources(graph, root)
    if not sources:
        *_, last = leaves(graph, root) or [root]
        where = graph.where(last)
        if last not in graph.live:
            return (), f"it comes from {where} and does not depend on the tokens"
        return (last,), f"it comes from {where}, where there is not one vector per token"
    try:
        operand = _behind_norm(graph, root, sources, transposed, regions)
        operand = operand or Operand(sources, regions.classify(Region(graph, root, sources, transposed)))
        return operand.sources, operand
    except NotHeads as reason:
        return sources, str(reason)


def _sources(graph: CapturedGraph, root: Node) -> tuple[Node, ...]:
    """The nearest vectors that are no linear function of others; where one alone determines the operand, the last."""
    chain = [root, *single_sources(graph, root, lambda node: is_linear(graph, node))]
    vectors = [node for node in chain if vector_layout(graph, node) is not None]
    if vectors and not is_linear(graph, vectors[-1]):
        return (vectors[-1],)
    several = leaves(graph, root)
    if all(vector_layout(graph, node) is not None for node in several):
        return tuple(several)
    return tuple(vectors[-1:])


def _behind_norm(
    graph: CapturedGraph, root: Node, sources: tuple[Node, ...], transposed: bool, regions: Regions
) -> Operand | None:
    """The operand if its source is an RMSNorm of rotated heads."""
    norm = read_rms_norm(graph, sources[0]) if len(sources) == 1 else None
    if norm is None or norm.gain is None or norm.kind != "rms" or norm.eps <= 0:
        return None
    layout = vector_layout(graph, norm.x)
    inner = _sources(graph, norm.x)
    if layout is None or len(layout.sizes) != 2 or len(inner) != 1 or inner[0] is norm.x or layout.length != 2:
        return None
    rotated = regions.classify(Region(graph, norm.x, inner))
    if rotated.rotation is None:
        return None
    if rotated.scales is not None:
        raise NotHeads("its heads are normalised after they are scaled by their position")
    if rotated.order is not None or abs(rotated.factor - 1) > 1e-9 or distinct_heads(rotated.columns) != rotated.count:
        raise NotHeads("its heads are normalised after a rotation that is not a plain one")
    if norm.gain and tuple(graph.tensors[norm.gain].shape) != (rotated.head_dim,):
        raise NotHeads("its heads are normalised after their rotation, each with a gain of its own")
    heads = regions.classify(Region(graph, root, sources, transposed))
    return Operand(inner, heads, RotatedNorm(rotated, norm.eps, norm.gain))


def joint_gain(graph: CapturedGraph, q: Operand, k: Operand) -> Tensor | None:
    """What products of rotated coordinates of q and k are multiplied by, ``[head_dim]``; None if by nothing."""
    gains = [graph.tensors[operand.gain].double() for operand in (q, k) if operand.gain]
    return torch.stack(gains).prod(0) if gains else None
