"""torch's own multi-head attention, written so that a graph of it has one vector per token everywhere.

`torch.nn.MultiheadAttention` moves the length in front of the batch and back, which is nothing but layout. While a
model is captured, it runs as below instead; that the program computes what the model does is compared afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import transformer

from tintc.frontend.graph.calling import replaced


@contextmanager
def batch_in_front(model: nn.Module) -> Iterator[None]:
    """Let every self-attention of torch's in the model keep the batch in front, and none look at what a mask holds."""
    own = transformer._detect_is_causal_mask
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.MultiheadAttention) and _is_plain(module):
                stack.enter_context(replaced(module, _attention_of(module)))
        transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: bool(is_causal)
        try:
            yield
        finally:
            transformer._detect_is_causal_mask = own


def _is_plain(module: nn.MultiheadAttention) -> bool:
    added = module.bias_k is not None or module.add_zero_attn
    return module.batch_first and module._qkv_same_embed_dim and not added


def _attention_of(module: nn.MultiheadAttention) -> Callable[..., Any]:
    """Return what the module computes for vectors ``[B, T, W]``, without the probabilities."""
    original = module.forward

    def forward(
        query: Tensor, key: Tensor, value: Tensor, *others: Any, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        if others or key is not query or value is not query or options.get("key_padding_mask") is not None:
            return original(query, key, value, *others, **options)
        mask = options.get("attn_mask")
        if mask is not None and mask.dim() != 2:
            return original(query, key, value, **options)
        heads = (module.num_heads, module.head_dim)
        joint = F.linear(query, module.in_proj_weight, module.in_proj_bias)
        q, k, v = (part.unflatten(-1, heads).transpose(1, 2) for part in joint.chunk(3, -1))
        if mask is not None and not mask.is_floating_point():
            mask = ~mask  # True is what a query does not see
        result = F.scaled_dot_product_attention(q, k, v, mask)
        return module.out_proj(result.transpose(1, 2).flatten(2)), None

    return forward
