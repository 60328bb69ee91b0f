"""Shared by the norm modules: the group-norm block, and gain and bias as prefixes hold them.

A gain that stays is the linear layer diag(gain), bias and all, so that norms run as linear modules. A diagonal cannot
descend by itself (linear descent would fill the other entries), so a gain that descends is a vector in prefix 0, which
bias heads carry to every token: gain in slot 0 of the prefix, bias where linear layers have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from torch import Tensor

from tintc.errors import OptionError
from tintc.ir.auxiliary.norm import per_token
from tintc.ir.block_specs import AttentionSpec, GroupNormSpec, Positions, ProductSpec
from tintc.ir.core import Op, Value
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.literal_base import LiteralRun, PrefixTiles, Tiles
from tintc.ir.simulator.shared.linear_common import bias_chunks, main_chunks
from tintc.ir.structure import StructuralBlock, chunk_map, indicator

W = TypeVar("W")


@dataclass(eq=False, kw_only=True)
class NormOp(SimOp):
    """kind ``layer`` or ``rms``; groups: equal parts of the value (heads), each normalised on its own.

    A group may not straddle two slots unless it is the whole value.
    """

    kind: str
    eps: float
    groups: int = 1

    @property
    def weights(self) -> Value | None:
        """Return the operand that holds gain and bias; None if the norm has neither."""
        if self.operands[0].type.kind == "norm":
            return self.operands[0]
        return None

    def weights_and(self, operands: tuple[Any, ...], none: W) -> tuple[W, Any]:
        """Return (weights, operand after them) of a run; `none` in place of weights if the norm has none."""
        if self.weights is None:
            return none, operands[0]
        return operands[0], operands[1]

    @property
    def part(self) -> int:
        """Return the width of what is normalised on its own."""
        return self.result.type.width // self.groups

    def head_dims(self) -> set[int]:
        if self.groups == 1:
            return set()
        return {self.part}

    def name(self, block: str, layout: Layout) -> str:
        """Return the block's name, e.g. ``norm_layer_1e-05`` (a dot may not stand in a module's name)."""
        name = f"{block}_{self.kind}_{self.eps!r}"
        if self.groups > 1 or self.part != layout.d_aux:
            name += f"_{self.tile_groups(layout)}x{self.part}"
        return name.replace(".", "p")

    def tile_groups(self, layout: Layout) -> int:
        """Return the number of groups in one slot; 1 if the value is one group."""
        if self.groups == 1:
            return 1
        return min(self.groups, layout.pitch // self.part)

    def spread(self, layout: Layout) -> int:
        """Return the number of slots that one group takes."""
        return layout.tiles(self.part)

    def spec(self, layout: Layout, groups: tuple[tuple[int, ...], ...], inverse: int = -1) -> GroupNormSpec:
        """Return the group norm over `groups` of slots, one group after the other. inverse: slot that receives 1/c, -1
        for none.

        Claim: a norm has 1/c at hand, c being its scale. Write w for x (its mean taken off for LayerNorm) with one more
        coordinate ``sqrt(D eps)``: then ``|w|^2 = D c^2``, and the norm without eps, ``sqrt(D) w / |w| = w / c``, is
        f(x) on the coordinates of x and ``sqrt(D eps) / c`` on the last one, a constant multiple of 1/c. QED.
        """
        parts = self.tile_groups(layout)
        return GroupNormSpec(groups, self.kind, self.eps, parts * self.part, inverse, parts)

    def forward_block(self, layout: Layout) -> StructuralBlock:
        """Return f on the first slots: on each of one slot's groups, or on one group in several slots."""
        return StructuralBlock(self.spec(layout, (tuple(range(self.spread(layout))),)), "replace")

    def normalised(self, run: LiteralRun, x: Tiles, weights: PrefixTiles | None = None) -> Tiles:
        """Return the tiles of f(x). The prefixes of a single tile (gain and bias, if any) pass through the gate, and
        are put back into `weights`."""
        name = self.name("norm", run.layout)
        if weights is not None and weights.rows and len(x) == 1:
            e = run.apply(name, run.embed(x, weights.rows[0][0]))
            weights.rows[0][0] = run.prefix(e)
            return [run.slot(e)]
        normed: Tiles = []
        spread = self.spread(run.layout)
        for start in range(0, len(x), spread):
            e = run.apply(name, run.embed(x[start : start + spread]))
            normed += [run.slot(e, i) for i in range(spread)]
        return normed


def check_norm(op: Op, weight: Value, value: Value) -> None:
    """Raise `IRError` unless `weight` is a norm's, of the width of `value`, or a vector that its heads share."""
    op.expect(weight.type.kind == "norm", f"needs norm weights, not {weight.type}")
    shared = has(weight, "vector") and value.type.width % weight.type.width == 0
    op.expect(shared or weight.type.dims == value.type.dims, f"weights are {weight.type}, the value is {value.type}")


def for_all_heads(vector: Tensor, width: int) -> Tensor:
    """Return a gain or bias ``[d]`` or ``[B, d]``, ready to multiply a value ``[B, T, width]`` whose heads share it."""
    vector = per_token(vector)
    heads = width // vector.shape[-1]
    if heads == 1:
        return vector
    return vector.repeat(*[1] * (vector.dim() - 1), heads)


@cache
def vectors_block(layout: Layout, bias: bool) -> StructuralBlock:
    """Return the attention that carries a norm's vectors to the tokens.

    Claim: every token receives the gain in slot 0 and, with `bias`, the bias in slot 1.

    Heads 0 .. S'-1 and the bias heads follow the bias-head rule: query e_0 for tokens, key e_k for prefix k, and W_q =
    W_k = 0, so the score of a token is 1 with prefix 0 and 0 with all else. W_v is the identity on these heads: the
    output is their chunks of prefix 0. W_o brings those of the bias heads to slot 1. QED.
    """
    heads = layout.n_heads
    width = layout.d_h
    shards = layout.shards
    used = [*main_chunks(layout)[:shards]]
    if bias:
        used += bias_chunks(layout)
    lam = indicator(heads, used)
    spec = AttentionSpec(
        n_heads=heads,
        width=width,
        kind="linear",
        w_q=None,
        w_k=None,
        w_v=(chunk_map(heads, width, {(head, head): 1.0 for head in used}),),
        w_o=(chunk_map(heads, width, dict.fromkeys(enumerate(used), 1.0)),),
        positions_q=Positions("tokens", lam),
        positions_k=Positions("prefix", lam),
        constant=range(heads),
    )
    return StructuralBlock(spec, "replace")


def vector_blocks(layout: Layout, weight: Value) -> dict[str, StructuralBlock]:
    """Return the blocks that `vectors` applies, and the product with the gain, by name.

    Raises `OptionError` for a gain that is wider than a slot.
    """
    if layout.tiles(weight.type.width) > 1:
        raise OptionError("The gain of a norm that is wider than the residual stream cannot descend; leave it out.")
    block = vectors_block(layout, has(weight, "bias"))
    return {_vectors_name(weight): block, "product_0_1": StructuralBlock(ProductSpec(0, 1))}


def _vectors_name(weight: Value) -> str:
    """Return the name of the block that carries the vectors of these weights."""
    if has(weight, "bias"):
        return "norm_vectors_bias"
    return "norm_vectors"


def vectors(run: LiteralRun, weight: Value, weights: PrefixTiles, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return gain and bias (None without) of a norm at every token, ``[B, T, P]`` each. x: any slot of the tokens."""
    e = run.apply(_vectors_name(weight), run.embed([x], weights.rows[0][0]))
    weights.rows[0][0] = run.prefix(e)
    if has(weight, "bias"):
        return run.slot(e), run.slot(e, 1)
    return run.slot(e), None


def has(weight: Value, part: str) -> bool:
    """Return True if the weights of a norm hold `part`: ``gain``, ``vector`` or ``bias``."""
    return part in weight.type.parts
