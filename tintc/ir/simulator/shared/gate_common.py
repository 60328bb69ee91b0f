"""Shared by the two gate modules: the gated linear unit's product."""

from __future__ import annotations

from tintc.ir.simulator.interface.literal_base import LiteralRun, Tiles
from tintc.ir.structure import ActivationSpec, ProductSpec, StructuralBlock


def gate_blocks(fn: str) -> dict[str, StructuralBlock]:
    """Return the blocks of the gated linear unit, by name.

    Claim: [a, u] becomes [a * act(u), .]. The first block applies act to slot 1 only: [a, act(u)]; the second
    multiplies slot 1 into slot 0. Pads stay zero because a's are, whatever act(0) is. QED. It is exact.
    """
    return {
        f"gate_act_{fn}": StructuralBlock(ActivationSpec(fn, (1,))),
        "product_0_1": StructuralBlock(ProductSpec(0, 1)),
    }


def gate_tiles(run: LiteralRun, fn: str, a: Tiles, u: Tiles) -> Tiles:
    """Return a * act(u), tile by tile."""
    embedded = (run.embed([ai, ui]) for ai, ui in zip(a, u, strict=True))
    return [run.slot(run.apply("product_0_1", run.apply(f"gate_act_{fn}", e))) for e in embedded]
