"""First-order derivatives in literal execution (paper Defs. F.3, G.3): blocks and sequences that three ops share.

``fixed``: slots [g, x] -> dimension-wise [x + eps g, x] -> f on both -> dimension-wise (first - second) / eps.
``central`` has x - eps g in place of the second x, divides by 2 eps, and has the steps of ``token``.

``token`` rescales per token: h = eps c / r with r = rms(g). Its steps use the simulator's own instruction set:

- ``g^ = GroupRMS(g)`` is g / r, and ``r = mean(g * g^)`` (a product of slots, then a sum), since
  ``mean(g * g / r) = r^2 / r``.
- h g = eps c g^, so the step needs c only. The difference along c g^ with the constant step eps is
  ``(f(x + h g) - f(x)) / eps``.
- Times r and times 1/c it is divided by ``eps c / r = h``. A zero gradient gives g^ = 0, r = 0, and a result of 0. QED.

So every op here returns ``(f(x + h g) - f(x)) / h``; how far that is from the derivative is of first order in h, and
stands at the ops. Central ones return ``(f(x + h g) - f(x - h g)) / 2h``, which is off by second order: even orders of
a Taylor step cancel. These sequences run in fp32 or better, whatever the simulator's dtype.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tintc.ir.block_specs import GroupNormSpec, LinearSpec, ProductSpec, SplitStage, TensorSpec
from tintc.ir.functions import FiniteDifference, at_least_fp32
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.literal_base import LiteralRun, Tiles
from tintc.ir.structure import StructuralBlock, chunk_map
from tintc.option_facts import SCHEMES


class DifferenceOp(SimOp):
    """An op that takes a finite difference; its attributes `scheme` and `fd_step` are those of `FiniteDifference`."""

    scheme: str
    fd_step: float

    @property
    def difference(self) -> FiniteDifference:
        """Return the difference as the interpreters know it."""
        return FiniteDifference(self.scheme, self.fd_step)

    def check_difference(self) -> None:
        """Raise `IRError` for an unknown scheme, and for a step that is not above zero."""
        self.expect(self.scheme in SCHEMES, f"unknown finite-difference scheme {self.scheme!r}")
        self.expect(self.fd_step > 0, f"the finite-difference step is {self.fd_step}; it must be above zero")


def widened(tiles: Tiles) -> Tiles:
    """Return the tiles in fp32 or better."""
    return [at_least_fp32(tile) for tile in tiles]


def slot_map(layout: Layout, entries: dict[tuple[int, int], float]) -> SplitStage:
    """Return the dimension-wise stage by which slot `to` receives ``factor * slot from``, for every
    ``(to, from): factor``.

    Slots that are not named become zero. Chunk j of a slot stands at chunk ``slot * S' + j``, so each entry is S'
    entries of a `chunk_map`, one for each j, alike in all columns. QED.
    """
    shards = layout.shards
    chunks = {
        (to * shards + j, source * shards + j): factor
        for (to, source), factor in entries.items()
        for j in range(shards)
    }
    return chunk_map(layout.n_heads, layout.d_h, chunks)


def difference_blocks(layout: Layout, difference: FiniteDifference, base: int) -> dict[str, StructuralBlock]:
    """Return the two constant blocks of a difference, by name.

    `fd_step_*`: [g, ...] with x in slot `base` -> [x + eps g, x]; `fd_difference_*`: [a, b] -> [(a - b) / eps]. Those
    of a central one: [x + eps g, x - eps g] and [(a - b) / 2 eps].
    """
    eps = difference.eps
    entries = {(0, base): 1.0, (0, 0): eps, (1, base): 1.0}
    between = eps
    if difference.central:
        entries[1, 0] = -eps
        between = 2 * eps
    return {
        _step_name(difference, base): StructuralBlock(LinearSpec((slot_map(layout, entries),))),
        named_by("fd_difference", between): StructuralBlock(LinearSpec((quotient(layout, between),))),
    }


def quotient(layout: Layout, between: float) -> SplitStage:
    """Return the stage [a, b] -> [(a - b) / between]."""
    return slot_map(layout, {(0, 0): 1 / between, (0, 1): -1 / between})


def _step_name(difference: FiniteDifference, base: int) -> str:
    """Return the name of the block that steps."""
    if difference.central:
        return named_by(f"fd_steps_{base}", difference.eps)
    return named_by(f"fd_step_{base}", difference.eps)


def _difference_name(difference: FiniteDifference) -> str:
    """Return the name of the block that subtracts and divides."""
    if difference.central:
        return named_by("fd_difference", 2 * difference.eps)
    return named_by("fd_difference", difference.eps)


def named_by(block: str, eps: float) -> str:
    """Return a block's name: its tensors depend on eps, so the name does too (a dot may not stand in a module's
    name)."""
    return f"{block}_{eps!r}".replace(".", "p")


def mean_stages(
    layout: Layout, width: float, extra: dict[tuple[int, int], float], groups: int = 1
) -> tuple[SplitStage, SplitStage]:
    """Return stages that take means: split-wise, dimension-wise.

    Claim: every coordinate of slot 0 becomes the mean over the slot's first `width` coordinates, plus the slots of
    `extra` ``{(to, from): factor}`` (for any other `width`, the slot's sum over it). groups: the mean of each of so
    many parts of `width` coordinates, in every coordinate of the part.

    Split-wise: each chunk of slot 0 times the all-ones matrix over `width`, which puts the chunk's sum / width into all
    its columns; other chunks stay. Dimension-wise: every chunk of slot 0 receives the sum of all of them, and `extra`
    is added slot by slot. Pads are zero and add nothing. QED.
    """
    if groups > 1:
        return _means_by_part(layout, int(width), extra, groups)
    heads = layout.n_heads
    d_h = layout.d_h
    shards = layout.shards

    def ones() -> Tensor:
        weight = torch.eye(d_h, dtype=torch.float64).repeat(heads, 1, 1)
        weight[:shards] = 1 / width
        return weight

    split = SplitStage("split", heads, d_h, TensorSpec((heads, d_h, d_h), ones))
    entries = {(to, source): 1.0 for to in range(shards) for source in range(shards)}
    entries |= {(to * shards + j, s * shards + j): f for (to, s), f in extra.items() for j in range(shards)}
    return split, chunk_map(heads, d_h, entries)


def _means_by_part(
    layout: Layout, width: int, extra: dict[tuple[int, int], float], groups: int
) -> tuple[SplitStage, SplitStage]:
    """Return `mean_stages` in chunks of one part.

    Every part is a chunk, so that the split-wise operation alone takes the means, and the dimension-wise one keeps each
    in its chunk. QED.
    """
    chunks = layout.d_sim // width
    per_slot = layout.pitch // width

    def ones() -> Tensor:
        weight = torch.eye(width, dtype=torch.float64).repeat(chunks, 1, 1)
        weight[:groups] = 1 / width
        return weight

    split = SplitStage("split", chunks, width, TensorSpec((chunks, width, width), ones))
    entries = {(part, part): 1.0 for part in range(groups)}
    entries |= {(to * per_slot + j, s * per_slot + j): f for (to, s), f in extra.items() for j in range(per_slot)}
    return split, chunk_map(chunks, width, entries)


def unit_blocks(layout: Layout, n_tiles: int, width: int, groups: int = 1) -> dict[str, StructuralBlock]:
    """Return the blocks of `unit`, for a value of `width` in `n_tiles` tiles, or for `groups` of that width in one."""
    group = GroupNormSpec((tuple(range(n_tiles)),), "rms", 0.0, groups * width, parts=groups)
    return {
        _grouped("fd_unit", width, groups): StructuralBlock(group, "replace"),
        "product_0_1": StructuralBlock(ProductSpec(0, 1)),
        **mean_block(layout, width, groups),
    }


def _grouped(block: str, width: int, groups: int) -> str:
    """Return a block's name: its tensors depend on the width and the number of groups, so the name does too."""
    if groups == 1:
        return f"{block}_{width}"
    return f"{block}_{groups}x{width}"


def unit(run: LiteralRun, g: Tiles, width: int, groups: int = 1) -> tuple[Tiles, Tensor]:
    """Return (tiles of ``g / rms(g)``, ``rms(g)`` in every coordinate of a slot ``[B, T, P]``); rms is over all of the
    `width`.

    groups: of so many parts of `width` coordinates, each on its own; g is one tile then. Claim: the group RMS norm
    without eps gives ``g^ = g / r``, and the tiles' means of ``g g^`` add up to ``mean(g g) / r = r``. QED.
    """
    e = run.apply(_grouped("fd_unit", width, groups), run.embed(g))
    units = [run.slot(e, i) for i in range(len(g))]
    squares = (run.apply("product_0_1", run.embed([a, b])) for a, b in zip(g, units, strict=True))
    sizes = [run.slot(run.apply(_grouped("fd_mean", width, groups), e)) for e in squares]
    return units, sum(sizes[1:], sizes[0])


def mean_block(layout: Layout, width: int, groups: int = 1) -> dict[str, StructuralBlock]:
    """Return the block of `mean`, by name."""
    stages = mean_stages(layout, width, {}, groups)
    return {_grouped("fd_mean", width, groups): StructuralBlock(LinearSpec(stages))}


def mean(run: LiteralRun, x: Tensor, width: int, groups: int = 1) -> Tensor:
    """Return the sum of a slot's coordinates over `width`, in every coordinate of a slot ``[B, T, P]``; of so many
    parts of it, each its own."""
    return run.slot(run.apply(_grouped("fd_mean", width, groups), run.embed([x])))


def product(run: LiteralRun, a: Tensor, b: Tensor) -> Tensor:
    """Return a * b, two slots ``[B, T, P]``."""
    return run.slot(run.apply("product_0_1", run.embed([a, b])))


def difference(run: LiteralRun, e: Tensor, base: int, kind: FiniteDifference, f: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``(f(x + eps g) - f(x)) / eps`` for e with g in slot 0 and x in slot `base`, or the central difference; f
    acts on slots 0 and 1."""
    e = f(run.apply(_step_name(kind, base), e))
    return run.slot(run.apply(_difference_name(kind), e))


def difference_across(
    run: LiteralRun, g: Tiles, x: Tiles, base: int, kind: FiniteDifference, f: Callable[[Tiles], Tiles]
) -> Tiles:
    """Return `difference`, tile by tile, for an f that needs all tiles of a value together."""
    fill = x[:1] * (base - 1)
    steps = [run.apply(_step_name(kind, base), run.embed([gi, *fill, xi])) for gi, xi in zip(g, x, strict=True)]
    ahead = f([run.slot(e) for e in steps])
    behind = f([run.slot(e, 1) for e in steps])
    name = _difference_name(kind)
    return [run.slot(run.apply(name, run.embed([a, b]))) for a, b in zip(ahead, behind, strict=True)]
