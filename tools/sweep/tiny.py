"""Tiny random decoders of any registered type, by the names its configuration gives to widths, heads and layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LAYERS = ("sliding_attention", "full_attention")
VOCAB, LENGTH, WINDOW = 97, 64, 6
SIZES: dict[int, tuple[str, ...]] = {
    VOCAB: ("vocab_size", "vocab_size_per_layer_input"),
    60: ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"),
    3: (
        *("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "encoder_attention_heads"),
        *("decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"),
    ),
    1: ("num_key_value_heads", "num_kv_heads"),
    2: (
        *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_layers_per_stack", "altup_num_inputs"),
        *("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers", "depth"),
    ),
    140: (
        *("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "dff"),
        *("encoder_ffn_dim", "decoder_ffn_dim"),
    ),
    LENGTH: ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "original_max_position_embeddings"),
    20: ("head_dim", "hidden_size_per_layer_input"),
    8: ("rotary_dim", "qk_rope_head_dim", "laurel_rank"),
    12: ("qk_nope_head_dim", "kv_lora_rank", "v_head_dim"),
    16: ("q_lora_rank", "dim_model_base"),
    WINDOW: ("window_size",),
}
"""Odd widths: 3 heads of 20 that share one key head, a feed-forward of 140."""
EXPERTS: dict[str, Any] = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 8),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "num_experts_per_token", "top_k_experts", "moe_topk"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 28),
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_layer_start_index": 1,
    "mlp_only_layers": [],
    "decoder_sparse_step": 1,
}
"""Eight small experts, two for a token, from the second of two layers on, where a configuration has such numbers."""
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 10,
    "linear_value_head_dim": 14,
}
PARTIAL = 0.4
"""Share of a head that turns, where the default share of 20 is not an even number of coordinates."""
NEEDS: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"n_group": 1, "topk_group": 1},
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 30},
    "codegen": {"n_embd": 80, "n_head": 4},  # projections are cut for four devices
    "cohere_compass_text": {
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in LAYERS},
        "layer_types": list(LAYERS),
        "sliding_window": WINDOW,
    },
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1},
    "dbrx": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 1, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 60, "ffn_hidden_size": 28, "moe_num_experts": 8, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots3_note_text": {  # by default these layers have 64 wide heads
        "per_layer_config": {
            1: {"num_attention_heads": 3, "num_key_value_heads": 3, "q_lora_rank": 16, "kv_lora_rank": 12}
            | {"qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "head_dim": 20, "v_head_dim": 12}
        }
    },
    "diffllama": {"hidden_size": 80, "num_attention_heads": 4, "num_key_value_heads": 2},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_unified_text": {"global_head_dim": 40},
    "gemma4": {"text_config": {"global_head_dim": 40}},
    "gemma4_unified": {"text_config": {"global_head_dim": 40}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 30, "layer_types": ["mamba", "attention"]},
    "gemma4_text": {"global_head_dim": 40},
    "hunyuan_v1_moe": {"num_experts": 8, "moe_topk": 2},
    "hrm_text": {"H_cycles": 2, "L_cycles": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1, "num_experts": 4}
    | {"num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "mamba2": {"num_heads": 4, "head_dim": 30, "n_groups": 1},
    "falcon_h1": {"mamba_d_ssm": 60, "mamba_n_heads": 4, "mamba_d_head": 15, "mamba_d_state": 10, "mamba_n_groups": 2},
    "kimi_linear": {"linear_num_heads": 3, "linear_head_dim": 10, "num_local_experts": 4, "num_experts_per_tok": 2}
    | {"moe_intermediate_size": 24},
    "nemotron_h": {"mamba_num_heads": 4, "mamba_head_dim": 30, "n_groups": 2, "ssm_state_size": 10}
    | {"moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 24, "n_routed_experts": 4},
    "qwen3_next": {**DELTA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "qwen3_5": {"text_config": DELTA},
    "qwen3_5_text": DELTA,
    "qwen3_5_moe": {"text_config": DELTA | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}},
    "qwen3_5_moe_text": {**DELTA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "olmo_hybrid": {
        "linear_num_key_heads": 3,
        "linear_num_value_heads": 3,
        **{key: DELTA[key] for key in list(DELTA)[2:]},
    },
    "mimo_v2_flash": {"num_attention_heads": 4},  # layers with a window have two key heads for each of the others
    "qwen4_exp": {
        "text_config": {"layer_types": ["linear_attention"] * 2}
    },  # others need an indexer, which it leaves out
    "qwen4_exp_text": {"layer_types": ["linear_attention"] * 2},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3, "n_mamba_heads": 2}
    | {"mamba_d_state": 4, "attention_hidden_size": 120, "attention_head_dim": 40, "num_key_value_heads": 3},
    "xlm": {"emb_dim": 60},
    "zaya": {
        "num_experts_per_tok": 1,
        "rope_parameters": {
            "hybrid": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": PARTIAL}
        },
    },
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"], "n_mamba_heads": 4, "mamba_headdim": 30}
    | {"mamba_d_state": 10, "mamba_ngroups": 1, "num_mem_blocks": 1}
    | {"attention_hidden_size": 120, "attention_head_dim": 40, "num_key_value_heads": 3},
}
"""What single types cannot do without."""
LATENT = {"num_key_value_heads": 3, "head_dim": 8}
"""Latent attention has as many key heads as query heads, and calls the part of a head that turns its head_dim."""
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def registered_types() -> list[str]:
    """Return every model type for which transformers registers a causal language model."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str, **options: Any) -> PretrainedConfig:
    """Return a small configuration of that type; `options` are set on top, nested ones merged.

    Raises whatever the configuration class raises for it.
    """
    kind = CONFIG_MAPPING[model_type]
    default = kind()
    return kind(**_merged(_merged(_small(default), NEEDS.get(model_type, {})), options))


def tiny_model(model_type: str, seed: int = 0, **options: Any) -> PreTrainedModel:
    """Return a model of that type as `random_model` makes it."""
    config = tiny_config(model_type, **options)
    try:
        return random_model(config, seed)
    except (ValueError, NotImplementedError) as error:
        if "attention" not in str(error):
            raise
        return random_model(config, seed, "eager")


def random_model(config: PretrainedConfig, seed: int = 0, attention: str = "sdpa") -> PreTrainedModel:
    """Return a model with random weights, biases and gains included, which start as zeros and ones.

    Same arguments, same weights.
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def _small(default: PretrainedConfig) -> dict[str, Any]:
    known = default.to_dict()
    sizes: dict[str, Any] = {name: size for size, names in SIZES.items() for name in names if name in known}
    sizes |= {name: token for name, token in TOKENS.items() if name in known}
    sizes |= {name: size for name, size in EXPERTS.items() if known.get(name) is not None}
    if known.get("sliding_window") is not None:
        sizes["sliding_window"] = WINDOW
    kinds = list(dict.fromkeys(known.get("layer_types") or ()))
    if len(kinds) > 1:  # as many layers as `SIZES` says, of different kinds
        sizes["layer_types"] = kinds[:2]
        if set(LAYERS) <= set(kinds):
            sizes["layer_types"] = list(LAYERS)
    if "qk_rope_head_dim" in known:
        sizes |= {name: size for name, size in LATENT.items() if name in known}
    sizes |= _rotary(known)
    for name in default.sub_configs:
        inner = getattr(default, name, None)
        if isinstance(inner, PretrainedConfig):
            sizes[name] = _small(inner)
    return sizes


def _rotary(known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the default's rotary parameters, with a share of the head that is an even number of its coordinates."""
    parameters = known.get("rope_parameters")
    if not isinstance(parameters, dict):
        return {}
    (width,) = [size for size, names in SIZES.items() if "head_dim" in names]

    def fit(entries: Any) -> Any:
        if not isinstance(entries, dict):
            return entries
        entries = {key: fit(value) for key, value in entries.items()}
        share = entries.get("partial_rotary_factor")
        if share is not None and int(share * width) % 2:
            entries["partial_rotary_factor"] = PARTIAL
        if "mrope_section" in entries:  # pairs of coordinates that turn by time, height and width
            rest = width // 2
            entries["mrope_section"] = [rest - 2 * (rest // 3), rest // 3, rest // 3]
        if "original_max_position_embeddings" in entries:
            entries["original_max_position_embeddings"] = LENGTH // 2
        return entries

    return {"rope_parameters": fit(parameters)}


def _merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in more.items():
        inner = merged.get(key)
        if isinstance(inner, dict) and isinstance(value, dict):
            value = _merged(inner, value)
        merged[key] = value
    return merged
