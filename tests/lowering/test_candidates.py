"""Candidates over S and S': construction.md, section 3.1 holds for the feasible, and the cheapest is taken."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import gpt_like, llama_like

from tintc.analysis.parameter_counts import block_count
from tintc.ir.core import Program
from tintc.ir.layout import Layout
from tintc.ir.simulator.ops.linear_forward import forward_block
from tintc.ir.structure import block_tensors
from tintc.lowering.passes.differentiate import differentiate
from tintc.lowering.passes.eliminate_common import eliminate_common
from tintc.lowering.passes.layout_candidates import MOST, READ, Demands, Survey, module_parameters, module_work, survey
from tintc.lowering.passes.unroll_steps import unroll_steps
from tintc.options import Options

PRIMES = st.sampled_from([2, 3, 5, 7, 11, 13, 17, 19, 23])


def surveyed(program: Program, length: int = 24, **options: object) -> Survey:
    chosen = Options(**options)  # pyright: ignore[reportArgumentType]
    return survey(lowered(program, chosen), chosen, length)


def lowered(program: Program, options: Options) -> Program:
    return eliminate_common(unroll_steps(differentiate(program, options)))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(PRIMES, st.integers(1, 3), PRIMES, st.booleans(), st.sampled_from(["exact", "paper-code"]))
def test_section_3(width: int, heads: int, d_ff: int, llama: bool, semantics: str) -> None:
    """The conditions, written out, hold in every feasible candidate and one of them fails in every other."""
    heads, head_dim = (1, width) if width < 2 * heads else (heads, width // heads)
    make = llama_like if llama and head_dim % 2 == 0 else gpt_like
    has_bias = make is gpt_like
    found = surveyed(make(width, heads, 1, 11, d_ff)[0], semantics=semantics)
    assert len(found.tried) == MOST**2
    for candidate in found.tried:
        layout = candidate.layout
        pitch, k = layout.shards * layout.d_h, -(-layout.shards * layout.d_h // layout.stack)
        n_b = -(-pitch // layout.d_h) if has_bias else 0
        holds = [
            pitch >= width,
            pitch % layout.stack == 0,
            layout.d_h >= k,
            layout.n_heads >= layout.stack * layout.shards + n_b,
            layout.n_heads * layout.d_h >= max(op.slots(layout) for op in candidate.demands.ops) * pitch,
            pitch % head_dim == 0 and layout.n_heads * layout.d_h % head_dim == 0,
            semantics == "exact" or pitch == width,
        ]
        assert len(candidate.broken) == holds.count(False), candidate
        assert layout.n_prefixes == k or candidate.broken


@pytest.mark.parametrize("shape", [(576, 9, 1536), (60, 3, 140), (97, 1, 101), (640, 10, 1729)])
def test_the_cheapest_is_taken_and_pads_as_little_as_it_can(shape: tuple[int, int, int]) -> None:
    width, heads, d_ff = shape
    program, _ = gpt_like(width, heads, 1, 11, d_ff)
    found = surveyed(program, 128)
    assert found.chosen.cost == min(candidate.cost for candidate in found.feasible)
    assert found.chosen.cost == found.chosen.work + READ * found.chosen.reads
    for candidate in found.feasible:
        layout = candidate.layout
        narrower = [
            d_h
            for d_h in range(-(-width // layout.shards), layout.d_h)
            if layout.shards * d_h % layout.stack == 0 and layout.shards * d_h % (width // heads) == 0
        ]
        assert not narrower, candidate
        assert candidate.padding == pytest.approx((layout.pitch - width) / layout.pitch)


def test_widths_that_divide_need_no_padding() -> None:
    """576 with heads of 64: chunks of 72, 96, 144, 192 or 288, which are no multiples of 64 but one."""
    found = surveyed(gpt_like(576, 9, 1, 11, 1536)[0], 128)
    unpadded = {candidate.layout.d_h for candidate in found.feasible if candidate.layout.pitch == 576}
    assert {36, 48, 64, 72, 96, 144, 192, 288, 576} <= unpadded


def layouts() -> Iterator[Layout]:
    for program in (gpt_like(60, 3, 1, 11, 140)[0], llama_like(26, 1, 1, 11, 31)[0]):
        yield from (candidate.layout for candidate in surveyed(program).feasible if candidate.layout.stack <= 4)


def test_parameters_are_those_of_the_module() -> None:
    """All of a forward module with bias but its gate, two vectors of T_sim."""
    for layout in layouts():
        assert module_parameters(layout) == block_count(forward_block(layout, True), layout) - 2 * layout.sim_seq_len


def test_work_is_that_of_the_module() -> None:
    """A stage's weight ``[a, b, b]`` costs a * b * b multiply-adds a token; scores and their sum T_sim^2 D_sim each."""
    for layout in layouts():
        tensors = block_tensors(forward_block(layout, True).spec)
        stages = sum(t.shape[0] * t.shape[1] * t.shape[2] for name, t in tensors.items() if name.endswith(".weight"))
        length = layout.sim_seq_len
        assert module_work(layout) == length * stages + 2 * length**2 * layout.d_sim


def test_applications_count_every_tile_of_every_use() -> None:
    """By hand: width 12, feed-forward 20, tiles of 12: q, k, v, o and norms are one tile, up and down are two."""
    program = lowered(gpt_like(12, 3, 1, 11, 20)[0], Options())
    demands = Demands.of(program)
    layout = Layout(12, 1, 1, 12, 4, 24)
    uses = {(12,): 0, (12, 12): 0, (20, 12): 0, (12, 20): 0}
    for op in program.ops:
        for value in op.operands:
            if value.type.kind in ("linear", "norm"):
                uses[value.type.dims] += 1
    assert demands.applications(layout) == uses[12,] + uses[12, 12] + 2 * uses[20, 12] + 2 * uses[12, 20]


def test_the_paper_s_layout_is_found() -> None:
    """OPT-125m's shape: S = S' = 3, K = 256 = d_h, D_sim = 3072 (construction.md, section 3.1)."""
    layout = surveyed(gpt_like(768, 12, 1, 11, 3072)[0], 2048).chosen.layout
    assert (layout.stack, layout.shards, layout.n_prefixes, layout.d_h, layout.d_sim) == (3, 3, 256, 256, 3072)
