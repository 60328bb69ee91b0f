"""``act'(x) g`` in literal execution, for the two ops that need it: by a difference, or exactly where act has a kink.

A difference across a kink is off by up to g, whatever its step: it is wrong for all x that are nearer to the kink than
the step is long. Central differences therefore spare the activations that have kinks (`FiniteDifference.spares`). Their
slopes are made of the simulator's own parts:

- A group RMS norm whose parts are single coordinates, without eps, divides each by its own size: ``sign(x)``, with
  ``sign(0) = 0`` (`GroupNormSpec`).
- ``relu'(x) = sign(relu(x))``, which is 1 above 0 and 0 elsewhere. ``relu2'(x) = 2 relu(x)``.
- ``negexp(x)``, which is ``exp(x) - 1 - x`` below 0 and 0 above, has the slope ``negexp(x) - (relu(x) - x)``: below 0
  ``exp(x) - 1``, above it 0.
- An f that is x where its slope is 1, and constant elsewhere (``hardtanh``, ``at_most_one``), has the slope
  ``1 - sign(x - f(x))^2``.

Products of slots bring them to g. Pads of g are zero and stay zero. QED.
"""

from __future__ import annotations

from torch import Tensor

from tintc.ir.block_specs import ActivationSpec, GroupNormSpec, LinearSpec, ProductSpec
from tintc.ir.functions import FiniteDifference
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.literal_base import LiteralRun, Tiles
from tintc.ir.simulator.shared.first_order import (
    difference,
    difference_blocks,
    named_by,
    product,
    quotient,
    slot_map,
    unit,
    unit_blocks,
)
from tintc.ir.structure import StructuralBlock

SLOPE_OF = {"relu": "relu", "relu2": "relu", "negexp": "relu"}
"""Kinked activations whose slope is made of an activation's value, and that one; the others are clips."""
SIGN, TWICE = "fd_sign", "fd_twice"
MINUS = named_by("fd_difference", 1.0)


def derivative_slots(layout: Layout, kind: FiniteDifference, fn: str, width: int) -> int:
    """Return the most slots that `activation_derivative` needs in one embedding: two for a difference or a product, and
    where tokens have steps of their own all tiles of g together, for their norm."""
    if kind.spares(fn) or not kind.per_token:
        return 2
    return max(2, layout.tiles(width))


def activation_blocks(layout: Layout, kind: FiniteDifference, fn: str, width: int) -> dict[str, StructuralBlock]:
    """Return the blocks of `activation_derivative`, by name."""
    if kind.spares(fn):
        return _kink_blocks(layout, fn)
    blocks = difference_blocks(layout, kind.for_activations(), 1)
    if kind.per_token:
        blocks |= unit_blocks(layout, layout.tiles(width), width)
    return blocks | {f"fd_act_{fn}": StructuralBlock(ActivationSpec(fn, (0, 1)))}


def activation_derivative(run: LiteralRun, kind: FiniteDifference, fn: str, g: Tiles, x: Tiles, width: int) -> Tiles:
    """Return ``(act(x + h g) - act(x)) / h``, tile by tile, or the central difference, or what a kink has in its place.

    Claim: it is `difference` along g with the constant step. With ``token``, c = 1: along ``g^ = g / r`` it gives
    ``(act(x + h g) - act(x)) / eps`` for ``h = eps / r``, and times r that is divided by h. The same of ``central``
    with ``act(x - h g)`` and 2h. QED.
    """
    if kind.spares(fn):
        return [_along_kinked(run, fn, gi, xi) for gi, xi in zip(g, x, strict=True)]

    def slope(direction: Tensor, at: Tensor) -> Tensor:
        act = f"fd_act_{fn}"
        return difference(run, run.embed([direction, at]), 1, kind.for_activations(), lambda e: run.apply(act, e))

    if not kind.per_token:
        return [slope(gi, xi) for gi, xi in zip(g, x, strict=True)]
    units, size = unit(run, g, width)
    return [product(run, slope(ui, xi), size) for ui, xi in zip(units, x, strict=True)]


def _kink_blocks(layout: Layout, fn: str) -> dict[str, StructuralBlock]:
    """Return the blocks of `_along_kinked`, by name."""
    inner = SLOPE_OF.get(fn, fn)
    blocks = {f"act_{inner}": StructuralBlock(ActivationSpec(inner, (0,)))}
    blocks["product_0_1"] = StructuralBlock(ProductSpec(0, 1))
    if fn == "relu2":
        return blocks | {TWICE: StructuralBlock(LinearSpec((slot_map(layout, {(0, 0): 2.0}),)))}
    minus = StructuralBlock(LinearSpec((quotient(layout, 1.0),)))
    if fn == "negexp":
        return blocks | {"act_negexp": StructuralBlock(ActivationSpec(fn, (0,))), MINUS: minus}
    sign = GroupNormSpec(((0,),), "rms", 0.0, layout.pitch, parts=layout.pitch)
    blocks[SIGN] = StructuralBlock(sign, "replace")
    if fn not in SLOPE_OF:
        blocks[MINUS] = minus
    return blocks


def _along_kinked(run: LiteralRun, fn: str, g: Tensor, x: Tensor) -> Tensor:
    """Return ``act'(x) g`` of one tile, see the module."""
    y = run.slot(run.apply(f"act_{SLOPE_OF.get(fn, fn)}", run.embed([x])))
    if fn == "relu2":
        return run.slot(run.apply(TWICE, run.embed([product(run, g, y)])))
    if fn == "relu":
        return product(run, g, _sign(run, y))
    if fn == "negexp":
        value = run.slot(run.apply("act_negexp", run.embed([x])))
        return product(run, g, _minus(run, value, _minus(run, y, x)))
    outside = _sign(run, _minus(run, x, y))
    return _minus(run, g, product(run, g, product(run, outside, outside)))


def _sign(run: LiteralRun, x: Tensor) -> Tensor:
    return run.slot(run.apply(SIGN, run.embed([x])))


def _minus(run: LiteralRun, a: Tensor, b: Tensor) -> Tensor:
    return run.slot(run.apply(MINUS, run.embed([a, b])))
