"""Parameter counts against the formulas of the spec's section 11, and against tensors that were emitted."""

from __future__ import annotations

import math

import pytest
import tiny_models

import tintc
from tintc.ir.layout import Layout
from tintc.ir.simulator.base import TableCount, attention_cost, split_cost
from tintc.lowering.counts import count_parameters, prefix_count, table_count, unique_count, unrolled_count
from tintc.lowering.emit import blocks_of


@pytest.fixture(scope="module")
def gpt2() -> tintc.TintForCausalLM:
    return tintc.compile(tiny_models.gpt2(n_layers=3))


def test_costs_of_the_table() -> None:
    """Q_split = D_sim^2 / H + D_sim H, Q = 4 Q_split + 3 T_sim D_sim / H, by hand for D_sim = 48, H = 6, T_sim = 24."""
    layout = Layout(d_aux=16, stack=2, shards=2, d_h=8, n_heads=6, max_length=16)
    assert (layout.d_sim, layout.sim_seq_len) == (48, 24)
    assert split_cost(layout) == 48 * 48 // 6 + 48 * 6 == 672
    assert attention_cost(layout) == 4 * 672 + 3 * 24 * 8 == 3264


def test_the_paper_s_sizes() -> None:
    """OPT-125m's row: D_sim = 3072, H = 12, K = 256, T = 2048, 12 layers, 1e9 (spec: 0.44 / 0.43 / 0.43 / 1.29)."""
    layout = Layout(d_aux=768, stack=3, shards=3, d_h=256, n_heads=12, max_length=2048)
    assert (layout.d_sim, layout.n_prefixes) == (3072, 256)
    q, q_split, extra = attention_cost(layout), split_cost(layout), layout.d_sim * layout.n_heads
    block = TableCount(7 * q + q_split, 7 * q + 6 * extra, 7 * q)
    total = TableCount(12 * block.forward, 12 * block.backward, 12 * block.descent)
    figures = [count / 1e9 for count in (total.forward, total.backward, total.descent, total.total)]
    assert figures == pytest.approx([0.44, 0.43, 0.43, 1.29], abs=0.006)


@pytest.mark.parametrize("layers", [1, 3])
def test_a_transformer_block_is_seven_modules(layers: int) -> None:
    """A GPT-2 block: forward 7 Q + Q_split, backward 7 Q + 6 D_sim H, descent 7 Q, times the layers."""
    sim = tintc.compile(tiny_models.gpt2(n_layers=layers), n_update_layers=1)
    q, q_split = attention_cost(sim.layout), split_cost(sim.layout)
    extra = sim.layout.d_sim * sim.layout.n_heads
    assert table_count(sim.program) == TableCount(
        layers * (7 * q + q_split), layers * (7 * q + 6 * extra), layers * 7 * q
    )


def test_steps_do_not_change_the_table(gpt2: tintc.TintForCausalLM) -> None:
    twice = tintc.compile(tiny_models.gpt2(n_layers=3), n_steps=2, n_update_layers=2)
    assert table_count(twice.program) == table_count(gpt2.program)


@pytest.mark.parametrize("model", [tiny_models.gpt2, tiny_models.opt, tiny_models.llama])
def test_unique_is_what_is_stored(model: object) -> None:
    assert callable(model)
    sim = tintc.compile(model())
    assert unique_count(sim.program) == sum(tensor.numel() for tensor in sim.state_dict().values())


def test_unrolled_counts_each_use(gpt2: tintc.TintForCausalLM) -> None:
    """Stored values once, and for every use of a block its own tensors, position matrices and gate."""
    layout, state = gpt2.layout, gpt2.state_dict()
    matrix = layout.d_h * layout.sim_seq_len
    total = sum(tensor.numel() for name, tensor in state.items() if not name.startswith("structure."))
    for op in gpt2.program.ops:
        for name in op.structure(layout):  # pyright: ignore[reportAttributeAccessIssue]
            own = {key: tensor for key, tensor in state.items() if key.startswith(f"structure.{name}.")}
            total += sum(tensor.numel() for tensor in own.values())
            total += matrix * sum(key.rpartition(".")[2].startswith("lam_") for key in own)
            total += 2 * layout.sim_seq_len if blocks_of(gpt2.program)[name].gate else 0
    assert unrolled_count(gpt2.program) == total > 5 * unique_count(gpt2.program)


def test_prefixes_by_hand() -> None:
    """One layer of GPT-2, width 32, feed-forward 128; layout with tiles of the width: 1 + 1 + 4 + 4 + 2 norms."""
    sim = tintc.compile(tiny_models.gpt2(n_layers=1), stack=4, shards=1)
    layout = sim.layout
    rows = {"attention": 3 + 1, "feed-forward": 2 * math.ceil(128 / layout.pitch), "norms": 2 + 1}
    assert layout.pitch == 32
    assert prefix_count(sim.program) == layout.n_prefixes * sum(rows.values())
    assert count_parameters(sim.program).prefixes == prefix_count(sim.program)
