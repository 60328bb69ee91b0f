"""One head's role: what it is of, what it reads and what it writes."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tintc.ir.columns import StridedRuns


@dataclass(frozen=True)
class Place:
    """Numbers that a head reads or writes.

    as_: ``query``, ``key``, ``value`` or ``result``; at: ``tokens``, ``prefixes``, or the tokens that the mask lets it
    see; slot: of the embedding, -1 for all of it (a gate's); of: the value or parameter that stands there (``a + b``
    for a sum, ``#2`` for what the module's third block made, ``a[3]`` for that of expert 3); numbers: of it, rows of a
    matrix.
    """

    as_: str
    at: str
    slot: int
    of: str
    numbers: StridedRuns


@dataclass(frozen=True)
class Role:
    """The role of one head of one module.

    site: the module, below ``sites``; block: its tensors, below ``structure``; head: its index there, -1 for a block
    without heads or a gate; phase: forward, loss, backward, descent or gate; step: the pass or gradient step; layer: of
    the auxiliary, -1 outside; parameter: the auxiliary's, as the program names it (empty: none; ``up.weight[3]`` for
    that of expert 3); rows, columns: the part of it (runs ``start, stop, step``; of vectors there are only rows); tile:
    the weight tile (row, column).
    """

    site: str
    block: str
    head: int
    phase: str
    step: int
    layer: int
    parameter: str
    rows: StridedRuns
    columns: StridedRuns
    tile: tuple[int, int] | None
    reads: tuple[Place, ...]
    writes: tuple[Place, ...]


FIELDS = tuple(field.name for field in fields(Role))
