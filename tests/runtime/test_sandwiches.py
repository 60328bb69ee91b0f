"""Definitions D.4, D.5: the permutation sandwiches of the linear modules, for every feasible layout of some programs.

Run by the runtime's own split operations. fp64, exact where nothing is added, 1e-12 where it is.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from programs import gpt_like, llama_like
from torch import Tensor

from tintc.driver import lower_to_modules
from tintc.ir.layout import Layout
from tintc.ir.simulator.linear_backward import backward_block
from tintc.ir.simulator.linear_common import heads_to_rows, rows_to_heads
from tintc.ir.simulator.linear_descent import descent_block
from tintc.ir.simulator.linear_forward import forward_block
from tintc.ir.structure import AttentionSpec, Split, SplitStage, TensorSpec
from tintc.lowering.candidates import survey
from tintc.lowering.options import Options
from tintc.runtime.literal.split import build_split

PROGRAMS = {
    "13 wide, heads of 4": lambda: gpt_like(13, 3, 1, 11, 17),
    "18 wide, heads of 6": lambda: gpt_like(18, 3, 1, 11, 25),
    "14 wide, no biases": lambda: llama_like(14, 1, 1, 11, 15),
}
WIDEST = 500
"""D_sim of the widest layout that is tried; the matrices are D_sim by D_sim."""


@cache
def layouts(name: str) -> list[Layout]:
    options = Options()
    found = survey(lower_to_modules(PROGRAMS[name]()[0], options), options, 9)
    return [candidate.layout for candidate in found.feasible if candidate.layout.d_sim <= WIDEST]


def matrix(stages: Split, layout: Layout) -> Tensor:
    """``[D_sim, D_sim]``: the image of every coordinate, without biases (they are zero)."""
    module = build_split(stages)
    for operation, stage in zip(module.children(), stages or (), strict=True):
        operation.weight = torch.nn.Parameter(stage.weight.build())
        operation.bias = None
    with torch.no_grad():
        return module(torch.eye(layout.d_sim, dtype=torch.float64)).T


def attention(block: object) -> AttentionSpec:
    spec = getattr(block, "spec", None)
    assert isinstance(spec, AttentionSpec)
    return spec


def there(layout: Layout) -> Tensor:
    """By section 3: coordinate ``kS+s`` of a slot to column k of the heads (s, j)."""
    wanted = torch.zeros(layout.d_sim, layout.d_sim, dtype=torch.float64)
    for row in range(layout.pitch):
        k, s = divmod(row, layout.stack)
        for j in range(layout.shards):
            wanted[(s * layout.shards + j) * layout.d_h + k, row] = 1
    return wanted


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_layout(name: str) -> None:
    """dy to the heads in backward and descent; the heads' sums back to rows, the bias added, in forward."""
    assert len(layouts(name)) > 20
    for layout in layouts(name):
        wanted = there(layout)
        assert torch.equal(matrix(attention(backward_block(layout)).w_q, layout), wanted), layout
        assert torch.equal(matrix(attention(descent_block(layout, True, False)).w_k, layout), wanted), layout
        assert torch.equal(matrix(attention(forward_block(layout, False)).w_o, layout), wanted.T), layout
        if layout.n_heads >= layout.main_heads + layout.shards:
            first = layout.main_heads * layout.d_h
            biased = wanted.T.clone()
            biased[: layout.pitch, first : first + layout.pitch] += torch.eye(layout.pitch, dtype=torch.float64)
            assert torch.equal(matrix(attention(forward_block(layout, True)).w_o, layout), biased), layout


@pytest.mark.parametrize("name", PROGRAMS)
def test_three_stages_of_partial_permutations(name: str) -> None:
    """Dimension, split, dimension; the inner stage moves each entry of a chunk to one place, and none meet."""
    for layout in layouts(name):
        first, inner, last = attention(backward_block(layout)).w_q or ()
        assert (first.kind, inner.kind, last.kind) == ("dimension", "split", "dimension")
        assert first.weight.shape == last.weight.shape == (layout.d_h, layout.n_heads, layout.n_heads)
        assert inner.weight.shape == (layout.n_heads, layout.d_h, layout.d_h)
        moved = inner.weight.build()
        assert float(moved.sum(1).max()) == float(moved.sum(2).max()) == 1
        assert float(moved.sum()) == layout.pitch == len(rows_to_heads(layout)) == len(heads_to_rows(layout))


def two_stages_may_do(layout: Layout, wanted: Tensor, first: str) -> bool:
    """Whether a pair of operations, `first` first, is not ruled out for `wanted`: blocks of it must have rank 1.

    Entry ``(h', c'), (h, c)`` of dimension-wise, then split-wise is ``S_h'[c', c] D_c[h', h]``: for fixed h' and c a
    product of a function of c' and one of h. The other way round it is ``D_c'[h', h] S_h[c', c]``: for fixed c' and h.
    """
    shape = (layout.n_heads, layout.d_h, layout.n_heads, layout.d_h)
    order = (0, 3, 1, 2) if first == "dimension" else (1, 2, 0, 3)
    blocks = wanted.reshape(shape).permute(order)
    return int(torch.linalg.matrix_rank(blocks.flatten(0, 1)).max()) <= 1


def test_two_stages_fail() -> None:
    """The spec's example, S = 4 with width 16 (S' = 4, d_h = 4): no two stages bring dy to the heads. With one shard
    and one row nothing rules them out."""
    layout = Layout(16, 4, 4, 4, 20, 9)
    assert not two_stages_may_do(layout, there(layout), "dimension") and not two_stages_may_do(
        layout, there(layout), "split"
    )
    assert torch.equal(matrix(attention(backward_block(layout)).w_q, layout), there(layout))
    simple = Layout(16, 1, 1, 16, 3, 9)
    assert two_stages_may_do(simple, there(simple), "dimension")


def test_a_stage_is_the_definition() -> None:
    """Row h of split-wise is ``W_h E_h``, column c of dimension-wise is ``W_c E_:c``."""
    layout, generator = Layout(6, 1, 1, 6, 4, 9), torch.Generator().manual_seed(0)
    e = torch.randn(4, 6, dtype=torch.float64, generator=generator)
    for kind, shape in (("split", (4, 6, 6)), ("dimension", (6, 4, 4))):
        weight = torch.randn(*shape, dtype=torch.float64, generator=generator)
        stage = SplitStage(kind, 4, 6, TensorSpec(shape, lambda built=weight: built))
        rows = [weight[h] @ e[h] for h in range(4)] if kind == "split" else [weight[c] @ e[:, c] for c in range(6)]
        wanted = torch.stack(rows, 0 if kind == "split" else 1)
        found = (matrix((stage,), layout) @ e.flatten()).reshape(4, 6)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
