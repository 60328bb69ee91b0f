"""TPTT (arXiv 2506.17671): a pretrained decoder whose attention is mixed with a delta rule, compiled by tintc.

    python examples/tptt.py path/to/llama [--order 2] [--rule linear] [--steps 120]

It puts a `LiZA` around the attention of every layer, trains adapters (LoRA) on texts that the decoder itself writes, as
the mixed-in part grows from 0.01 to 0.5, and compiles the result. Then it prints perplexities of the second halves of
other texts: before, after one simulated step on the first halves, and after a step of explicit tuning.
docs/tptt.md says what of the paper this is.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import tintc
from tintc.frontend.mixers.registry import mixers_as_nodes
from tintc.reference import Approximations, tune

EPS = 1e-6
RATE, LAYERS = 1e-4, 3
"""Of the simulated step: its rate, and how many layers at the top it updates."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


def unit(x: Tensor) -> Tensor:
    """Return vectors of length one."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPS)


def delta_product(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, subtracts: bool) -> Tensor:
    """Return ``y_t = S_t^T q_t``, ``[B, T, H, d]``, for q ``[B, T, H, d]``, k and v ``[B, T, H, n, d]`` and beta
    ``[B, T, H, n]``: every token writes n times, ``S <- S + beta k (v - S^T k)^T``, or without the subtraction."""
    q, k = unit(q), unit(k)
    state = v.new_zeros(*v.shape[:1], v.shape[2], k.shape[-1], v.shape[-1])
    rows = []
    for t in range(q.shape[1]):
        for m in range(k.shape[3]):
            key = k[:, t, :, m, :, None]
            new = v[:, t, :, m, None]
            if subtracts:
                new = new - (state * key).sum(-2, keepdim=True)
            state = state + beta[:, t, :, m, None, None] * key * new
        rows.append((state * q[:, t, :, :, None]).sum(-2))
    return torch.stack(rows, 1)


def as_recurrence(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, subtracts: bool) -> Tensor:
    """Return the same as `delta_product`, as one node of a graph."""
    no_decay = torch.zeros_like(beta[..., 0])
    return tintc.mixers.recurrence(q, k, v, no_decay, beta, delta=subtracts, unit_eps=EPS)


tintc.mixers.register(delta_product, as_recurrence)


class LiZA(nn.Module):
    """Softmax attention, and beside it a delta rule with the same projections; memory as gate mixes the two."""

    weight: Tensor
    differences: Tensor
    mean_of_heads: Tensor

    def __init__(self, attention: Any, heads: int, order: int, subtracts: bool):
        super().__init__()
        self.attention = attention
        self.heads = heads
        self.order = order
        self.subtracts = subtracts
        self.register_buffer("weight", torch.tensor(0.5))
        rows = torch.eye(order)  # row m: a difference of order m, over the sum of its coefficients' sizes
        for m in range(1, order):
            rows[m] = (rows[m - 1] - rows[m - 1].roll(1)) / 2
        self.register_buffer("differences", rows.flip(1))
        d = attention.head_dim
        self.register_buffer("mean_of_heads", torch.eye(heads).repeat_interleave(d, 1) / d)

    def by_write(self, x: Tensor) -> Tensor:
        """Return ``[B, T, H, n, d]`` of ``[B, T, H d]``: differences of order 0 to n - 1 of the tokens up to each."""
        heads = x.unflatten(-1, (self.heads, 1, -1)).expand(-1, -1, -1, self.order, -1)
        kernel = self.differences[None, :, None].expand(self.heads, -1, heads.shape[-1], -1)
        return tintc.mixers.convolution(heads.flatten(2), kernel.flatten(0, 2)).view(heads.shape)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> tuple[Tensor, Any]:
        base = self.attention
        seen, weights = base(hidden_states, attention_mask=attention_mask, **kwargs)
        q, k, v = (project(hidden_states) for project in (base.q_proj, base.k_proj, base.v_proj))
        q, k = F.silu(q), F.silu(k)
        groups = self.heads * base.head_dim // k.shape[-1]
        k, v = (x.unflatten(-1, (-1, base.head_dim)).repeat_interleave(groups, 2).flatten(2) for x in (k, v))
        beta = F.linear(k, self.mean_of_heads).sigmoid()
        if attention_mask is not None:  # [B, 1, T, T]: a token that is no padding sees itself
            real = attention_mask.diagonal(dim1=-2, dim2=-1).transpose(1, 2)
            if real.dtype != torch.bool:
                real = real == 0
            k, v, beta = k * real, v * real, beta * real
        strengths = self.by_write(beta)[..., 0]
        queries = q.unflatten(-1, (self.heads, -1))
        mixed = delta_product(queries, self.by_write(k), self.by_write(v), strengths, self.subtracts).flatten(2)
        mixed = mixed * torch.rsqrt(mixed.square().mean(-1, keepdim=True) + EPS)
        return self.weight * base.o_proj(mixed) + (1 - self.weight) * seen, weights


class LoRA(nn.Module):
    """A linear layer and an adapter of it: ``W x + 2 B A x``."""

    def __init__(self, base: nn.Linear, rank: int = 8):
        super().__init__()
        self.base = base
        self.a = nn.Linear(base.in_features, rank, bias=False)
        self.b = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2 * self.b(self.a(x))


def with_liza(model: Any, order: int, subtracts: bool) -> Any:
    """Put a `LiZA` around every attention of a llama, and an adapter on every projection."""
    model.requires_grad_(False)
    for layer in model.model.layers:
        attention = layer.self_attn
        for name in PROJECTIONS:
            setattr(attention, name, LoRA(getattr(attention, name)))
        layer.self_attn = LiZA(attention, model.config.num_attention_heads, order, subtracts)
    return model


@torch.no_grad()
def written(model: Any, n: int, length: int, seed: int) -> Tensor:
    """Return n texts ``[n, length]`` that the model writes."""
    torch.manual_seed(seed)
    start = torch.full((n, 1), model.config.bos_token_id)
    mask = torch.ones_like(start)
    text = model.generate(start, attention_mask=mask, do_sample=True, min_length=length, max_length=length, top_k=0)
    return text[:, :length]


def train_adapters(model: Any, texts: Tensor, steps: int, batch: int = 8, lr: float = 5e-3) -> None:
    """Train the adapters, while the share of the delta rule grows from 0.01 to 0.5."""
    lizas = [layer.self_attn for layer in model.model.layers]
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr, weight_decay=0.0)
    for step in range(steps):
        for liza in lizas:
            liza.weight.fill_(0.01 + 0.49 * step / max(1, steps - 1))
        rows = texts.roll(-step * batch, 0)[:batch]
        with mixers_as_nodes(model):  # what stands for the loop over tokens takes many at once
            loss = model(rows, labels=rows, use_cache=False).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def perplexity(logits: Tensor, texts: Tensor) -> float:
    """Return the perplexity of the second halves of texts."""
    half = texts.shape[1] // 2
    predicted = logits[:, half - 1 : -1].float()
    return float(F.cross_entropy(predicted.flatten(0, 1), texts[:, half:].flatten()).exp())


def run(folder: str, order: int, subtracts: bool, steps: int, length: int = 128, n: int = 16) -> dict[str, float]:
    """Return perplexities by name."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    texts = written(model, 4 * steps, length, seed=0)
    held = written(model, n, length, seed=1)
    found: dict[str, float] = {}
    with torch.no_grad():
        found["the decoder"] = perplexity(model(held).logits, held)
        with_liza(model, order, subtracts)
        found["with LiZA, not trained"] = perplexity(model(held).logits, held)
    train_adapters(model, texts, steps)
    sim = tintc.compile(model.eval(), max_length=length, inner_lr=RATE, n_update_layers=LAYERS)
    with torch.no_grad():
        out = sim(held, return_before=True)
    mask = torch.arange(length)[None].expand(n, -1) < length // 2
    exact = Approximations()  # autograd's gradient, attention scores included
    tuned = tune(model, held, mask, inner_lr=RATE, n_update_layers=LAYERS, approximations=exact)
    found["before"] = perplexity(out.logits_before, held)
    found["after a simulated step"] = perplexity(out.logits, held)
    found["after a step of explicit tuning"] = perplexity(tuned.logits, held)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a llama")
    parser.add_argument("--order", type=int, default=1, help="how often a token writes")
    parser.add_argument("--rule", choices=("delta", "linear"), default="delta", help="linear: nothing is subtracted")
    parser.add_argument("--steps", type=int, default=120, help="of the adapters' training")
    arguments = parser.parse_args()
    for name, value in run(arguments.folder, arguments.order, arguments.rule == "delta", arguments.steps).items():
        print(f"{name:34}{value:8.3f}")


if __name__ == "__main__":
    main()
