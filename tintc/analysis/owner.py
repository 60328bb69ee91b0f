"""Whose an element of a stored tensor is: one place in the program, or several."""

from __future__ import annotations

from dataclasses import dataclass, field

from tintc.ir.block_specs import SplitStage
from tintc.ir.simulator.interface.elements import InPrefix

Index = tuple[int, ...]


@dataclass(frozen=True)
class Owner:
    """What one number of a stored tensor is.

    tensor, index: the number; rules: the templates that it comes from (``sim.weights``, ``sim.linear_descent``), in the
    program's order if several share it; part: ``weight``, ``bias``, ``gain``, ``table``, ``score vector``, ``rate``,
    ``padding``, and of structural tensors ``w_q`` (or k, v, o, p, r), ``stages``, ``lam_q`` (or k, v), ``sink``,
    ``position``, ``gate``; layer: the auxiliary's, -1 outside, None if several layers share it; sites: the modules that
    read it, below ``sites``; block: below ``structure``, empty of what is none.

    Of the auxiliary's numbers: parameter, entry: as the program names it, and the index there (None: it has none); row,
    column, expert: of the weights, -1 for what there is not; places: where it stands in prefixes; step: of a rate.

    slot, shard: of the prefix, the stacked row and the part of it (slot S: the bias); of structural tensors, those that
    the head handles; -1 where there are none or several.

    heads: those that it belongs to: of a prefix, the linear modules' head that has its chunk. reads, writes: of split
    operations, (chunk, column) of the number that is read and of that which it is added to: of an embedding at the
    beginning of ``w_q``, ``w_k`` and ``w_v`` and the end of ``w_o``, of the heads at the other end. position: of a
    position matrix or gate, counted from the first prefix.
    """

    tensor: str
    index: Index
    rules: tuple[str, ...]
    part: str
    layer: int | None
    sites: tuple[str, ...] = field(repr=False)
    block: str = ""
    parameter: str = ""
    entry: Index | None = None
    row: int = -1
    column: int = -1
    expert: int = -1
    places: tuple[InPrefix, ...] = ()
    step: int = -1
    slot: int = -1
    shard: int = -1
    heads: tuple[int, ...] = ()
    reads: tuple[int, int] | None = None
    writes: tuple[int, int] | None = None
    position: int = -1

    @property
    def head(self) -> int:
        """Return the only head; -1 if there is none, or several."""
        if len(self.heads) == 1:
            return self.heads[0]
        return -1


@dataclass
class Users:
    """The modules that read a tensor: their templates, sites and layers."""

    rules: dict[str, None] = field(default_factory=dict)
    sites: dict[str, None] = field(default_factory=dict)
    layers: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class StageTensor:
    """A weight or bias of a split operation: its block, the chain's name, the operation's number in the chain."""

    block: str
    chain: str
    number: int
    stage: SplitStage
    bias: bool
