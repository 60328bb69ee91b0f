"""Definitions D.4, D.5: the permutation sandwiches of the linear modules, for every feasible layout of some programs.

Run by the runtime's own split operations on random embeddings: what moves every coordinate of one to its place moves
those of all. fp64, exact where nothing is added, 1e-12 where it is.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from programs import gpt_like, llama_like
from torch import Tensor

from tintc.ir.block_specs import AttentionSpec, Split, SplitStage, TensorSpec
from tintc.ir.layout import Layout
from tintc.ir.simulator.ops.linear_backward import backward_block
from tintc.ir.simulator.ops.linear_descent import descent_block
from tintc.ir.simulator.ops.linear_forward import forward_block
from tintc.ir.simulator.shared.linear_common import heads_to_rows, rows_to_heads
from tintc.lowering.passes.layout_candidates import survey
from tintc.options import Options
from tintc.runtime.execution.literal.split import build_split
from tintc.stages import lower_to_modules

PROGRAMS = {
    "13 wide, heads of 4": lambda: gpt_like(13, 3, 1, 11, 17),
    "18 wide, heads of 6": lambda: gpt_like(18, 3, 1, 11, 25),
    "14 wide, no biases": lambda: llama_like(14, 1, 1, 11, 15),
}
LARGE = 150_000
"""Values of one operation's weights from which on layouts are left to the slow tests."""


@cache
def layouts(name: str, fewest: int = 0, most: int = LARGE) -> list[Layout]:
    """The feasible layouts whose operations have so many values, `most` excluded."""
    options = Options()
    found = survey(lower_to_modules(PROGRAMS[name]()[0], options), options, 9).feasible
    sizes = {one.layout: one.layout.d_sim * max(one.layout.n_heads, one.layout.d_h) for one in found}
    return [layout for layout, size in sizes.items() if fewest <= size < most]


def split(stages: Split) -> torch.nn.Module:
    """The runtime's module, with the stages' weights and without biases (they are zero)."""
    module = build_split(stages)
    for operation, stage in zip(module.children(), stages or (), strict=True):
        operation.weight = torch.nn.Parameter(stage.weight.build(), requires_grad=False)
        operation.register_parameter("bias", None)
    return module


def matrix(stages: Split, layout: Layout) -> Tensor:
    """``[D_sim, D_sim]``: the image of every coordinate."""
    return split(stages)(torch.eye(layout.d_sim, dtype=torch.float64)).T


def attention(block: object) -> AttentionSpec:
    spec = getattr(block, "spec", None)
    assert isinstance(spec, AttentionSpec)
    return spec


def places(layout: Layout) -> tuple[Tensor, Tensor]:
    """Return every coordinate ``kS+s`` of a slot, and where it is to go, column k of the heads (s, j).

    See construction.md, section 3.2.
    """
    row, j = (
        part.flatten()
        for part in torch.meshgrid(torch.arange(layout.pitch), torch.arange(layout.shards), indexing="ij")
    )
    k, s = row // layout.stack, row % layout.stack
    return row, (s * layout.shards + j) * layout.d_h + k


def there(layout: Layout) -> Tensor:
    """`places` as a matrix ``[D_sim, D_sim]``."""
    wanted = torch.zeros(layout.d_sim, layout.d_sim, dtype=torch.float64)
    row, column = places(layout)
    wanted[column, row] = 1
    return wanted


def check_layout(layout: Layout) -> None:
    """dy to the heads in backward and descent; the heads' sums back to rows, the bias added, in forward."""
    e = torch.randn(2, layout.d_sim, dtype=torch.float64, generator=torch.Generator().manual_seed(layout.d_sim))
    rows, columns = places(layout)
    heads, sums = torch.zeros_like(e), torch.zeros_like(e)
    heads[:, columns] = e[:, rows]
    sums.index_add_(1, rows, e[:, columns])
    assert torch.equal(split(attention(backward_block(layout)).w_q)(e), heads), layout
    assert torch.equal(split(attention(descent_block(layout, True, False)).w_k)(e), heads), layout
    exact: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(split(attention(forward_block(layout, False)).w_o)(e), sums, **exact)
    if layout.n_heads >= layout.main_heads + layout.shards:
        first = layout.main_heads * layout.d_h
        sums[:, : layout.pitch] += e[:, first : first + layout.pitch]
        torch.testing.assert_close(split(attention(forward_block(layout, True)).w_o)(e), sums, **exact)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_layout(name: str) -> None:
    """All but the widest, which the slow test below has."""
    assert len(layouts(name)) > 70
    for layout in layouts(name):
        check_layout(layout)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_widest_layouts(name: str) -> None:
    """All that there are, up to D_sim = 40950."""
    assert layouts(name, LARGE, 10**9)
    for layout in layouts(name, LARGE, 10**9):
        check_layout(layout)


@pytest.mark.slow
def test_layouts_of_a_real_width() -> None:
    """576 wide, 9 heads of 64, feed-forward of 1536: SmolLM2's."""
    found = survey(lower_to_modules(gpt_like(576, 9, 1, 11, 1536)[0], Options()), Options(), 9).feasible
    narrow = [one.layout for one in found if one.layout.d_sim <= 6000]
    assert len(narrow) > 30
    for layout in narrow:
        check_layout(layout)


@pytest.mark.parametrize("name", PROGRAMS)
def test_three_stages_of_partial_permutations(name: str) -> None:
    """Dimension, split, dimension; the inner stage moves each entry of a chunk to one place, and none meet."""
    for layout in layouts(name):
        stages = attention(backward_block(layout)).w_q
        assert stages is not None
        first, inner, last = stages
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
    """S = 4 with width 16 (S' = 4, d_h = 4; construction.md, section 2.2): no two stages bring dy to the heads. With
    one shard and one row nothing rules them out."""
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
