"""`allocate_slots`: give every token value memory slots (construction.md, section 2.6).

Slots are rows of the table of saved embeddings outside D_sim. A linear scan over live ranges: a value needs one slot
per tile, from the op that makes it to the last op that reads it; two live values never share a slot, and a slot is free
again before the results of the last reader are placed. Outputs stay live to the end. Nothing is read in the op that is
writing: literal forms read all operands first. A routed value needs slots for every expert; they follow each other, so
that the first says all, and a program's text does not grow with the number of experts.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import replace

from tintc.ir import simulator as sim
from tintc.ir.core import Op, Program, Value
from tintc.ir.liveness import last_reads
from tintc.lowering.passes.plan_layout import layout_of


def allocate_slots(program: Program) -> Program:
    """Return the program with `write` on every op that makes token values, and the attribute ``memory_slots``."""
    program.verify()
    layout = layout_of(program)
    last = last_reads(program.ops, program.outputs.values())
    free: list[int] = []
    held: dict[Value, tuple[int, ...]] = {}
    count = 0
    ops: list[Op] = []
    for op in program.ops:
        # Operands that die here free their slots for the results: literal forms read before they write.
        _release(free, held, (value for value in last[op] if value not in op.results))
        write = []
        for result in op.results:
            if result.type.kind not in ("tokens", "routed"):
                continue
            tiles = layout.tiles(result.type.width)
            if result.type.kind == "routed":
                first, count = _take_run(free, result.type.dims[0] * tiles, count)
                held[result] = tuple(range(first, first + result.type.dims[0] * tiles))
                write.append((first,))
                continue
            slots = []
            for _ in range(tiles):
                if not free:
                    heapq.heappush(free, count)
                    count += 1
                slots.append(heapq.heappop(free))
            held[result] = tuple(slots)
            write.append(held[result])
        # What is left of these are results that nobody reads.
        _release(free, held, last[op])
        assert isinstance(op, sim.SimOp)
        ops.append(replace(op, write=tuple(write)))
    return replace(program, ops=ops, attributes=program.attributes | {"memory_slots": count}).verify()


def _take_run(free: list[int], wanted: int, count: int) -> tuple[int, int]:
    """Return the first of so many free slots in a row, which are free no more, and how many slots there are then."""
    slots = sorted(free)
    run: list[int] = []
    for slot in slots:
        if run and slot != run[-1] + 1:
            run = []
        run.append(slot)
        if len(run) == wanted:
            break
    if len(run) < wanted and (not run or run[-1] + 1 != count):
        run = []
    first = count
    if run:
        first = run[0]
    end = first + wanted
    free[:] = [slot for slot in slots if not first <= slot < end]
    return first, max(count, end)


def _release(free: list[int], held: dict[Value, tuple[int, ...]], values: Iterable[Value]) -> None:
    """Give back the slots of those values that hold any."""
    for value in values:
        for slot in held.pop(value, ()):
            heapq.heappush(free, slot)
