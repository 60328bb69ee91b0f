"""Odd configurations of decoders with experts: groups, one or all of them for a token, shared ones, biases, scales."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fused_cases import check_fused
from programs import relative_to_update

import tintc
from tintc.reference import tune
from tools.sweep.tiny import VOCAB, tiny_model

ODD: dict[str, tuple[str, dict[str, Any]]] = {
    "three groups of which two, weights that do not sum to 1, three shared experts": (
        "dots1",
        {"n_routed_experts": 6, "n_group": 3, "topk_group": 2, "num_experts_per_tok": 3, "norm_topk_prob": False}
        | {"routed_scaling_factor": 1.7, "n_shared_experts": 3, "first_k_dense_replace": 0, "attention_bias": True}
        | {"moe_intermediate_size": 13},
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
LENGTH = 12


@pytest.mark.parametrize("case", [case if case in FEW else pytest.param(case, marks=pytest.mark.slow) for case in ODD])
def test_odd_configuration(case: str) -> None:
    """All in fp64, two texts with padding on either side: logits as the eager model's (1e-6: it drops to fp32 inside),
    and 1e-9 of the update between all ways to execute and from explicit tuning."""
    name, options = ODD[case]
    model: Any = tiny_model(name, **options).double()
    model.set_experts_implementation("eager")  # others refuse fp64
    sim = tintc.compile(model, max_length=32, inner_lr=1e-3)
    ids = torch.randint(3, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, :4] = 0
    mask[1, 9:] = 0
    real = mask.bool()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        right = model(ids, use_cache=False, attention_mask=mask, position_ids=positions).logits[real]
        out = sim(ids, attention_mask=mask, return_before=True)
    assert float((out.logits_before[real] - right).norm() / right.norm()) < 1e-6
    check_fused(sim, ids, attention_mask=mask)
    tuned = tune(model, ids, attention_mask=mask, inner_lr=1e-3)
    assert relative_to_update(out.logits[real], tuned.logits[real], tuned.logits_before[real]) < 1e-9
