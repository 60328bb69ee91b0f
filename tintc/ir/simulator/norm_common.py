"""What the norm modules share: the group-norm block, and gain and bias as prefixes hold them.

A gain that stays is the linear layer diag(gain), bias and all, so that norms run as linear modules. A diagonal cannot
descend by itself (linear descent would fill the other entries), so a gain that descends is a vector in prefix 0, which
bias heads carry to every token: gain in slot 0 of the prefix, bias where linear layers have it.
"""

from __future__ import annotations

from functools import cache

from torch import Tensor

from tintc.ir.core import Op, Value
from tintc.ir.layout import Layout
from tintc.ir.simulator.base import LiteralRun, PrefixTiles, Tiles
from tintc.ir.simulator.linear_common import bias_chunks, main_chunks
from tintc.ir.structure import AttentionSpec, Block, GroupNormSpec, Positions, ProductSpec, chunk_map, indicator


def group_name(kind: str, eps: float) -> str:
    """Name of the block, e.g. ``norm_layer_1e-05`` (a dot may not stand in a module's name)."""
    return f"norm_{kind}_{eps!r}".replace(".", "p")


def group_blocks(layout: Layout, kind: str, eps: float) -> dict[str, Block]:
    return {group_name(kind, eps): Block(GroupNormSpec(((0,),), kind, eps, layout.d_aux), "replace")}


def group_norm(run: LiteralRun, kind: str, eps: float, x: Tiles, weights: PrefixTiles | None) -> Tiles:
    """f(x) in slot 0; the prefixes (gain and bias, if any) pass through the gate."""
    tile = weights.rows[0][0] if weights is not None else None
    e = run.apply(group_name(kind, eps), run.embed(x, tile))
    if weights is not None:
        weights.rows[0][0] = run.prefix(e)
    return [run.slot(e)]


def check_norm(op: Op, weight: Value, value: Value) -> None:
    op.expect(weight.type.kind == "norm", f"needs norm weights, not {weight.type}")
    op.expect(weight.type.dims == value.type.dims, f"weights are {weight.type}, the value is {value.type}")


@cache
def vectors_block(layout: Layout, bias: bool) -> Block:
    """Claim: every token receives the gain in slot 0 and, with `bias`, the bias in slot 1.

    Heads 0 .. S'-1 and the bias heads follow the bias-head rule: query e_0 for tokens, key e_k for prefix k, and W_q =
    W_k = 0, so the score of a token is 1 with prefix 0 and 0 with all else. W_v is the identity on these heads: the
    output is their chunks of prefix 0. W_o brings those of the bias heads to slot 1. QED.
    """
    heads, width, shards = layout.n_heads, layout.d_h, layout.shards
    used = [*main_chunks(layout)[:shards], *(bias_chunks(layout) if bias else ())]
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
    return Block(spec, "replace")


def vector_blocks(layout: Layout, weight: Value) -> dict[str, Block]:
    """What `vectors` applies, and the product with the gain."""
    bias = has(weight, "bias")
    name = "norm_vectors_bias" if bias else "norm_vectors"
    return {name: vectors_block(layout, bias), "product_0_1": Block(ProductSpec(0, 1))}


def vectors(run: LiteralRun, weight: Value, weights: PrefixTiles, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Gain and bias (None without) of a norm at every token, ``[B, T, P]``; x: any slot of the tokens."""
    bias = has(weight, "bias")
    e = run.apply("norm_vectors_bias" if bias else "norm_vectors", run.embed([x], weights.rows[0][0]))
    weights.rows[0][0] = run.prefix(e)
    return run.slot(e), run.slot(e, 1) if bias else None


def has(weight: Value, part: str) -> bool:
    return part in weight.type.parts
