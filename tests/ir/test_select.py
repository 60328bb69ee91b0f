"""`aux.select` and `aux.constant` with their modules: three executions agree, to 1e-9 of the update in fp64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from programs import Sketch, check_agreement, simulator, three_ways

from tintc.ir import auxiliary as aux
from tintc.ir.auxiliary.interpreter import Descent
from tintc.ir.columns import put_back, take


@pytest.mark.parametrize("width, layout", [(12, {}), (15, {}), (12, {"stack": 3, "shards": 2})])
def test_columns_repeated_dropped_and_moved(width: int, layout: dict[str, int]) -> None:
    """A wide value's columns, some twice, across tiles; a value of another width put together of it and zeros."""
    make = Sketch(width)
    x = make.embedding("wte", 11)
    make.layer = 0
    x = make.sum("mid", x, make.attention("attn", make.norm("ln1", x), 3, 3))
    wide = make.linear("up", make.norm("ln2", x), 2 * width + 3, "ffn")
    columns = ((width, 2 * width + 3), (2, 5), (2, 5), (-4, 0), (0, 7))
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


@given(st.lists(st.integers(-3, 8), min_size=1, max_size=12))
def test_putting_back_is_the_transpose(starts: list[int]) -> None:
    """<take(x), y> = <x, put_back(y)>, in fp64."""
    columns = tuple((start, 0) if start < 0 else (start, min(start + 2, 9)) for start in starts)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    y = torch.randn(2, sum(b - a for a, b in columns), generator=generator, dtype=torch.float64)
    assert torch.allclose((take(x, columns) * y).sum(), (x * put_back(y, columns, 9)).sum(), rtol=1e-12, atol=1e-12)
