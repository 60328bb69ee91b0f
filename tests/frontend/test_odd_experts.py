"""Odd configurations of decoders with experts: groups, one or all of them for a token, shared ones, biases, scales."""

from __future__ import annotations

from typing import Any

import pytest
from odd_configurations import cases, checked

ODD: dict[str, tuple[str, dict[str, Any]]] = {
    "three groups of which two, weights that do not sum to 1, three shared experts": (
        "dots1",
        {"n_routed_experts": 6, "n_group": 3, "topk_group": 2, "num_experts_per_tok": 3, "norm_topk_prob": False}
        | {"routed_scaling_factor": 1.7, "n_shared_experts": 3, "first_k_dense_replace": 0, "attention_bias": True}
        | {"moe_intermediate_size": 13, "num_hidden_layers": 1},
    ),
    "one expert for a token, a shared one with a gate, windows above layer 1": (
        "qwen2_moe",
        {"num_experts": 3, "num_experts_per_tok": 1, "norm_topk_prob": True, "moe_intermediate_size": 21}
        | {"shared_expert_intermediate_size": 37, "use_sliding_window": True, "sliding_window": 5}
        | {"max_window_layers": 1, "qkv_bias": False},
    ),
    "all experts for a token, tied embeddings, biases": (
        "qwen3_moe",
        {"hidden_size": 54, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10}
        | {"num_experts": 5, "num_experts_per_tok": 5, "norm_topk_prob": False, "moe_intermediate_size": 17}
        | {"attention_bias": True, "tie_word_embeddings": True},
    ),
    "clipped queries, keys and values": (
        "olmoe",
        {"num_experts": 7, "num_experts_per_tok": 3, "norm_topk_prob": True, "clip_qkv": 0.3, "attention_bias": True}
        | {"intermediate_size": 23},
    ),
    "a short convolution, no bias for choosing": (
        "lfm2_moe",
        {"use_expert_bias": False, "norm_topk_prob": True, "routed_scaling_factor": 1.3, "num_dense_layers": 1}
        | {"layer_types": ["full_attention", "conv"], "num_experts": 5, "num_experts_per_tok": 3},
    ),
}
FEW = tuple(ODD)[:2]
"""Cases that every run of the tests tries."""


@pytest.mark.parametrize("case", cases(ODD, FEW))
def test_odd_configuration(case: str) -> None:
    """Logits, all ways to execute, and explicit tuning."""
    checked(*ODD[case])
