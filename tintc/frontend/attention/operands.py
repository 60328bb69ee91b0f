"""Sources of q, k and v: the vectors they are cut from, how, and a norm of single heads after their rotation."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.attention.head_map import Heads, Region, distinct_heads, read_heads
from tintc.frontend.attention.rotations import UnsupportedHeadMap
from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.layouts import vector_layout
from tintc.frontend.graph.node_queries import single_sources
from tintc.frontend.graph.regions import Signatures, is_linear, leaves
from tintc.frontend.graph.written_norms import read_written_norm
from tintc.ir.auxiliary import Norm
from tintc.ir.core import Value


@dataclass
class Regions:
    """Heads of the regions of one graph, by their signatures; a sentence where they are not supported."""

    signatures: Signatures
    heads: dict[tuple[int, bool], Heads | str] = field(default_factory=dict)

    def read_heads(self, region: Region) -> Heads:
        """Return `head_map.read_heads`, called once for all regions that compute the same."""
        key = (self.signatures.of(region.root, region.sources), region.transposed)
        if key not in self.heads:
            try:
                self.heads[key] = read_heads(region)
            except UnsupportedHeadMap as reason:
                self.heads[key] = str(reason)
        heads = self.heads[key]
        if isinstance(heads, str):
            raise UnsupportedHeadMap(heads)
        return heads


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
    def rotated(self) -> Heads:
        """Return the heads that carry the rotation, if there is one."""
        if self.norm is None:
            return self.heads
        return self.norm.rotated

    def build(self, builder: Builder, node: Node, values: tuple[Value, ...], label: str, count: int) -> Value:
        """Return the value of `count` distinct heads, head after head."""
        whole = builder.concatenate(node, values, f"{label}_sources")
        if self.norm is not None:
            columns = self.norm.rotated.columns
            cut = builder.select(node, whole, columns.flatten().tolist(), label)
            sizes = {"kind": "rms", "eps": self.norm.eps, "groups": len(columns)}
            whole = builder.emit(Norm, node, (cut,), cut.type, f"{label}_norm", **sizes)
        return builder.select(node, whole, self.heads.grouped(count).columns.flatten().tolist(), label)


def find_operand(
    graph: CapturedGraph, root: Node, transposed: bool, regions: Regions
) -> tuple[tuple[Node, ...], Operand | str]:
    """Return where to look for further problems, and the operand at `root`, or why it is none."""
    sources = _sources(graph, root)
    if not sources:
        *_, last = leaves(graph, root) or [root]
        where = graph.where(last)
        if last not in graph.live:
            return (), f"it comes from {where} and does not depend on the tokens"
        return (last,), f"it comes from {where}, where there is not one vector per token"
    try:
        operand = _behind_norm(graph, root, sources, transposed, regions)
        if operand is None:
            operand = Operand(sources, regions.read_heads(Region(graph, root, sources, transposed)))
        return operand.sources, operand
    except UnsupportedHeadMap as reason:
        return sources, str(reason)


def _sources(graph: CapturedGraph, root: Node) -> tuple[Node, ...]:
    """Return the nearest vectors that are no linear function of others; the last, where one determines the operand."""
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
    """Return the operand if its source is an RMSNorm of rotated heads; None if it is anything else."""
    if len(sources) != 1:
        return None
    norm = read_written_norm(graph, sources[0])
    if norm is None or norm.gain is None or norm.kind != "rms" or norm.eps <= 0:
        return None
    layout = vector_layout(graph, norm.x)
    inner = _sources(graph, norm.x)
    if layout is None or len(layout.sizes) != 2 or len(inner) != 1 or inner[0] is norm.x or layout.length == 3:
        return None
    rotated = regions.read_heads(Region(graph, norm.x, inner))
    if rotated.rotation is None:
        return None
    if rotated.scales is not None:
        raise UnsupportedHeadMap("its heads are normalised after they are scaled by their position")
    if rotated.order is not None or abs(rotated.factor - 1) > 1e-9 or distinct_heads(rotated.columns) != rotated.count:
        raise UnsupportedHeadMap("its heads are normalised after a rotation that is not a plain one")
    if norm.gain and tuple(graph.tensors[norm.gain].shape) != (rotated.head_dim,):
        raise UnsupportedHeadMap("its heads are normalised after their rotation, each with a gain of its own")
    heads = regions.read_heads(Region(graph, root, sources, transposed))
    return Operand(inner, heads, RotatedNorm(rotated, norm.eps, norm.gain))


def joint_gain(graph: CapturedGraph, q: Operand, k: Operand) -> Tensor | None:
    """Return what products of rotated coordinates of q and k are multiplied by, ``[head_dim]``; None if by nothing."""
    names = [operand.norm.gain for operand in (q, k) if operand.norm is not None and operand.norm.gain]
    if not names:
        return None
    return torch.stack([graph.tensors[name].double() for name in names]).prod(0)
