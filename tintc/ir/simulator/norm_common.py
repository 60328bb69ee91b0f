"""What the norm modules share: the group-norm block and the gain as a diagonal linear layer."""

from __future__ import annotations

from tintc.ir.core import Op, Value
from tintc.ir.layout import Layout
from tintc.ir.simulator.base import LiteralRun, PrefixTiles, Tiles
from tintc.ir.structure import Block, GroupNormSpec


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


def has(weight: Value, part: str) -> bool:
    return part in weight.type.parts
