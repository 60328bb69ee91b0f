"""Decoders as people write them, each part spelled in ways that are none of transformers'."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_models import relative, token_ids
from torch import Tensor, nn

from tintc.frontend.source.load import load_auxiliary
from tintc.ir.auxiliary import Attention
from tintc.ir.auxiliary.interpreter import forward, loading
from tintc.ir.inputs import resolve_inputs
from tintc.stages import import_auxiliary

VOCAB, WIDTH, HEADS, LENGTH = 23, 12, 2, 16
SIZE = WIDTH // HEADS


class Decoder(nn.Module):
    """One block; subclasses spell a part of it otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.max_seq_len = LENGTH
        self.tokens = nn.Embedding(VOCAB, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 20), nn.GELU(), nn.Linear(20, WIDTH))
        self.head = nn.Linear(WIDTH, VOCAB)
        self.positions = nn.Parameter(torch.randn(LENGTH, WIDTH))
        self.more()

    def more(self) -> None:
        """Make what a subclass has besides."""

    def embed(self, ids: Tensor) -> Tensor:
        return self.tokens(ids) + self.positions[: ids.shape[1]]

    def rotate(self, x: Tensor) -> Tensor:
        return x

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, SIZE)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.attention(self.norms[0](x))
        x = x + self.mlp(self.norms[1](x))
        return self.head(self.norms[2](x))


class Looked(Decoder):
    """Rows of a table without a batch, which is put in front of them."""

    def more(self) -> None:
        self.table = nn.Embedding(LENGTH, WIDTH)

    def embed(self, ids: Tensor) -> Tensor:
        return self.tokens(ids) + self.table(torch.arange(ids.shape[1]))[None]


class Complex(Decoder):
    """Rotary embedding by complex numbers, from a table that is no buffer."""

    def more(self) -> None:
        angles = torch.outer(torch.arange(LENGTH), 100.0 ** -(torch.arange(0, SIZE, 2) / SIZE))
        self.turns = torch.polar(torch.ones_like(angles), angles)

    def rotate(self, x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * self.turns[: x.shape[2]]).flatten(-2).type_as(x)


class HeadByHead(Decoder):
    """A module for each head, and their results side by side."""

    def more(self) -> None:
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 3 * SIZE, bias=False) for _ in range(HEADS))
        self.register_buffer("tril", torch.tril(torch.ones(LENGTH, LENGTH)))

    def attention(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        results: list[Tensor] = []
        for head in self.heads:
            q, k, v = head(x).chunk(3, -1)
            scores = q @ k.transpose(-2, -1) / math.sqrt(SIZE)
            scores = scores.masked_fill(self.tril[:length, :length] == 0, -torch.inf)  # pyright: ignore[reportIndexIssue]
            results.append(scores.softmax(-1) @ v)
        return self.out(torch.cat(results, -1))


class Multihead(Decoder):
    """torch's own attention, with a mask of what is not seen."""

    def more(self) -> None:
        self.inner = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def attention(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        unseen = torch.ones(length, length, dtype=torch.bool).triu(1)
        return self.inner(x, x, x, attn_mask=unseen)[0]


class Encoder(Decoder):
    """torch's own blocks, with a mask that is added; norms before the parts, or behind them."""

    norm_first = True

    def more(self) -> None:
        block = nn.TransformerEncoderLayer(WIDTH, HEADS, 20, batch_first=True, norm_first=self.norm_first)
        self.blocks = nn.TransformerEncoder(block, 1, enable_nested_tensor=False)

    def forward(self, ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], dtype=torch.float64)
        return self.head(self.blocks(self.embed(ids), mask=mask))


class EncoderBehind(Encoder):
    norm_first = False


TOLERANCES: dict[type[Decoder], float] = {Complex: 1e-6}
"""Of logits in fp64, relative; the table of Complex is in single precision. Measured 2e-16 to 5e-15, and 4e-8."""


@pytest.mark.parametrize("kind", [Decoder, Looked, Complex, HeadByHead, Multihead, Encoder, EncoderBehind])
@torch.no_grad()
def test_spellings(kind: type[Decoder]) -> None:
    torch.manual_seed(0)
    model = kind().double().eval()
    ids = token_ids(2, 11, VOCAB)
    source = load_auxiliary(model)
    auxiliary = import_auxiliary(source)
    tensors = loading(auxiliary.program, auxiliary.tensors, torch.float64, ids.device)
    logits = forward(auxiliary.program, tensors, resolve_inputs(ids))
    assert source.max_length == LENGTH
    assert any(isinstance(op, Attention) for op in auxiliary.program.ops)
    assert relative(logits, model(ids)) < TOLERANCES.get(kind, 1e-12)
