"""Decoders that are written without transformers' own parts: nanoGPT's spelling, and inputs that are not used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

import tintc
from tintc.errors import ModelError

WIDTH, HEADS, LENGTH, VOCAB = 12, 2, 32, 23


class NanoConfig(PretrainedConfig):
    model_type = "nano"

    def __init__(self, **kwargs: Any):
        self.num_hidden_layers, self.vocab_size, self.max_position_embeddings = 1, VOCAB, LENGTH
        super().__init__(**kwargs)


class Nano(PreTrainedModel, GenerationMixin):
    """nanoGPT with one block: positions are ``[T, D]``, without a dimension for the batch."""

    config_class = NanoConfig
    uses: frozenset[str] = frozenset({"attention_mask", "position_ids"})

    def __init__(self, config: NanoConfig):
        super().__init__(config)
        torch.manual_seed(0)
        self.wte, self.wpe = nn.Embedding(VOCAB, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.ln, self.ln_f = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> CausalLMOutput:
        batch, length = input_ids.shape
        positions = torch.arange(length)
        if position_ids is not None and "position_ids" in self.uses:
            positions = position_ids
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        if attention_mask is not None and "attention_mask" in self.uses:
            mask = mask & attention_mask[:, None, None, :].bool()
        x = self.wte(input_ids) + self.wpe(positions)
        parts = self.c_attn(self.ln(x)).split(WIDTH, dim=2)
        q, k, v = (part.view(batch, length, HEADS, WIDTH // HEADS).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.c_proj(y.transpose(1, 2).contiguous().view(batch, length, WIDTH))
        return CausalLMOutput(logits=self.lm_head(self.ln_f(x)))


class Maskless(Nano):
    uses = frozenset({"position_ids"})


class Placeless(Nano):
    uses = frozenset({"attention_mask"})


def test_positions_without_a_dimension_for_the_batch() -> None:
    """Its logits before the update are the model's: fp32, 1e-5."""
    model = Nano(NanoConfig()).eval()
    ids = torch.randint(0, VOCAB, (3, 13), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = tintc.compile(model)(ids, return_before=True).logits_before
        assert torch.allclose(found, model(ids).logits, atol=1e-5)


@pytest.mark.parametrize(("kind", "unused"), [(Maskless, "attention_mask"), (Placeless, "position_ids")])
def test_inputs_that_a_model_ignores_are_named(kind: type[Nano], unused: str) -> None:
    with pytest.raises(ModelError, match=f"because it ignores {unused}, and so gives other logits") as refused:
        tintc.compile(kind(NanoConfig()))
    assert "report" not in str(refused.value)
