"""`check_sizes`: a simulator program's numbers, checked against each other before anything is made by them.

A text may say what no pass writes: tiles without end, a step that is not there, a slot beyond the table. What follows
from the layout is computed anew and compared; the rest is held within its range.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import cache
from inspect import Parameter, signature
from itertools import chain, repeat
from typing import Any, cast

from tintc.errors import IRError, OptionError
from tintc.ir.core import Program
from tintc.ir.layout import Layout
from tintc.ir.simulator import Repeat, SimOp, StoredWeights
from tintc.lowering.passes.layout_candidates import Demands
from tintc.lowering.passes.plan_layout import layout_of
from tintc.option_facts import MOST_STEPS

LARGEST = 1 << 31
"""The largest size that a program may have."""
MOST_NUMBERS = 1 << 48
"""Numbers of the largest tensor."""
PHASES = ("forward", "loss", "backward", "descent")


def check_sizes(program: Program) -> None:
    """Raise `IRError` unless a simulator program's sizes are whole numbers in range and fit each other."""
    layout = layout_of(program)
    for name, value in {**asdict(layout), **_attributes(program)}.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
            raise IRError(f"The program's {name} is {value!r}; it must be a whole number. Compile the model again.")
    zero = [name for name, value in asdict(layout).items() if value < 1]
    if zero or program.attributes["vocab_size"] < 1 or not 1 <= program.attributes["n_steps"] <= MOST_STEPS:
        raise IRError(f"The program's {', '.join(zero) or 'vocab_size or n_steps'} is out of range. Compile it again.")
    if program.attributes["semantics"] not in ("exact", "paper-code"):
        raise IRError(f"The program's semantics is {program.attributes['semantics']!r}, which is unknown.")
    for op in program.ops:
        if isinstance(op, Repeat) or not isinstance(op, SimOp):
            raise IRError(f"{op.opname} does not stand in a compiled program. Compile the model again.")
    _check_layout(program, layout)
    for op in program.ops:
        assert isinstance(op, SimOp)
        _check_op(program, layout, op)


def _attributes(program: Program) -> dict[str, Any]:
    names = ("width", "vocab_size", "n_layers", "n_steps", "n_update_layers", "memory_slots")
    return {name: program.attributes[name] for name in names if name in program.attributes}


def _check_layout(program: Program, layout: Layout) -> None:
    """Raise `IRError` unless all types are of sizes that there are, and the layout meets what the ops ask of it."""
    types = [value.type for op in program.ops for value in op.results]
    shapes = [*(kind.dims for kind in types), *(one.shape for one in program.parameters.values())]
    for shape in dict.fromkeys(shapes):
        if not all(1 <= size <= LARGEST for size in shape) or _product(shape) > MOST_NUMBERS:
            raise IRError(f"The program has a value of the sizes {list(shape)}. Compile the model again.")
    if layout.d_aux != program.attributes["width"]:
        raise IRError(
            f"The layout is for the width {layout.d_aux}, and the program's is {program.attributes['width']}."
        )
    demands = Demands.of(program)
    try:
        layout.check(demands.has_bias, demands.slots(layout), demands.head_dims)
    except OptionError as error:
        raise IRError(f"{error} Compile the model again.") from error


def _check_op(program: Program, layout: Layout, op: SimOp) -> None:
    """Raise `IRError` unless an op's operands are of its kinds, its tiles those of the layout, and its step, layer and
    slots there."""
    named, rest = _operand_kinds(type(op))
    for value, kind in zip(op.operands, chain(named, repeat(rest)), strict=False):
        op.expect(
            kind is None or value.type.is_weights == (kind == "Weights"), f"takes no {value.type} as {value.name}"
        )
    tiles = getattr(op, "tiles", None)
    planned = getattr(op.with_tiles(layout), "tiles", None)
    op.expect(tiles == planned, f"its tiles are {tiles}, and the layout gives {planned}")
    for one in op.attribute_fields():
        if one.name not in ("write", "softmax"):
            large = [number for number in _numbers(getattr(op, one.name)) if abs(number) > LARGEST]
            op.expect(not large, f"its {one.name} is out of range")
    op.expect(op.phase in PHASES, f"its phase is {op.phase!r}")
    op.expect(0 <= op.step <= program.attributes["n_steps"], f"its step is {op.step}")
    op.expect(-1 <= op.layer < max(1, program.attributes["n_layers"]), f"its layer is {op.layer}")
    op.expect(all(part for part in op.origin.split(".")) or not op.origin, f"its origin is {op.origin!r}")
    if isinstance(op, StoredWeights):
        op.expect(all(op.name.split(".")), f"its name is {op.name!r}")
    _check_slots(program, layout, op)


@cache
def _operand_kinds(kind: type[SimOp]) -> tuple[list[str | None], str | None]:
    """Return for each operand that an interpreter names whether it is ``Weights`` or a ``Tensor`` (None: either), and
    the same for all that follow."""
    named: list[str | None] = []
    rest = None
    for parameter in [*signature(kind.interpret).parameters.values()][2:]:
        word = str(parameter.annotation).partition(" ")[0]
        one = word if word in ("Weights", "Tensor") else None
        if parameter.kind is Parameter.VAR_POSITIONAL:
            rest = one
        else:
            named.append(one)
    return named, rest


def _check_slots(program: Program, layout: Layout, op: SimOp) -> None:
    """Raise `IRError` unless every token result has its slots in the table of saved embeddings."""
    wanted: list[tuple[int, int]] = []
    for result in op.results:
        tiles = 0
        if result.type.kind in ("tokens", "routed"):
            tiles = layout.tiles(result.type.width)
        if result.type.kind == "tokens":
            wanted.append((tiles, 1))
        elif result.type.kind == "routed":
            wanted.append((1, result.type.dims[0] * tiles))
    if not op.write and "memory_slots" not in program.attributes:
        return  # before slots are allocated
    op.expect(len(op.write) == len(wanted), f"it writes to {len(op.write)} places and has {len(wanted)} results")
    most = program.attributes.get("memory_slots", 0)
    for slots, (count, run) in zip(op.write, wanted, strict=True):
        inside = all(slot >= 0 and slot + run <= most for slot in slots)
        op.expect(len(set(slots)) == count == len(slots) and inside, f"its slots are {slots[:8]}")


def _numbers(value: Any) -> Iterator[int]:
    """Yield the whole numbers in an attribute; others are finite, and nothing is counted by them."""
    if isinstance(value, tuple):
        for one in cast(tuple[Any, ...], value):
            yield from _numbers(one)
    elif isinstance(value, int):
        yield value


def _product(shape: Iterable[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
