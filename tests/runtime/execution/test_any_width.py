"""Widths, heads and feed-forwards that do not divide: literal execution = simulator interpreter = auxiliary's.

Random decoders made by hand, S and S' given or chosen. fp64, 1e-9 of the size of the update.
"""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from programs import check_agreement, gpt_like, llama_like, simulator, three_ways

from tintc.errors import OptionError
from tintc.ir.auxiliary.interpreter import Descent
from tintc.ir.functions import FiniteDifference
from tintc.options import Options

CONDITIONS = re.compile(
    r"must be at least the width|must divide the slot width|must be at least K|must be at least S \* S'|"
    r"must fit into D_sim|must divide D_sim|does not divide the width"
)


def agree(llama: bool, width: int, heads: int, d_ff: int, semantics: str, stack: int | None, shards: int | None) -> str:
    """Compare the three; returns the layout, or the refusal."""
    make = llama_like if llama else gpt_like
    program, tensors = make(width, heads, 1, 11, d_ff, seed=width + d_ff)
    options = Options(semantics=semantics, stack=stack, shards=shards, inner_lr=1e-2)
    try:
        sim = simulator(program, tensors, 9, semantics=semantics, stack=stack, shards=shards, inner_lr=1e-2)
    except OptionError as error:
        return str(error)
    ids = torch.randint(0, 11, (2, 7), generator=torch.Generator().manual_seed(0))
    descent = Descent(1e-2, semantics=semantics, difference=FiniteDifference(options.scheme, options.fd_step or 0.0))
    check_agreement(three_ways(sim, program, tensors, ids, descent))
    return repr(sim.layout)


@settings(max_examples=16, deadline=None, derandomize=True)
@given(
    st.booleans(),
    st.integers(1, 3),
    st.sampled_from([2, 3, 4, 5, 7]),
    st.integers(0, 2),
    st.sampled_from([2, 3, 7, 11, 17, 23, 29]),
    st.sampled_from(["exact", "exact", "paper-code"]),
    st.none() | st.integers(1, 5),
    st.none() | st.integers(1, 4),
)
def test_widths_that_do_not_divide(
    llama: bool,
    heads: int,
    head_dim: int,
    rest: int,
    d_ff: int,
    semantics: str,
    stack: int | None,
    shards: int | None,
) -> None:
    """The width is the heads' together and a rest; where S and S' are not given, there is always a layout."""
    head_dim += head_dim % 2 if llama else 0
    width = heads * head_dim + rest % heads
    found = agree(llama, width, heads, d_ff, semantics, stack, shards)
    event("runs" if found.startswith("Layout(") else "refused")
    if not found.startswith("Layout("):
        assert stack or shards or semantics == "paper-code"
        assert CONDITIONS.search(found) and "is not a feasible layout" in found


@pytest.mark.parametrize(
    ("width", "heads", "d_ff", "stack", "shards"),
    [
        (13, 3, 17, None, None),
        (13, 3, 17, 5, 2),
        (31, 1, 67, None, None),
        (12, 3, 28, 7, 3),
        (18, 3, 20, 3, 2),
    ],
)
@pytest.mark.parametrize("llama", [False, True])
def test_shapes(width: int, heads: int, d_ff: int, stack: int | None, shards: int | None, llama: bool) -> None:
    """Prime widths; heads that do not fill the width; chunks of 9 with heads of 6; S that divides nothing."""
    if llama and width // heads % 2:
        heads = 1 if width % 2 == 0 else heads
        width += width % 2
    assert agree(llama, width, heads, d_ff, "exact", stack, shards).startswith("Layout(")
