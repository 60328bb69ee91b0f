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


