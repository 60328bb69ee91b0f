"""Parameter counts against the formulas of construction.md, section 11, and against tensors that were emitted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import tiny_models
from transformers import PreTrainedModel

import tintc
from tintc.analysis.parameter_counts import (
    count_parameters,
    module_counts,
    prefix_count,
    table_count,
    transformer_block,
    unique_count,
    unrolled_count,
)
from tintc.analysis.published import PUBLISHED
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.storage import TableCount, attention_cost, split_cost
from tintc.lowering.emission.emit import blocks_of


@pytest.fixture(scope="module")
def gpt2() -> tintc.TintForCausalLM:
    return tintc.compile(tiny_models.gpt2())


def test_costs_of_the_table() -> None:
    """Q_split = D_sim^2 / H + D_sim H, Q = 4 Q_split + 3 T_sim D_sim / H, by hand for D_sim = 48, H = 6, T_sim = 24."""
    layout = Layout(d_aux=16, stack=2, shards=2, d_h=8, n_heads=6, max_length=16)
    assert (layout.d_sim, layout.sim_seq_len) == (48, 24)
    assert split_cost(layout) == 48 * 48 // 6 + 48 * 6 == 672
    assert attention_cost(layout) == 4 * 672 + 3 * 24 * 8 == 3264


def test_the_paper_s_sizes() -> None:
    """The table for the OPT shapes, in 1e9, to two digits; 1.3b and 2.7b are the paper's totals."""
    wanted = {
        "OPT-125m": [0.44, 0.43, 0.43, 1.29],
        "OPT-350m": [1.07, 1.06, 1.05, 3.17],
        "OPT-1.3b": [3.67, 3.59, 3.57, 10.82],
        "OPT-2.7b": [7.39, 7.21, 7.17, 21.77],
    }
    for row in PUBLISHED:
        total = row.table
        figures = [count / 1e9 for count in (total.forward, total.backward, total.descent, total.total)]
        assert figures == pytest.approx(wanted.pop(row.name), abs=0.006)
        assert row.layout.d_sim == 4 * row.d_aux and row.layout.n_prefixes == row.layout.d_h
        assert figures == pytest.approx(row.totals, rel=0.11, abs=0)
    assert not wanted


@pytest.mark.parametrize("layers", [1, 2])
def test_a_transformer_block_is_seven_modules(layers: int) -> None:
    """A GPT-2 block: forward 7 Q + Q_split, backward 7 Q + 6 D_sim H, descent 7 Q, times the layers."""
    sim = tintc.compile(tiny_models.gpt2(n_layers=layers), n_update_layers=1)
    q, q_split = attention_cost(sim.layout), split_cost(sim.layout)
    extra = sim.layout.d_sim * sim.layout.n_heads
    assert table_count(sim.program) == TableCount(
        layers * (7 * q + q_split), layers * (7 * q + 6 * extra), layers * 7 * q
    )


def test_steps_do_not_change_the_table(gpt2: tintc.TintForCausalLM) -> None:
    twice = tintc.compile(tiny_models.gpt2(), n_steps=2, n_update_layers=1)
    assert table_count(twice.program) == table_count(gpt2.program)


@pytest.mark.parametrize("model", [tiny_models.gpt2, tiny_models.opt, tiny_models.llama])
def test_unique_is_what_is_stored(model: Callable[[], PreTrainedModel]) -> None:
    sim = tintc.compile(model())
    assert unique_count(sim.program) == sum(tensor.numel() for tensor in sim.state_dict().values())


def test_unrolled_counts_each_use(gpt2: tintc.TintForCausalLM) -> None:
    """Stored values once, and for every use of a block its own tensors, position matrices and gate."""
    layout, state = gpt2.layout, gpt2.state_dict()
    matrix = layout.d_h * layout.sim_seq_len
    total = sum(tensor.numel() for name, tensor in state.items() if not name.startswith("structure."))
    for op in gpt2.program.ops:
        for name in op.blocks(layout):  # pyright: ignore[reportAttributeAccessIssue]
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


MODELS = {
    "gpt2": (tiny_models.gpt2, {}),
    "opt, two steps, one layer": (tiny_models.opt, {"n_steps": 2, "n_update_layers": 1}),
    "llama": (tiny_models.llama, {}),
    "paper-code": (tiny_models.gpt2, {"semantics": "paper-code"}),
    "gains descend": (tiny_models.gpt2, {"descend": "norm-bias,norm-gain", "n_update_layers": 1}),
}


@pytest.mark.parametrize("name", MODELS)
def test_module_counts_add_up(name: str) -> None:
    """Exactly: unique to the sizes of the tensors held, the others to the counts of the whole program."""
    make, options = MODELS[name]
    sim = tintc.compile(make(), **options)
    rows, program = module_counts(sim.program), sim.program
    assert sum(row.unique for row in rows) == sum(tensor.numel() for tensor in sim.state_dict().values())
    assert sum(row.unrolled for row in rows) == unrolled_count(program)
    table = table_count(program)
    for phase in ("forward", "backward", "descent"):
        assert sum(row.table for row in rows if row.phase == phase) == getattr(table, phase)
    assert len({(row.kind, row.layer, row.phase) for row in rows}) == len(rows)


def test_module_counts_by_hand(gpt2: tintc.TintForCausalLM) -> None:
    """GPT-2, width 32, feed-forward 128, two layers."""
    rows = {(row.kind, row.layer, row.phase): row for row in module_counts(gpt2.program)}
    q, state = attention_cost(gpt2.layout), gpt2.state_dict()
    assert rows["linear", 0, "forward"].table == 4 * q, "q, k and v are one module; output, up and down"
    assert rows["norm", 1, "backward"].table == 2 * (q + 2 * gpt2.layout.d_sim * gpt2.layout.n_heads)
    stored = {name: tensor.numel() for name, tensor in state.items() if name.startswith("prefixes.") and ".1." in name}
    assert stored and rows["weights", 1, "forward"].unique == sum(stored.values())
    assert rows["weights", 1, "forward"].unrolled == rows["weights", 1, "forward"].unique
    structure = sum(tensor.numel() for name, tensor in state.items() if name.startswith("structure."))
    shared = sum(row.unique for row in rows.values() if row.layer is None)
    own = rows["loss_gradient", -1, "loss"].unique
    assert shared + own == structure, "structural tensors belong to no layer; the loss's are its own"
    assert rows["linear", 0, "forward"] == replace(rows["linear", 1, "forward"], layer=0)


def test_a_block_by_the_table(gpt2: tintc.TintForCausalLM) -> None:
    block, table = transformer_block(gpt2.layout), table_count(gpt2.program)
    assert (2 * block.forward, 2 * block.backward, 2 * block.descent) == (table.forward, table.backward, table.descent)
