"""Odd configurations of decoders with other mixers: head counts, groups, kernel widths, biases, kinds of layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from odd_configurations import LENGTH, cases, checked
from torch import Tensor

from tintc.errors import ModelError
from tintc.frontend.agreement import check_agreement
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.importer import import_graph
from tools.sweep.tiny import tiny_model

ODD: dict[str, tuple[str, dict[str, Any]]] = {
    "state space, biases, three groups": (
        "mamba2",
        {"use_bias": True, "num_heads": 6, "head_dim": 20, "n_groups": 3, "conv_kernel": 3, "chunk_size": 5},
    ),
    "selective scan, biases": (
        "mamba",
        {"use_bias": True, "use_conv_bias": False, "conv_kernel": 2, "state_size": 3, "expand": 1},
    ),
    "convolution of two gates with biases": (
        "lfm2",
        {"conv_bias": True, "conv_L_cache": 2, "layer_types": ["conv", "full_attention"], "tie_word_embeddings": False}
        | {"intermediate_size": 75, "block_auto_adjust_ff_dim": False},
    ),
    "state space beside attention, multipliers, biases": (
        "falcon_h1",
        {"num_hidden_layers": 1, "mamba_n_heads": 3, "mamba_d_head": 10, "mamba_d_ssm": 30, "mamba_n_groups": 3}
        | {"mamba_d_conv": 2, "mamba_conv_bias": False, "mamba_proj_bias": True, "mamba_rms_norm": True}
        | {"ssm_multipliers": [0.5, 0.6, 0.7, 0.8, 0.9], "ssm_in_multiplier": 1.5, "attention_in_multiplier": 1.2},
    ),
    "state space, kernel of three, attention first": (
        "nemotron_h",
        {"layers_block_type": ["attention", "mamba", "mlp"], "num_hidden_layers": 3, "mamba_num_heads": 6}
        | {"mamba_head_dim": 7, "n_groups": 3, "ssm_state_size": 5, "conv_kernel": 3, "tie_word_embeddings": True},
    ),
    "gated delta rule, three key heads for nine": (
        "qwen3_5_text",
        {"linear_num_key_heads": 3, "linear_num_value_heads": 9, "linear_key_head_dim": 7, "linear_value_head_dim": 5}
        | {"linear_conv_kernel_dim": 2, "layer_types": ["full_attention", "linear_attention"], "intermediate_size": 75},
    ),
    "selective scan beside attention without positions, experts": (
        "jamba",
        {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
        | {"num_experts": 5, "num_experts_per_tok": 3, "mamba_d_state": 3, "mamba_d_conv": 3, "mamba_expand": 1}
        | {"mamba_dt_rank": 5, "mamba_proj_bias": True, "mamba_conv_bias": False, "intermediate_size": 35},
    ),
    "selective scan, three heads with projections of their own": (
        "zamba",
        {"layers_block_type": ["hybrid", "linear_attention", "hybrid"], "n_mamba_heads": 3, "mamba_d_state": 5}
        | {"mamba_d_conv": 3, "mamba_expand": 1, "mamba_dt_rank": 3, "mamba_proj_bias": True},
    ),
    "gated delta rule, experts": (
        "qwen3_next",
        {"linear_num_key_heads": 3, "linear_num_value_heads": 9, "linear_key_head_dim": 7, "linear_value_head_dim": 5}
        | {"linear_conv_kernel_dim": 3, "num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 23}
        | {"layer_types": ["linear_attention", "full_attention"], "shared_expert_intermediate_size": 19},
    ),
    "delta rule by coordinate, experts": (
        "kimi_linear",
        {"linear_num_heads": 3, "linear_head_dim": 7, "num_local_experts": 5, "num_experts_per_tok": 3},
    ),
    "state space, three groups, experts": (
        "granitemoehybrid",
        {"mamba_n_heads": 6, "mamba_d_head": 20, "mamba_n_groups": 3, "mamba_d_state": 5, "mamba_d_conv": 3}
        | {"num_local_experts": 5, "num_experts_per_tok": 3, "shared_intermediate_size": 19, "mamba_proj_bias": True}
        | {"embedding_multiplier": 1.5, "residual_multiplier": 0.7, "logits_scaling": 2.0},
    ),
    "state space alone, a group for every head": (
        "granitemoehybrid",
        {"mamba_n_heads": 8, "mamba_d_head": 15, "mamba_n_groups": 8, "mamba_d_state": 3, "mamba_d_conv": 2}
        | {"mamba_conv_bias": False, "num_local_experts": 0, "shared_intermediate_size": 37, "attention_bias": True}
        | {
            "num_hidden_layers": 1,
            "layer_types": ["mamba"],
            "position_embedding_type": "nope",
            "tie_word_embeddings": False,
        },
    ),
    "state space, limits of time steps, a group for every head": (
        "mamba2",
        {"num_heads": 8, "head_dim": 15, "n_groups": 8, "state_size": 3, "conv_kernel": 5, "chunk_size": 7}
        | {"use_conv_bias": False, "time_step_limit": (0.01, 0.05), "tie_word_embeddings": True},
    ),
    "selective scan, one state, six taps": (
        "mamba",
        {"conv_kernel": 6, "state_size": 1, "expand": 3, "time_step_rank": 1, "hidden_act": "gelu"}
        | {"num_hidden_layers": 3, "tie_word_embeddings": True},
    ),
    "state space, a norm before the gate, biases everywhere": (
        "falcon_h1",
        {"mamba_n_heads": 6, "mamba_d_head": 7, "mamba_d_ssm": 42, "mamba_n_groups": 2, "mamba_d_state": 5}
        | {"mamba_d_conv": 3, "mamba_chunk_size": 5, "mamba_rms_norm": True, "mamba_norm_before_gate": True}
        | {"attention_bias": True, "mlp_bias": True, "projectors_bias": True, "tie_word_embeddings": True}
        | {"mlp_multipliers": [0.7, 1.3], "lm_head_multiplier": 0.5, "key_multiplier": 0.6},
    ),
    "gated delta rule alone, experts": (
        "qwen3_5_moe_text",
        {"linear_num_key_heads": 3, "linear_num_value_heads": 9, "linear_key_head_dim": 7, "linear_value_head_dim": 5}
        | {"linear_conv_kernel_dim": 5, "num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 23}
        | {"shared_expert_intermediate_size": 19, "layer_types": ["linear_attention", "linear_attention"]},
    ),
}
FEW = (
    "state space, biases, three groups",
    "convolution of two gates with biases",
    "gated delta rule, three key heads for nine",
    "selective scan beside attention without positions, experts",
    "state space alone, a group for every head",
)
"""Cases that every run of the tests tries."""


@pytest.mark.parametrize("case", cases(ODD, FEW))
def test_odd_configuration(case: str) -> None:
    """Logits, all ways to execute, and explicit tuning; a step lowers the train loss, and with a rate of 0 it writes
    what the model writes."""
    compiled = checked(*ODD[case])
    model, sim, ids, mask = compiled.model, compiled.sim, compiled.ids, compiled.mask
    with torch.no_grad():
        before = sim(ids, return_before=True)
    losses = [train_loss(logits, ids) for logits in (before.logits_before, before.logits)]
    assert losses[1] < losses[0]
    start = ids[:, :7]
    settings = {"attention_mask": mask[:, :7], "do_sample": False, "max_new_tokens": 3, "min_new_tokens": 3}
    written = sim.generate(start, inner_lr=0.0, **settings)
    # Without transformers' cache, whose steps leave limits of time steps out.
    assert torch.equal(written, model.generate(start, use_cache=False, **settings))


def train_loss(logits: Tensor, ids: Tensor) -> float:
    """The loss of the tokens that a step trains on: the first half of each text."""
    half = LENGTH // 2
    return float(F.cross_entropy(logits[:, : half - 1].flatten(0, 1), ids[:, 1:half].flatten()))


def test_only_what_matters_is_blamed() -> None:
    """A state space without positions whose padding reads as a bias is not told that it ignores `position_ids`, if it
    is compared with a program that reads zero there."""
    name, options = ODD["state space, biases, three groups"]
    model = tiny_model(name, **options)
    graph = capture(model, 32)
    with pytest.raises(ModelError, match="what its graph was read as is not what it computes") as raised:
        check_agreement(name, model, import_graph(graph), graph.tensors, 32)
    assert "with padding on the left" in str(raised.value)
