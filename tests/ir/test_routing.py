"""Routes of split operations against a dense gather; edge colourings are proper and use as few colours as possible."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tintc.ir.block_specs import SplitStage
from tintc.ir.layout import Layout
from tintc.ir.routing import Move, colour, route
from tintc.ir.simulator.shared.linear_common import heads_to_rows, rows_to_heads

QUICK = settings(max_examples=60, deadline=None, derandomize=True)


@QUICK
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=60))
def test_colouring_is_proper_and_tight(edges: list[tuple[int, int]]) -> None:
    colours = colour(edges)
    assert len({(a, c) for (a, _), c in zip(edges, colours, strict=True)}) == len(edges)
    assert len({(b, c) for (_, b), c in zip(edges, colours, strict=True)}) == len(edges)
    degree = max([0, *Counter(a for a, _ in edges).values(), *Counter(b for _, b in edges).values()])
    assert len(set(colours)) <= degree and all(0 <= c < degree for c in colours)


def run(stages: tuple[SplitStage, ...], e: Tensor) -> Tensor:
    """The stages as dense matrices, by Defs. D.4 and D.5: chunk h, column c is coordinate ``h * width + c``."""
    for stage in stages:
        weight, h, w = stage.weight.build(), stage.n_heads, stage.width
        dense = torch.zeros(h, w, h, w, dtype=torch.float64)
        for i in range(h if stage.kind == "split" else w):
            if stage.kind == "split":
                dense[i, :, i, :] = weight[i]
            else:
                dense[:, i, :, i] = weight[i]
        e = e @ dense.reshape(h * w, h * w).T
    return e


def gathered(n_heads: int, width: int, moves: list[Move], e: Tensor, keep: Sequence[tuple[int, int]] = ()) -> Tensor:
    """What the moves say."""
    chunks, out = e.unflatten(-1, (n_heads, width)), torch.zeros(e.shape[0], n_heads, width, dtype=e.dtype)
    for move in moves:
        for target in move.targets:
            out[:, target, move.to] += chunks[:, list(move.sources), move.column].sum(1)
    for source, target in keep:
        out[:, target] += chunks[:, source]
    return out.flatten(1)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Layouts that hold the conditions of construction.md, section 3.1, sizes that do not divide included."""
    stack, shards = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    d_h = draw(st.integers(1, 13).filter(lambda d: shards * d % stack == 0 and d >= shards * d // stack))
    pitch = shards * d_h
    heads = stack * shards + draw(st.integers(1, 2)) * shards + draw(st.integers(0, 3))
    return Layout(draw(st.integers(max(1, pitch - d_h + 1), pitch)), stack, shards, d_h, heads, 8)


@QUICK
@given(layouts(), st.booleans())
def test_linear_routes_bring_rows_to_heads_and_back(layout: Layout, bias: bool) -> None:
    """fp64, exact: dy's coordinate kS+s reaches column k of heads (s, j); the way back adds over j. Exact to 1e-12."""
    n, w = layout.n_heads, layout.d_h
    e = torch.randn(3, layout.d_sim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    there = run(route(n, w, rows_to_heads(layout)), e)
    assert torch.equal(there, gathered(n, w, rows_to_heads(layout), e))
    for row in range(layout.pitch):
        k, s = divmod(row, layout.stack)
        for j in range(layout.shards):
            assert torch.equal(there.unflatten(1, (n, w))[:, s * layout.shards + j, k], e[:, row])
    keep = [(layout.main_heads + b, b) for b in range(layout.shards)] if bias else []
    back = run(route(n, w, heads_to_rows(layout), keep), e)
    torch.testing.assert_close(back, gathered(n, w, heads_to_rows(layout), e, keep), rtol=1e-12, atol=1e-12)


@QUICK
@given(st.integers(1, 6), st.integers(1, 6), st.randoms(use_true_random=False))
def test_any_permutation_of_coordinates(n_heads: int, width: int, random: object) -> None:
    """fp64, exact: three stages carry out every permutation."""
    places = [(h, c) for h in range(n_heads) for c in range(width)]
    shuffled = places[:]
    random.shuffle(shuffled)  # pyright: ignore[reportAttributeAccessIssue]
    moves = [Move((h,), c, (to,), column) for (h, c), (to, column) in zip(places, shuffled, strict=True)]
    e = torch.arange(2.0 * n_heads * width, dtype=torch.float64).reshape(2, -1)
    assert torch.equal(run(route(n_heads, width, moves), e), gathered(n_heads, width, moves, e))


def test_what_no_move_names_becomes_zero() -> None:
    e = torch.ones(1, 12, dtype=torch.float64)
    out = run(route(4, 3, [Move((0, 2), 1, (3,), 0)]), e).reshape(4, 3)
    assert float(out[3, 0]) == 2 and float(out.sum()) == 2
