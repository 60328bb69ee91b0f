"""`aux.select` and `aux.constant` with their modules: three executions agree, to 1e-9 of the update in fp64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from programs import Sketch, check_agreement, simulator, three_ways

from tintc.ir import auxiliary as aux
from tintc.ir.auxiliary.interpreter import Descent
from tintc.ir.columns import Runs, compose, fits, folded, put_back, runs_of, take, unfolded, width_of
from tintc.ir.core import Type, Value
from tintc.ir.simulator.ops.select import Select as SimSelect
from tintc.lowering.passes.fold_concats import within


@pytest.mark.parametrize("width, layout", [(12, {}), (15, {}), (12, {"stack": 3, "shards": 2})])
def test_columns_repeated_dropped_and_moved(width: int, layout: dict[str, int]) -> None:
    """A wide value's columns, some twice, across tiles; a value of another width put together of it and zeros."""
    make = Sketch(width)
    x = make.embedding("wte", 11)
    make.layer = 0
    x = make.sum("mid", x, make.attention("attn", make.norm("ln1", x), 3, 3))
    wide = make.linear("up", make.norm("ln2", x), 2 * width + 3, "ffn")
    columns = ((width, 2 * width + 3), (2, 5, 2), (-2, 0, 2), (0, 7))
    moved = make.add(aux.Select, "moved", width + 20, wide, columns=columns)
    x = make.sum("out", x, make.linear("down", moved, width, "ffn"))
    make.layer = -1
    program, tensors = make.finish(make.norm("lnf", x, "final"), 11, 1)
    ids = torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(0))
    sim = simulator(program, tensors, n_steps=2, inner_lr=1e-3, **layout)
    check_agreement(three_ways(sim, program, tensors, ids, Descent(1e-3, 2)))


def test_the_same_vector_at_every_token() -> None:
    make = Sketch(12)
    table = make.parameter("start", 1, 12)
    x = make.sum("begin", make.embedding("wte", 11), make.add(aux.Constant, "start", 12, table=table))
    make.layer = 0
    x = make.sum("mid", x, make.attention("attn", make.norm("ln1", x), 3, 3))
    make.layer = -1
    program, tensors = make.finish(make.norm("lnf", x, "final"), 11, 1)
    ids = torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(0))
    sim = simulator(program, tensors, n_steps=2, inner_lr=1e-3)
    check_agreement(three_ways(sim, program, tensors, ids, Descent(1e-3, 2)))


def columns_of(runs: Runs) -> list[int]:
    """Return the columns one by one, zeros as -1."""
    counted = [(*run, 1, 1)[: max(4, len(run))] for run in runs]
    return [
        max(column, -1)
        for start, stop, times, each in counted
        for column in [number for number in range(start, stop) for _ in range(each)] * times
    ]


WIDTH = 9
NUMBERS = st.lists(st.integers(0, WIDTH - 1), min_size=1, max_size=30)
REPEATED = st.lists(st.tuples(st.integers(0, WIDTH - 1), st.integers(1, 5)), min_size=1, max_size=6).map(
    lambda pairs: [number for number, times in pairs for _ in range(times)]
)
COLUMNS = st.one_of(NUMBERS, REPEATED)


@st.composite
def runs_with_zeros(draw: st.DrawFn) -> Runs:
    """Draw runs, repeated or not, of columns and of zeros."""
    runs: list[tuple[int, ...]] = []
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(-3, WIDTH - 1))
        stop = 0
        if start >= 0:
            stop = draw(st.integers(start + 1, WIDTH))
        times = draw(st.integers(1, 4))
        each = draw(st.integers(1, 3))
        length = 2 + (times > 1)
        if each > 1 and start >= 0:
            length = 4
        runs.append((start, stop, times, each)[:length])
    return tuple(runs)


@given(COLUMNS)
def test_runs_are_their_columns(columns: list[int]) -> None:
    runs = runs_of(columns)
    assert columns_of(runs) == columns and columns_of(unfolded(runs)) == columns and folded(unfolded(runs)) == runs
    assert fits(runs, WIDTH, len(columns)) and not fits(runs, WIDTH, len(columns) + 1)
    assert not fits(runs, max(columns), len(columns))
    x = torch.arange(float(WIDTH))
    assert take(x, runs).tolist() == columns


@given(runs_with_zeros())
def test_putting_back_is_the_transpose(columns: Runs) -> None:
    """<take(x), y> = <x, put_back(y)>, in fp64; taking is a sum with the places of the simulator's op."""
    generator = torch.Generator().manual_seed(0)
    width = len(columns_of(columns))
    x = torch.randn(2, WIDTH, generator=generator, dtype=torch.float64)
    y = torch.randn(2, width, generator=generator, dtype=torch.float64)
    assert fits(columns, WIDTH, width)
    assert torch.allclose((take(x, columns) * y).sum(), (x * put_back(y, columns, WIDTH)).sum(), rtol=1e-12, atol=1e-12)
    kind = Type("tokens", (width,))
    op = SimSelect(operands=(Value("x", Type("tokens", (WIDTH,))),), results=(Value("y", kind),), columns=columns)
    placed = torch.zeros_like(y)
    for to, source in op.ones():
        placed[:, to] += x[:, source]
    assert torch.equal(placed, take(x, columns))


@given(runs_with_zeros(), st.data())
def test_composed_runs_take_what_both_take(outer: Runs, data: st.DataObject) -> None:
    """take(take(x, outer), inner) = take(x, compose(outer, inner))."""
    width = len(columns_of(outer))
    inner = runs_of(data.draw(st.lists(st.integers(0, width - 1), min_size=1, max_size=20)))
    x = torch.arange(1.0, WIDTH + 1)
    both = compose(outer, inner)
    assert torch.equal(take(x, both), take(take(x, outer), inner)) and width_of(both) == width_of(inner)


@given(runs_with_zeros(), st.integers(0, WIDTH - 1), st.integers(1, WIDTH))
def test_columns_within_bounds(columns: Runs, first: int, count: int) -> None:
    """What lies outside of the bounds is zero, and every column stays in its place."""
    last = min(first + count, WIDTH)
    x = torch.arange(1.0, WIDTH + 1)
    inside = (x > first) & (x <= last)
    assert torch.equal(take(x[first:last], within(columns, first, last)), take(x * inside, columns))


def test_one_column_many_times_is_one_run() -> None:
    assert runs_of([4] * 1000) == ((4, 5, 1000),) and len(str(runs_of([0, 1] * 1000))) < 20
    assert runs_of([number // 16 for number in range(1600)]) == ((0, 100, 1, 16),)
    for wrong in (
        ((0, 1, 1), (0, 2)),
        ((0, 3, 0),),
        ((0, 3, -1),),
        ((0, 1, 3, 1),),
        ((0, 3, 0, 2),),
        ((-1, 0, 1, 2), (0, 1)),
        ((0,),),
    ):
        assert not fits(wrong, WIDTH, 3)
