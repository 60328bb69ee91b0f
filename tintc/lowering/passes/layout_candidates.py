"""Layouts that a program could have, and the cost of each (construction.md, section 3.1).

A candidate is a pair (S, S') with the narrowest chunks d_h and the fewest heads H_sim that hold every condition; where
nothing divides, slots are padded. S >= S' in all of them, because ``d_h >= K = S' * d_h / S``.

The cost has one unit, a multiply-add of literal execution on a text of full length: multiply-adds of the attention
modules, plus `READ` for every value these read, which are their own parameters and the prefix embeddings. So
parameters, prefix tokens and literal time are weighed by one constant.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tintc.ir import simulator as sim
from tintc.ir.core import Program, Type
from tintc.ir.layout import Layout, infeasible
from tintc.ir.simulator.shared.linear_common import copies_of_bias, count_tiles
from tintc.options import Options

READ = 16
"""Multiply-adds that take as long as reading one value from memory, on processors of today (roughly)."""
MOST = 16
"""The largest S and S' that are tried unless one is asked for: D_sim is at least S * D, so more only costs more."""


@dataclass(frozen=True)
class Demands:
    """The demands of a program on its layout.

    width: of the residual stream; head_dims: widths of attention heads; has_bias: whether any weights hold a bias;
    whole_width: whether slots may not be padded (`paper-code` cuts feed-forwards into tiles of the width); uses: how
    often the modules read weights of each type; ops: one op of every kind and shape.
    """

    width: int
    head_dims: frozenset[int]
    has_bias: bool
    whole_width: bool
    uses: Mapping[Type, int]
    ops: Sequence[sim.SimOp]

    @classmethod
    def of(cls, program: Program) -> Demands:
        """Return the demands of a program."""
        ops = [op for op in program.ops if isinstance(op, sim.SimOp)]
        weights = [value.type for op in ops for value in op.operands if value.type.is_weights]
        stored = [op.result.type for op in ops if isinstance(op, sim.StoredWeights)]
        kinds: dict[tuple[object, ...], sim.SimOp] = {}
        for op in ops:
            types = tuple(value.type for value in (*op.operands, *op.results))
            kinds[type(op), getattr(op, "groups", 1), types] = op
        return cls(
            width=program.attributes["width"],
            head_dims=frozenset().union(*(op.head_dims() for op in ops)),
            has_bias=any(copies_of_bias(kind) > 0 for kind in stored),
            whole_width=program.attributes["semantics"] == "paper-code",
            uses=Counter(weights),
            ops=tuple(kinds.values()),
        )

    def slots(self, layout: Layout) -> int:
        """Return the most slots that one module reads together."""
        return max(op.slots(layout) for op in self.ops)

    def applications(self, layout: Layout) -> int:
        """Return how often a module is applied to a weight tile in one run of the program."""
        return sum(count * count_tiles(layout, kind) for kind, count in self.uses.items())


@dataclass(frozen=True)
class Candidate:
    """A layout and its costs. broken: the conditions that fail; none in a feasible layout."""

    layout: Layout
    demands: Demands = field(repr=False)
    broken: tuple[str, ...]

    @property
    def padding(self) -> float:
        """Return the share of a slot, which is also a weight tile's width, that is padding when it holds a D-wide
        value."""
        return 1 - self.layout.d_aux / self.layout.pitch

    @cached_property
    def work(self) -> int:
        """Return the multiply-adds of the attention modules of one run on a text of full length, over all weight
        tiles."""
        return self.demands.applications(self.layout) * module_work(self.layout)

    @cached_property
    def reads(self) -> int:
        """Return the number of values that these modules read: their parameters, and their prefix embeddings."""
        prefixes = self.layout.n_prefixes * self.layout.d_sim
        return self.demands.applications(self.layout) * (module_parameters(self.layout) + prefixes)

    @property
    def cost(self) -> int:
        """Return multiply-adds and reads in one unit."""
        return self.work + READ * self.reads


@dataclass(frozen=True)
class Survey:
    """All layouts that were tried, by S and then S'."""

    tried: tuple[Candidate, ...]

    @property
    def feasible(self) -> list[Candidate]:
        return [candidate for candidate in self.tried if not candidate.broken]

    @property
    def refused(self) -> list[Candidate]:
        return [candidate for candidate in self.tried if candidate.broken]

    def frontier(self) -> list[Candidate]:
        """Return the feasible layouts that no other one beats in prefixes, D_sim, work and reads, all at once."""
        best: dict[tuple[int, ...], Candidate] = {}
        for candidate in self.feasible:
            layout = candidate.layout
            best.setdefault((layout.n_prefixes, layout.d_sim, candidate.work, candidate.reads), candidate)

        def beaten(mine: tuple[int, ...]) -> bool:
            return any(theirs != mine and all(a <= b for a, b in zip(theirs, mine, strict=True)) for theirs in best)

        return [candidate for figures, candidate in best.items() if not beaten(figures)]

    @cached_property
    def chosen(self) -> Candidate:
        """Return the cheapest candidate.

        Raises `OptionError` with the conditions that the nearest miss breaks if none is feasible.
        """
        if self.feasible:
            return min(self.feasible, key=lambda candidate: candidate.cost)
        nearest = min(self.refused, key=lambda candidate: len(candidate.broken))
        raise infeasible(nearest.layout.stack, nearest.layout.shards, nearest.broken)


def survey(program: Program, options: Options, max_length: int) -> Survey:
    """Return every pair of S and S' up to `MOST`, or the ones that `options` fix, as candidates."""
    demands = Demands.of(program)
    stacks: Sequence[int] = range(1, max(MOST, options.shards or 0) + 1)
    shards: Sequence[int] = range(1, max(MOST, options.stack or 0) + 1)
    if options.stack:
        stacks = [options.stack]
    if options.shards:
        shards = [options.shards]
    return Survey(tuple(candidate(demands, s, part, options, max_length) for s in stacks for part in shards))


def candidate(demands: Demands, stack: int, shards: int, options: Options, max_length: int) -> Candidate:
    """Return the narrowest layout with this S and S', or with the d_h and H_sim that `options` fix.

    S has to divide the slot width ``P = S' * d_h`` so that a tile's rows fill whole prefixes, and every head's width
    has to divide it. So d_h is the least multiple of ``m / gcd(m, S')``, for both of these m, with ``P >= D``.
    """
    # Slots begin at multiples of every head's width.
    unit = math.lcm(*demands.head_dims)
    step = math.lcm(*(m // math.gcd(m, shards) for m in (stack, unit)))
    d_h = options.head_width or -(-demands.width // (shards * step)) * step
    layout = Layout(demands.width, stack, shards, d_h, options.heads or 1, max_length)
    if not options.heads:
        # A bool counts as 0 or 1: biases need heads of their own.
        heads = max(stack * shards + shards * demands.has_bias, demands.slots(layout) * shards)
        # Heads of every width must also fill D_sim = H_sim * d_h.
        whole = unit // math.gcd(unit, d_h)
        layout = Layout(demands.width, stack, shards, d_h, -(-heads // whole) * whole, max_length)
    broken = layout.broken(demands.has_bias, demands.slots(layout), demands.head_dims)
    if demands.whole_width and layout.pitch > demands.width:
        sentence = f"S' = {shards} does not divide the width {demands.width} into equal chunks (d_h = {d_h})"
        broken = [f"{sentence}, which the semantics paper-code needs", *broken]
    return Candidate(layout, demands, tuple(broken))


def module_work(layout: Layout) -> int:
    """Return the multiply-adds of one linear module: six split stages, five of them dimension-wise, and two score
    products."""
    length = layout.sim_seq_len
    d_sim = layout.d_sim
    return length * d_sim * (layout.d_h + 5 * layout.n_heads) + 2 * length**2 * d_sim


def module_parameters(layout: Layout) -> int:
    """Return the parameters of one linear module with bias, by its shapes ("lean" in construction.md, section 11)."""
    d_sim = layout.d_sim
    heads = layout.n_heads
    stages = 5 * d_sim * heads + d_sim * layout.d_h + 6 * d_sim
    return stages + 3 * layout.sim_seq_len * layout.d_h + 3 * heads
