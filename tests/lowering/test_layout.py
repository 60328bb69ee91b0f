"""Section 3's conditions: layouts that are chosen hold them, and wishes that do not are refused by name."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import gpt_like, llama_like

from tintc import stages
from tintc.errors import OptionError
from tintc.ir import simulator as sim
from tintc.ir.core import Program
from tintc.ir.layout import Layout
from tintc.lowering.passes.differentiate import differentiate
from tintc.lowering.passes.plan_layout import layout_of, plan_layout
from tintc.lowering.passes.unroll_steps import unroll_steps
from tintc.options import Options


@pytest.mark.parametrize(
    ("layout", "bias", "slots", "heads", "why"),
    [
        (Layout(13, 2, 2, 6, 6, 8), True, 1, set(), "S' * d_h = 12 must be at least the width 13"),
        (Layout(12, 5, 2, 6, 12, 8), True, 1, set(), "S = 5 must divide the slot width S' * d_h = 12"),
        (Layout(12, 1, 2, 6, 6, 8), True, 1, set(), "d_h = 6 must be at least K = 12"),
        (Layout(12, 2, 2, 6, 5, 8), True, 1, set(), "H_sim = 5 must be at least S * S' + n_b = 4 + 2"),
        (Layout(12, 2, 2, 6, 3, 8), False, 1, set(), "H_sim = 3 must be at least S * S' + n_b = 4 + 0"),
        (Layout(12, 2, 2, 6, 6, 8), True, 4, set(), "4 slots of width 12 must fit into D_sim = 36"),
        (Layout(12, 2, 2, 6, 6, 8), True, 1, {5}, "the heads' width (5) must divide the slot width S' * d_h = 12"),
        (Layout(12, 2, 2, 6, 7, 8), True, 1, {4, 3}, "the heads' width (3, 4) must divide D_sim = 42"),
    ],
)
def test_the_condition_that_fails_is_named(layout: Layout, bias: bool, slots: int, heads: set[int], why: str) -> None:
    with pytest.raises(OptionError) as caught:
        layout.check(bias, slots, heads)
    assert why in str(caught.value) and f"S = {layout.stack}, S' = {layout.shards} is not a feasible" in str(
        caught.value
    )


def test_a_bias_needs_heads_and_none_needs_none() -> None:
    layout = Layout(12, 2, 2, 6, 4, 8)
    assert layout.check(False, 2, {2, 3}) is layout
    with pytest.raises(OptionError, match="n_b"):
        layout.check(True, 2, {2, 3})


def planned(width: int, heads: int, d_ff: int, llama: bool, /, **options: object) -> Program:
    make = llama_like if llama else gpt_like
    program, _ = make(width=width, heads=heads, d_ff=d_ff, layers=1)
    chosen = Options(**options)  # pyright: ignore[reportArgumentType]
    return plan_layout(unroll_steps(differentiate(program, chosen)), chosen, 24)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(1, 7),
    st.integers(1, 8),
    st.integers(3, 90),
    st.booleans(),
    st.sampled_from(["exact", "paper-code"]),
    st.none() | st.integers(1, 6),
    st.none() | st.integers(1, 6),
)
def test_layouts_that_are_chosen_hold_every_condition(
    heads: int, head_dim: int, d_ff: int, llama: bool, semantics: str, stack: int | None, shards: int | None
) -> None:
    head_dim += head_dim % 2 if llama else 0
    width = heads * head_dim
    try:
        program = planned(width, heads, d_ff, llama, semantics=semantics, stack=stack, shards=shards)
    except OptionError as error:
        assert stack or shards, error
        return
    layout = layout_of(program)
    s, sp = layout.stack, layout.shards
    assert (stack is None or s == stack) and (shards is None or sp == shards)
    biases = -(-layout.pitch // layout.d_h) if not llama else 0
    assert layout.pitch == sp * layout.d_h >= width and layout.pitch == s * layout.n_prefixes
    assert layout.d_h >= layout.n_prefixes and layout.n_heads >= s * sp + biases
    assert layout.pitch % head_dim == layout.d_sim % head_dim == 0 and layout.d_sim == layout.n_heads * layout.d_h
    assert semantics == "exact" or layout.pitch == width
    for op in program.ops:
        if isinstance(op, sim.SimOp):
            assert op.slots(layout) * layout.pitch <= layout.d_sim
        if isinstance(op, sim.StoredWeights):
            dims = op.result.type.dims
            assert op.tiles == tuple(-(-size // layout.pitch) for size in (dims[0], dims[-1]))


def test_every_width_has_a_layout() -> None:
    """d_h = D, S = S' = 1 works for every D, primes included."""
    for width in (1, 2, 7, 31, 97):
        layout_of(planned(width, 1, 2 * width + 1, False))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"stack": 1, "shards": 2}, "d_h = 6 must be at least K = 12"),
        ({"stack": 0}, "stack is 0"),
        ({"heads": 0}, "heads is 0"),
        ({"head_width": 11, "shards": 1}, "S' * d_h = 11 must be at least the width 12"),
        ({"head_width": 6, "stack": 5, "shards": 2}, "S = 5 must divide the slot width S' * d_h = 12"),
        ({"head_width": 13, "shards": 1}, "the heads' width (4) must divide the slot width"),
        ({"stack": 3, "shards": 2, "heads": 7}, "H_sim = 7 must be at least S * S' + n_b = 6 + 2"),
        ({"stack": 1, "shards": 1, "heads": 2}, "3 slots of width 12 must fit into D_sim = 24"),
        ({"stack": 2, "shards": 2, "head_width": 6, "heads": 7}, "the heads' width (4) must divide D_sim = 42"),
        ({"shards": 5, "semantics": "paper-code"}, "S' = 5 does not divide the width 12"),
    ],
)
def test_wishes_that_cannot_be_had(options: dict[str, object], why: str) -> None:
    with pytest.raises(OptionError) as caught:
        planned(12, 3, 20, False, **options)
    assert why in str(caught.value)


def test_wishes_that_can_be_had() -> None:
    """More heads and wider chunks than needed; d_h need not be a multiple of the heads' width 4."""
    layout = layout_of(planned(12, 3, 20, False, stack=2, shards=2, head_width=10, heads=12))
    assert (layout.d_h, layout.n_heads, layout.pitch, layout.n_prefixes) == (10, 12, 20, 10)
    layout = layout_of(planned(12, 3, 20, False, stack=2, shards=2))
    assert (layout.d_h, layout.n_heads, layout.d_sim) == (6, 6, 36)


def test_the_whole_way_refuses_too() -> None:
    program, _ = gpt_like()
    with pytest.raises(OptionError, match="not a feasible layout"):
        stages.lower(program, Options(stack=1, shards=3), 24)
    with pytest.raises(OptionError, match="Cannot update 3 layers: the model has 2"):
        stages.lower(program, Options(n_update_layers=3), 24)
