"""`allocate_slots`: two live values never share a slot, by a liveness check of its own."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from programs import gpt_like, llama_like

from tintc import stages
from tintc.ir import simulator as sim
from tintc.ir.core import Op, Parameter, Program, Value, tokens
from tintc.lowering.passes.allocate_slots import allocate_slots
from tintc.lowering.passes.plan_layout import layout_of
from tintc.options import Options


def check(program: Program) -> None:
    """Run the writes: at every read, the slots of a value still hold that value, and all of it."""
    layout, memory = layout_of(program), {}
    place: dict[Value, tuple[int, ...]] = {}
    for op in program.ops:
        assert isinstance(op, sim.SimOp)
        for operand in op.operands:
            if operand.type.kind == "tokens":
                assert [memory[slot] for slot in place[operand]] == [(operand, i) for i in range(len(place[operand]))]
        results = [result for result in op.results if result.type.kind == "tokens"]
        assert len(op.write) == len(results)
        for result, slots in zip(results, op.write, strict=True):
            assert len(slots) == len(set(slots)) == layout.tiles(result.type.width)
            place[result] = slots
            memory.update({slot: (result, i) for i, slot in enumerate(slots)})
    for value in program.outputs.values():
        if value.type.kind == "tokens":
            assert [memory[slot] for slot in place[value]] == [(value, i) for i in range(len(place[value]))]
    used = {slot for slots in place.values() for slot in slots}
    assert used == set(range(program.attributes["memory_slots"]))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    st.sampled_from(["gpt", "llama", "parallel"]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(5, 70),
    st.sampled_from(["exact", "paper-code"]),
)
def test_simulators(name: str, layers: int, steps: int, d_ff: int, semantics: str) -> None:
    make = gpt_like(layers=layers, d_ff=d_ff) if name == "gpt" else llama_like(
        layers=layers, d_ff=d_ff, parallel=name == "parallel"
    )  # fmt: skip
    check(stages.lower(make[0], Options(n_steps=steps, semantics=semantics), 24))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_random_programs(data: st.DataObject) -> None:
    """Sums of random earlier values of random widths, some never read, some read twice by one op."""
    width, count = 4, data.draw(st.integers(1, 14))
    attributes = {"layout": {"d_aux": width, "stack": 1, "shards": 1, "d_h": width, "n_heads": 9, "max_length": 8}}
    ops: list[Op] = []
    for index in range(count):
        size = data.draw(st.sampled_from([3, 4, 9]))
        made = Value(f"v{index}", tokens(size))
        same = [op.results[0] for op in ops if op.results[0].type.width == size]
        if same and data.draw(st.booleans()):
            a, b = data.draw(st.sampled_from(same)), data.draw(st.sampled_from(same))
            ops.append(sim.Add(operands=(a, b), results=(made,)))
        else:
            ops.append(sim.Embedding(results=(made,), table=f"t{size}"))
    kept = data.draw(st.lists(st.sampled_from(ops), max_size=3, unique=True))
    outputs = {f"o{i}": op.results[0] for i, op in enumerate(kept)}
    parameters = {f"t{size}": Parameter(f"t{size}", (9, size)) for size in (3, 4, 9)}
    check(allocate_slots(Program("sim", attributes, parameters, ops, outputs)))


def test_memory_does_not_grow_with_steps() -> None:
    """Everything of a step is dead after it, but what lies below the updated layers."""
    program, _ = gpt_like(layers=2)
    sizes = [stages.lower(program, Options(n_steps=n), 24).attributes["memory_slots"] for n in (1, 2, 4)]
    assert sizes[0] == sizes[1] == sizes[2]
