"""Scales, computed gains, norms written out, mixtures of activations: what becomes of them in a program."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tintc.frontend.graph.elementwise import POINTS, agrees
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.importer import import_graph
from tintc.ir.auxiliary import Activation, Logits, Norm, Scale
from tintc.ir.auxiliary.interpreter import load
from tintc.ir.core import Program
from tintc.ir.functions import ACTIVATIONS
from tintc.lowering.passes.canonicalise import canonicalise

VOCAB, WIDTH = 29, 32


class Decoder(nn.Module):
    """Embedding, attention, activation between two layers, norm, head: what tests look at they may replace."""

    def __init__(
        self,
        norm: nn.Module | None = None,
        act: Callable[[Tensor], Tensor] = F.silu,
        embedded: Callable[[Tensor], Tensor] = lambda x: x,
        mapped: Callable[[Tensor], Tensor] = lambda z: z,
    ):
        super().__init__()
        self.embed, self.qkv, self.out = (
            nn.Embedding(VOCAB, WIDTH),
            nn.Linear(WIDTH, 3 * WIDTH),
            nn.Linear(WIDTH, WIDTH),
        )
        self.up, self.down = nn.Linear(WIDTH, 45), nn.Linear(45, WIDTH)
        self.norm, self.head = norm or nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB, bias=False)
        self.act, self.embedded, self.mapped = act, embedded, mapped

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedded(self.embed(input_ids))
        q, k, v = (part[:, None] for part in self.qkv(x).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0])
        x = x + self.down(self.act(self.up(x)))
        return self.mapped(self.head(self.norm(x)))


class Written(nn.Module):
    """A norm with its gain, as some models write it."""

    def __init__(self, write: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.weight, self.write = nn.Parameter(torch.randn(WIDTH)), write

    def forward(self, x: Tensor) -> Tensor:
        return self.write(x, self.weight)


def centred(x: Tensor, w: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


NORMS: dict[str, tuple[str, Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "one plus gain": (
        "rms",
        lambda w: 1 + w,
        lambda x, w: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * (1.0 + w.float()),
    ),
    "layer, one plus gain": ("layer", lambda w: w + 1, lambda x, w: F.layer_norm(x, (WIDTH,), w + 1)),
    "layer, written out": ("layer", lambda w: w, centred),
}


def program(model: nn.Module) -> tuple[Program, dict[str, Tensor]]:
    graph = capture(model, 16)
    imported = canonicalise(import_graph(graph))
    return imported, load(imported, graph.tensors)


@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str) -> None:
    kind, gain, write = NORMS[name]
    norm = Written(write)
    found, tensors = program(Decoder(norm))
    (op,) = [op for op in found.ops if isinstance(op, Norm) and op.weight == "norm.weight"]
    assert (op.kind, op.eps) == (kind, 1e-5)
    assert torch.equal(tensors[op.weight], gain(norm.weight.detach().double()))


@pytest.mark.parametrize(("scale", "softcap"), [(0.25, 0.0), (1.0, 30.0), (0.5, 4.0)])
def test_logits_are_scaled_and_capped(scale: float, softcap: float) -> None:

    def mapped(z: Tensor) -> Tensor:
        z = z * scale
        return softcap * torch.tanh(z / softcap) if softcap else z

    found, _ = program(Decoder(mapped=mapped, act=F.relu))
    (op,) = [op for op in found.ops if isinstance(op, Logits)]
    assert (op.scale, op.softcap) == pytest.approx((scale, softcap), rel=1e-12)
    assert [type(op) for op in found.ops if isinstance(op, Scale | Activation)] == [Activation], "between the layers"


def test_scales_in_a_row_are_one() -> None:
    found, _ = program(Decoder(embedded=lambda x: -(x * 3.0) / 2.0))
    assert [op.factor for op in found.ops if isinstance(op, Scale)] == [-1.5]


def test_xielu_is_a_sum_of_three() -> None:
    positive, negative, beta = 0.8, 0.3, 0.5

    def xielu(x: Tensor) -> Tensor:
        below = (torch.expm1(torch.min(x, torch.tensor(-1e-6))) - x) * negative + beta * x
        return torch.where(x > 0, positive * x * x + beta * x, below)

    found, _ = program(Decoder(act=xielu))
    mixed = {op.operands[0].name.rsplit(".", 1)[-1]: op.factor for op in found.ops if isinstance(op, Scale)}
    assert sorted(mixed.values()) == pytest.approx([negative, beta, positive], rel=1e-9)
    total = torch.zeros_like(POINTS) + sum(
        w * ACTIVATIONS[n](POINTS) for n, w in zip(("relu2", "negexp", "identity"), (0.8, 0.3, 0.5), strict=True)
    )
    away = POINTS.abs() > 1e-3
    assert agrees(xielu(POINTS)[away], total[away])
