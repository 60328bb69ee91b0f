"""Which configurations the sweep checks beside a type's own: options within types that change the graph."""

from __future__ import annotations

from typing import Any

_NAMES = """
    apertus arcee beam biogpt bitnet bloom codegen cohere cohere2 cohere_compass_text ctrl cwm diffllama doge ernie4_5
    exaone4 falcon flint gemma gemma2 gemma3_text gemma3n_text gemma4_text gemma4_unified_text glm glm4 gpt-sw3 gpt2
    gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gptj granite granite_swa helium hrm_text hunyuan_v1_dense hyperclovax
    internlm3 iquestcoder jais2 llama minicpm3 ministral ministral3 mistral modernbert-decoder mpt nanochat nemotron
    olmo olmo2 olmo3 openai-gpt opt persimmon phi phi3 qwen2 qwen3 seed_oss smollm3 stablelm starcoder2 vaultgemma xglm
    youtu
"""
DENSE = tuple(_NAMES.split())
"""The dense decoders with softmax attention among the types that transformers 5.23 registers: what the sweep counts.
The compiler does not know of this list."""


DOZEN = (
    ("bloom", ""),
    ("cohere", ""),
    ("falcon", "new architecture"),
    ("flint", ""),
    ("gemma2", ""),
    ("gpt_neox", ""),
    ("granite", "multipliers"),
    ("llama", "llama3 scaling"),
    ("nemotron", ""),
    ("olmo", ""),
    ("opt", "350m"),
    ("qwen3", ""),
)
"""Types and variants that `make test` checks: one at least for every kind of norm, position, attention and residual."""


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
_LONG = {"short_factor": [1.0 + 0.1 * i for i in range(10)], "long_factor": [1.0 + 0.3 * i for i in range(10)]}

ENCODERS = (
    *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
    *("rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl"),
)
"""Types whose configuration may say that attention is to be causal."""

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    **{name: {"decoder": {"is_decoder": True}} for name in ENCODERS},
    "bloom": {"residual after the norm": {"apply_residual_connection_post_layernorm": True}},
    "cohere": {"norms on q and k": {"use_qk_norm": True}, "biases": {"attention_bias": True}},
    "deepseek_v3": {"experts": {"first_k_dense_replace": 0}},
    "falcon": {
        "new architecture": {"new_decoder_architecture": True, "num_kv_heads": 1},
        "new architecture, one norm": {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1},
        "sequential, biases": {"parallel_attn": False, "bias": True, "multi_query": False, "num_kv_heads": 3},
        "ALiBi": {"alibi": True},
    },
    "gemma2": {"untied": {"tie_word_embeddings": False}},
    "gemma3_text": {"caps": {"attn_logit_softcapping": 30.0, "final_logit_softcapping": 20.0}},
    "gemma4_text": {
        "keys that are values": {"attention_k_eq_v": True, "num_global_key_value_heads": 1},
        "experts": {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 28},
    },
    "glm": {"no biases": {"attention_bias": False}},
    "gpt2": {"untied": {"tie_word_embeddings": False}, "scaled by layer": {"scale_attn_by_inverse_layer_idx": True}},
    "gpt_bigcode": {"multi-head": {"multi_query": False}},
    "gpt_neox": {"sequential": {"use_parallel_residual": False}, "no biases": {"attention_bias": False}},
    "granite": {
        "multipliers": {
            "embedding_multiplier": 12.0,
            "logits_scaling": 8.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.0156,
        }
    },
    "lfm2": {"short convolutions": {"layer_types": ["conv", "full_attention"]}},
    "llama": {
        "two key heads": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6},
        "biases": {"attention_bias": True, "mlp_bias": True},
        "tied": {"tie_word_embeddings": True},
        "linear scaling": _rope("linear", factor=4.0),
        "llama3 scaling": _rope("llama3", **_LLAMA3),
        "yarn scaling": _rope("yarn", factor=4.0, original_max_position_embeddings=16),
    },
    "minimax": {"softmax attention": {"layer_types": ["full_attention", "full_attention"]}},
    "mistral": {"no window": {"sliding_window": None}},
    "mpt": {
        "tables of positions": {"attn_config": {"alibi": False}},
        "clipped q, k and v": {"attn_config": {"clip_qkv": 0.5}},
    },
    "olmo": {"clipped q, k and v": {"clip_qkv": 0.5}},
    "opt": {
        "350m": {"do_layer_norm_before": False, "word_embed_proj_dim": 36},
        "no biases": {"enable_bias": False},
        "no affine norms": {"layer_norm_elementwise_affine": False},
    },
    "persimmon": {"no norms on q and k": {"qk_layernorm": False}},
    "phi": {"norms on q and k": {"qk_layernorm": True}},
    "phi3": {"longrope": _rope("longrope", **_LONG, factor=4.0), "window": {"sliding_window": 6}},
    "qwen2": {"windows above layer 1": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}},
    "recurrent_gemma": {"softmax attention": {"block_types": ["attention"]}},
    "smollm3": {"no rotary on one layer": {"no_rope_layers": [1, 0]}},
    "stablelm": {
        "parallel": {"use_parallel_residual": True},
        "norms on q and k": {"qk_layernorm": True},
        "biases": {"use_qkv_bias": True},
    },
    "starcoder2": {"no biases": {"use_bias": False}, "window": {"sliding_window": 6}},
}
"""Type -> name of the variant -> what its configuration has on top of the tiny one. Some that are refused stand here as
well, where a default configuration is not what the type is known for."""
