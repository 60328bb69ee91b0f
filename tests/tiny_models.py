"""Tiny random decoders for tests, fp32 unless told otherwise. Same arguments, same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedModel

from tools.sweep.tiny import TOKENS, random_model


def build(model_type: str, attention: str = "sdpa", seed: int = 0, **options: Any) -> PreTrainedModel:
    """A model of that type, of any sizes, with random weights."""
    return random_model(AutoConfig.for_model(model_type, **TOKENS, **options), seed, attention)


def gpt2(
    n_layers: int = 2, n_heads: int = 4, head_dim: int = 8, d_ff: int | None = None, vocab: int = 53, **options: Any
) -> PreTrainedModel:
    sizes = {"n_layer": n_layers, "n_head": n_heads, "n_embd": n_heads * head_dim, "n_inner": d_ff}
    return build("gpt2", vocab_size=vocab, n_positions=32, **sizes, **options)


def opt(
    n_layers: int = 2, n_heads: int = 4, head_dim: int = 8, d_ff: int = 45, vocab: int = 53, **options: Any
) -> PreTrainedModel:
    width = n_heads * head_dim
    sizes = {"num_hidden_layers": n_layers, "num_attention_heads": n_heads, "hidden_size": width, "ffn_dim": d_ff}
    options = {"word_embed_proj_dim": width} | options
    return build("opt", vocab_size=vocab, max_position_embeddings=32, **sizes, **options)


def llama(
    n_layers: int = 2,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    head_dim: int = 8,
    d_ff: int = 45,
    vocab: int = 53,
    **options: Any,
) -> PreTrainedModel:
    sizes = {"num_hidden_layers": n_layers, "num_attention_heads": n_heads, "hidden_size": n_heads * head_dim}
    sizes |= {"num_key_value_heads": n_kv_heads, "intermediate_size": d_ff}
    return build("llama", vocab_size=vocab, max_position_embeddings=32, **sizes, **options)


def token_ids(batch: int, length: int, vocab: int = 53, seed: int = 1) -> torch.Tensor:
    """Random ids ``[batch, length]`` without the special ones."""
    return torch.randint(3, vocab, (batch, length), generator=torch.Generator().manual_seed(seed))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference relative to the largest entry of b."""
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def adapted(base: Any, targets: list[str]) -> Any:
    """A `PeftModel` whose update is not zero."""
    peft = pytest.importorskip("peft", reason="pip install peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model
