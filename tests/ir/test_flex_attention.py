"""Attention backward through values by FlexAttention with the roles exchanged is what the definition says, fp64: 1e-12
of the largest. docs/gpu.md says why our own kernel runs and this does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

HEADS, LENGTH, WIDTH = 3, 21, 16


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_roles_exchanged(window: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, dy = (torch.randn(2, HEADS, LENGTH, WIDTH, dtype=torch.float64, generator=generator) for _ in range(3))
    at = torch.arange(LENGTH)
    seen = at[:, None] >= at
    if window:
        seen = seen & (at[:, None] - at < window)
    scores = (0.3 * q @ k.transpose(-1, -2)).masked_fill(~seen, -torch.inf)
    sums = scores.logsumexp(-1)

    def less_the_sum(score: Tensor, b: Tensor, h: Tensor, key: Tensor, query: Tensor) -> Tensor:
        return torch.where(seen[query, key], score - sums[b, h, query], -torch.inf)

    given = flex_attention(k, q, dy, score_mod=less_the_sum, scale=0.3, return_aux=AuxRequest(lse=True))
    assert isinstance(given, tuple)
    values, sums_of_keys = given
    wanted = scores.softmax(-1).transpose(-1, -2) @ dy
    assert sums_of_keys.lse is not None
    found = values * sums_of_keys.lse.exp()[..., None]
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-12
