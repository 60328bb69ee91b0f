"""`allocate_slots`: give every token value memory slots (construction.md, section 2.6).

Slots are rows of the table of saved embeddings outside D_sim. A linear scan over live ranges: a value needs one slot
per tile, from the op that makes it to the last op that reads it; two live values never share a slot, and a slot is free
again before the results of the last reader are placed. Outputs stay live to the end. Nothing is read in the op that is
writing: literal forms read all operands first.
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
            if result.type.kind != "tokens":
                continue
            slots = []
            for _ in range(layout.tiles(result.type.width)):
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


def _release(free: list[int], held: dict[Value, tuple[int, ...]], values: Iterable[Value]) -> None:
    """Give back the slots of those values that hold any."""
    for value in values:
        for slot in held.pop(value, ()):
            heapq.heappush(free, slot)
