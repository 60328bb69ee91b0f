"""`sim.inverse_norm`: 1 / |g|, over all numbers of one layer's gradient, or of several layers'."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from tintc.ir.block_specs import AttentionSpec, GroupNormSpec, LinearSpec, Positions, ProductSpec
from tintc.ir.core import Type, Value, register
from tintc.ir.functions import at_least_fp32
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.cost_model import CostModel
from tintc.ir.simulator.interface.fused_base import FusedRun, FusedWeights
from tintc.ir.simulator.interface.literal_base import ExpertTiles, LiteralRun, PrefixTiles, Tile, Tiles
from tintc.ir.simulator.interface.semantics import Interpretation, Weights
from tintc.ir.simulator.shared.first_order import mean_stages, slot_map, widened
from tintc.ir.simulator.shared.linear_common import copies_of_bias, select_chunks
from tintc.ir.simulator.shared.sums import FLOOR, each_of, held_sums, squared_norm, squares
from tintc.ir.structure import StructuralBlock, chunk_map, indicator


@cache
def gather_block(layout: Layout) -> StructuralBlock:
    """Return the attention by which tokens collect one number from every prefix.

    Claim: with the number r_k in every column of chunk 0 of prefix k, chunk 0 of every token becomes
    ``(r_0, ..., r_{K-1}, 0, ...)``, and all its other chunks 0.

    Head 0 alone: the query of tokens is e_0 (P_q of tokens, W_q = 0), the key of prefix k its chunk 0 (W_k keeps it),
    so the score is r_k; the value of prefix k is e_k (P_v of prefixes, W_v = 0), and d_h >= K, so there is such a
    vector. The output is ``sum_k r_k e_k``, which W_o writes to chunk 0. Values of tokens are zero, so tokens
    contribute nothing. QED.
    """
    heads = layout.n_heads
    width = layout.d_h
    first = range(1)
    spec = AttentionSpec(
        n_heads=heads,
        width=width,
        kind="linear",
        w_q=None,
        w_k=(select_chunks(layout, first),),
        w_v=None,
        w_o=(chunk_map(heads, width, {(0, 0): 1.0}),),
        positions_q=Positions("tokens", indicator(heads, first)),
        positions_v=Positions("prefix", indicator(heads, first)),
    )
    return StructuralBlock(spec, "replace")


@register("sim.inverse_norm")
@dataclass(eq=False, kw_only=True)
class InverseNorm(SimOp):
    """(sums, ...) -> 1 / sqrt(|sums|^2 + floor), one number for each example.

    Claim: `structure`'s blocks give it. Write a_ks for slot s of prefix k of a tile, P numbers.

    1. At prefixes: ``norm_take_s`` puts a_ks into slots 0 and 1; ``norm_unit`` makes ``a_ks / rms(a_ks)`` of slot 1, a
       group RMS norm without eps, which leaves zeros zero; the product of the slots has the mean
       ``rms(a_ks)^2 / rms(a_ks)``, so ``norm_row`` makes ``r_ks = sqrt(P) rms(a_ks) = |a_ks|`` in every coordinate.
    2. ``norm_gather`` gives every token the slot ``R_s = (r_0s, ..., r_{K-1,s}, 0, ...)``, whose squares add up to
       those of all numbers of slot s.
    3. Two slots u and v of a token become one, whose squares add up to ``|u|^2 + |v|^2``: ``norm_pair`` is a group RMS
       norm of both together, with ``rms^2 = (|u|^2 + |v|^2) / 2P``; the products with u and with v, their means by
       ``norm_join`` and the sum are rms, times sqrt(2) in every coordinate c, so ``P c^2 = |u|^2 + |v|^2``. One slot
       after the other, over all s, tiles, experts and operands, the squares add up to ``|sums|^2``.
    4. ``norm_inverse`` is a group RMS norm with eps = floor / P that also hands out
       ``1 / sqrt((|sums|^2 + floor) / P)`` (construction.md, section 2.4); ``norm_scale`` divides it by sqrt(P). QED.

    It is exact, to rounding. Slots that hold nothing are left out: those of a bias in tiles without one, and all but
    the first of a norm's gain.
    """

    def verify(self) -> None:
        weights = all(value.type.is_weights for value in self.operands)
        self.expect(bool(self.operands) and weights, "takes sums")
        self.expect(self.result.type.kind == "number", "gives a number")

    def interpret(self, run: Interpretation, *sums: Weights) -> Tensor:
        total: Tensor | None = None
        for value, held in zip(self.operands, sums, strict=True):
            for part, tensor in _parts(value.type, held):
                batched = tensor.expand(run.inputs.shape[0], *tensor.shape[tensor.dim() - part :])
                own = squares([batched])
                total = own if total is None else total + own
        assert total is not None
        return (total + FLOOR).rsqrt()

    def fused(self, run: FusedRun, *sums: FusedWeights) -> Tensor:
        examples = run.inputs.shape[0]
        norms = (squared_norm(held, value.type, examples) for value, held in zip(self.operands, sums, strict=True))
        there = [at_least_fp32(norm) for norm in norms if norm is not None]
        if not there:
            return torch.full((examples,), FLOOR**-0.5, device=run.inputs.input_ids.device)
        return (sum(there[1:], there[0]) + FLOOR).rsqrt()

    def multiply_adds(self, costs: CostModel, *sums: Value) -> int:
        """Count products of the factors with each other, or those that write the sums out, whichever are fewer."""
        total = 0
        for value in sums:
            if value.type.kind == "norm":
                continue
            dout, din = value.type.dims[-2:]
            vectors = sum(update.train for update in costs.updates(value))
            total += vectors * min(vectors * (dout + din), dout * din)
        return total

    def entries(self, costs: CostModel, result: Value) -> int:
        return 1

    def slots(self, layout: Layout) -> int:
        return 2

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        pitch = layout.pitch
        taken = sorted({slot for value in self.operands for slot in _slots(layout, value.type)})
        blocks = {
            f"norm_take_{slot}": StructuralBlock(LinearSpec((slot_map(layout, {(0, slot): 1.0, (1, slot): 1.0}),)))
            for slot in taken
        }
        return blocks | {
            "norm_unit": StructuralBlock(GroupNormSpec(((1,),), "rms", 0.0, pitch)),
            "product_0_1": StructuralBlock(ProductSpec(0, 1)),
            "norm_row": StructuralBlock(LinearSpec(mean_stages(layout, pitch**0.5, {}))),
            "norm_gather": gather_block(layout),
            "norm_pair": StructuralBlock(GroupNormSpec(((0, 1),), "rms", 0.0, 2 * pitch), "replace"),
            "norm_join": StructuralBlock(LinearSpec(mean_stages(layout, pitch * 2**0.5, {}))),
            "norm_inverse": StructuralBlock(GroupNormSpec(((0,),), "rms", FLOOR / pitch, pitch, inverse=1), "replace"),
            "norm_scale": StructuralBlock(LinearSpec((slot_map(layout, {(0, 1): pitch**-0.5}),))),
        }

    def scores(self, layout: Layout, run: Interpretation, *sums: Weights) -> Iterable[Tensor]:
        """Yield the norms of rows within a tile, which tokens collect."""
        for value, held in zip(self.operands, sums, strict=True):
            for _, tensor in _parts(value.type, held):
                for part in tensor.split(layout.pitch, -1):
                    yield part.square().sum(-1).sqrt()

    def literal(self, run: LiteralRun, *sums: PrefixTiles | ExpertTiles) -> Tiles:
        total: Tensor | None = None
        for value, held in zip(self.operands, sums, strict=True):
            for tiles in each_of(held):
                for norms in self._collected(run, value.type, tiles):
                    total = norms if total is None else self._joined(run, total, norms)
        assert total is not None
        e = run.apply("norm_inverse", run.embed([total]))
        return [run.slot(run.apply("norm_scale", e))]

    def _collected(self, run: LiteralRun, kind: Type, tiles: PrefixTiles) -> Iterator[Tensor]:
        """Yield R_s of every slot of every tile, as a slot of the tokens ``[B, T, P]``."""
        for row in held_sums(tiles, kind):
            for column, tile in enumerate(row):
                for slot in _slots(run.layout, kind, column):
                    yield self._rows(run, slot, tile)

    def _rows(self, run: LiteralRun, slot: int, tile: Tile) -> Tensor:
        """Return R_s of one slot of one tile."""
        e = run.embed([], tile)
        for block in (f"norm_take_{slot}", "norm_unit", "product_0_1", "norm_row"):
            e = run.apply(block, e)
        (collected,) = widened([run.slot(run.apply("norm_gather", e))])
        return collected

    def _joined(self, run: LiteralRun, u: Tensor, v: Tensor) -> Tensor:
        """Return a slot whose squares add up to those of both."""
        e = run.apply("norm_pair", run.embed([u, v]))
        units = (run.slot(e), run.slot(e, 1))
        products = (run.apply("product_0_1", run.embed(pair)) for pair in zip((u, v), units, strict=True))
        first, second = (run.slot(run.apply("norm_join", e)) for e in products)
        return first + second


def _slots(layout: Layout, kind: Type, column: int = 0) -> list[int]:
    """Return the slots of a tile's prefixes that hold sums of descents, by the tile's column."""
    slots: list[int] = []
    if kind.kind != "norm":
        slots += range(layout.stack)
    elif "vector" in kind.parts:
        slots.append(0)
    if column < copies_of_bias(kind):
        slots.append(layout.stack)
    return slots


def _parts(kind: Type, held: Weights) -> Iterator[tuple[int, Tensor]]:
    """Yield the parts of sums that descents have written, with the dimensions of one example's."""
    if held.weight is not None and (kind.kind != "norm" or "vector" in kind.parts):
        yield len(kind.dims), held.weight
    if held.bias is not None:
        yield len(kind.dims) - (kind.kind != "norm"), held.bias
