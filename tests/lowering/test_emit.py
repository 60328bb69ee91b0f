"""`emit`: what the artefact stores, in the shapes and types it promises."""

from __future__ import annotations

import pytest
import torch
from programs import gpt_like, llama_like

from tintc import stages
from tintc.errors import ModelError
from tintc.lowering.emission.emit import blocks_of, emit, specs
from tintc.lowering.passes.plan_layout import layout_of
from tintc.options import Options

MAKERS = {"gpt": gpt_like, "llama": llama_like}


@pytest.mark.parametrize("name", MAKERS)
def test_stacked_rows_are_the_weights(name: str) -> None:
    """Row k*S + s of a weight stands at [k, s]; zeros beyond its last row. Exact."""
    auxiliary, tensors = MAKERS[name](d_ff=19)
    program = stages.lower(auxiliary, Options(stack=2, shards=2), 24)
    state = dict(emit(program, tensors, 0.25, torch.float64))
    stacked = state["prefixes.h.1.ffn.up.weight"]
    assert stacked.shape == (10, 2, 12)
    assert torch.equal(stacked.reshape(20, 12)[:19], tensors["h.1.ffn.up.weight"])
    assert float(stacked[9, 1].abs().sum()) == 0
    assert torch.equal(state["tables.wte.weight"], tensors["wte.weight"])
    assert torch.equal(state["rates.h.1.ffn.up"], torch.tensor([0.25], dtype=torch.float64))
    if name == "gpt":
        assert torch.equal(state["prefixes.lnf.gain"], tensors["lnf.weight"])
        assert torch.equal(state["prefixes.h.0.attn.o.bias"], tensors["h.0.attn.o.bias"])


@pytest.mark.parametrize("name", MAKERS)
def test_shapes_are_known_without_computing_and_structure_does_not_grow_with_layers(name: str) -> None:
    found = []
    for layers in (1, 3):
        auxiliary, tensors = MAKERS[name](layers=layers)
        program = stages.lower(auxiliary, Options(), 24)
        shapes = {key: spec.shape for key, spec in specs(program).items()}
        state = dict(emit(program, tensors, 0.1, torch.float64))
        assert {key: tuple(tensor.shape) for key, tensor in state.items()} == shapes and list(state) == list(shapes)
        found.append({key: tensor for key, tensor in state.items() if key.startswith("structure.")})
    assert list(found[0]) == list(found[1])
    assert all(torch.equal(tensor, found[1][key]) for key, tensor in found[0].items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gates_are_exactly_0_and_1(dtype: torch.dtype) -> None:
    """As the interpreters take them to be (construction.md, section 2.3), in every type."""
    auxiliary, tensors = gpt_like()
    state = dict(emit(stages.lower(auxiliary, Options(), 24), tensors, 0.1, dtype))
    gates = [tensor for name, tensor in state.items() if name.startswith("structure.gates.")]
    for kind in {dtype, torch.promote_types(dtype, torch.float32)}:
        values = torch.cat(gates).to(kind).tanh()
        assert set(values.tolist()) == {0.0, 1.0}


def test_structure_does_not_depend_on_the_weights() -> None:
    states = []
    for seed in (0, 1):
        auxiliary, tensors = gpt_like(seed=seed)
        states.append(dict(emit(stages.lower(auxiliary, Options(), 24), tensors, 0.1, torch.float64)))
    for key, tensor in states[0].items():
        assert torch.equal(tensor, states[1][key]) == key.startswith(("structure.", "rates."))


def test_short_types_keep_rates_and_score_vectors_in_fp32() -> None:
    auxiliary, tensors = llama_like()
    for name, tensor in emit(stages.lower(auxiliary, Options(), 24), tensors, 0.1, torch.bfloat16):
        wanted = torch.float32 if name.startswith(("rates.", "score_vectors.")) else torch.bfloat16
        assert tensor.dtype == wanted, name


def test_linear_modules_come_in_the_variants_that_are_used() -> None:
    """Without bias there are no bias heads; a layer of several column tiles has the bias in the first only."""
    with_bias = blocks_of(stages.lower(gpt_like()[0], Options(stack=1, shards=1), 24))
    without = blocks_of(stages.lower(llama_like()[0], Options(), 24))
    assert {"linear_forward", "linear_forward_bias", "linear_descent", "linear_descent_bias", "norm_descent"} <= set(
        with_bias
    )
    assert not [name for name in without if name.endswith("_bias") or name == "norm_descent"]


def test_gates_and_positions_are_stored_only_if_used() -> None:
    program = stages.lower(llama_like()[0], Options(), 24)
    shared = {name for name in specs(program) if name.startswith(("structure.gates.", "structure.positions."))}
    assert shared == {
        "structure.gates.replace.v_old",
        "structure.gates.replace.v_new",
        "structure.gates.update.v_old",
        "structure.gates.update.v_new",
        "structure.positions.prefix",
        "structure.positions.tokens",  # the loss's shift, for one: equal scores for all tokens
    }
    assert layout_of(program).sim_seq_len == layout_of(program).n_prefixes + 24


def test_weights_of_another_shape_are_refused() -> None:
    auxiliary, tensors = gpt_like()
    program = stages.lower(auxiliary, Options(), 24)
    with pytest.raises(ModelError, match=r"gives shape \(3, 12\), expected \(12, 12\)"):
        dict(emit(program, tensors | {"h.0.attn.q.weight": torch.zeros(3, 12)}, 0.1, torch.float64))
