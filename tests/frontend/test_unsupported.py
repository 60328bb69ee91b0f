"""A model that no rule covers is refused with every place and a reason for each."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_models import build

from tintc.errors import UnsupportedModelError
from tintc.frontend.capture import capture
from tintc.frontend.importer import import_graph

SIZES: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
LLAMA_LIKE: dict[str, Any] = {
    **SIZES,
    "vocab_size": 53,
    "max_position_embeddings": 32,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def reasons(model_type: str, attention: str = "sdpa", max_length: int | None = None, **options: Any) -> dict[str, str]:
    """Place -> reason."""
    with pytest.raises(UnsupportedModelError) as error:
        import_graph(capture(build(model_type, attention, **options), max_length))
    return {reason.where: reason.why for reason in error.value.reasons}


def test_sliding_window() -> None:
    found = reasons("mistral", **LLAMA_LIKE, sliding_window=8)
    assert set(found) == {"model.layers.0.self_attn", "model.layers.1.self_attn"}
    assert all("sliding window" in why for why in found.values())


def test_a_window_wider_than_the_longest_text_is_no_window() -> None:
    import_graph(capture(build("mistral", **LLAMA_LIKE, sliding_window=8), max_length=8))


def test_alibi() -> None:
    found = reasons("bloom", "eager", n_layer=2, hidden_size=32, n_head=4, vocab_size=53)
    assert "ALiBi" in found["transformer.h.0.self_attention"]
    assert "ALiBi" in found["transformer.h.1.self_attention"]


def test_soft_caps_scaled_embedding_and_computed_gains_are_all_listed() -> None:
    found = reasons("gemma2", "eager", **LLAMA_LIKE)
    assert "aten.tanh" in found["model.layers.0.self_attn"] and "aten.tanh" in found["model.layers.1.self_attn"]
    assert "scaled by" in found["model.embed_tokens"]
    assert "none of the known activations" in found["Gemma2ForCausalLM"]
    assert "gain is computed" in found["model.norm"]


def test_norms_of_single_heads() -> None:
    found = reasons("qwen3", **LLAMA_LIKE)
    assert "q_norm" in found["model.layers.0.self_attn"]
