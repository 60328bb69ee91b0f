"""Scales, computed gains, norms written out, mixtures of activations: what becomes of them in a program."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_models import llama
from torch import Tensor, nn

from tintc.frontend.graph.elementwise import POINTS, agrees
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.importer import import_graph
from tintc.ir.auxiliary import Activation, Logits, Norm, Scale
from tintc.ir.auxiliary.interpreter import load
from tintc.ir.core import Program
from tintc.ir.functions import ACTIVATIONS
from tintc.lowering.passes.canonicalise import canonicalise


class Written(nn.Module):
    """A norm with its gain, as some models write it."""

    def __init__(self, write: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.weight, self.write = nn.Parameter(torch.randn(32)), write

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
    "power": ("rms", lambda w: w, lambda x, w: x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).pow(-0.5) * w),
    "root and division": ("rms", lambda w: w, lambda x, w: w * (x / (x * x).mean(-1, keepdim=True).add(1e-5).sqrt())),
    "one operation": ("rms", lambda w: w, lambda x, w: nn.functional.rms_norm(x, (32,), w, 1e-5)),
    "layer, one plus gain": ("layer", lambda w: w + 1, lambda x, w: nn.functional.layer_norm(x, (32,), w + 1)),
    "layer, written out": ("layer", lambda w: w, centred),
}


def program(model: nn.Module) -> tuple[Program, dict[str, Tensor]]:
    graph = capture(model, 16)
    imported = canonicalise(import_graph(graph))
    return imported, load(imported, graph.tensors)


@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str) -> None:
    kind, gain, write = NORMS[name]
    model = llama(n_layers=1)
    norm = model.model.norm = Written(write)
    found, tensors = program(model)
    (op,) = [op for op in found.ops if isinstance(op, Norm) and op.weight == "model.norm.weight"]
    assert (op.kind, op.eps) == (kind, 1e-5)
    assert torch.equal(tensors[op.weight], gain(norm.weight.detach().double()))


@pytest.mark.parametrize(("scale", "softcap"), [(0.25, 0.0), (1.0, 30.0), (0.5, 4.0)])
def test_logits_are_scaled_and_capped(scale: float, softcap: float) -> None:
    model = llama(n_layers=1)
    head = model.lm_head.forward

    def mapped(x: Tensor) -> Tensor:
        z = head(x) * scale
        return softcap * torch.tanh(z / softcap) if softcap else z

    model.lm_head.forward = mapped
    found, _ = program(model)
    (op,) = [op for op in found.ops if isinstance(op, Logits)]
    assert (op.scale, op.softcap) == pytest.approx((scale, softcap), rel=1e-12)
    assert not any(isinstance(op, Scale | Activation) for op in found.ops)


def test_scales_in_a_row_are_one() -> None:
    model = llama(n_layers=1)
    embed = model.model.embed_tokens.forward
    model.model.embed_tokens.forward = lambda ids: -(embed(ids) * 3.0) / 2.0
    found, _ = program(model)
    assert [op.factor for op in found.ops if isinstance(op, Scale)] == [-1.5]


def test_xielu_is_a_sum_of_three() -> None:
    positive, negative, beta = 0.8, 0.3, 0.5

    def xielu(x: Tensor) -> Tensor:
        below = (torch.expm1(torch.min(x, torch.tensor(-1e-6))) - x) * negative + beta * x
        return torch.where(x > 0, positive * x * x + beta * x, below)

    model = llama(n_layers=1)
    model.model.layers[0].mlp.act_fn.forward = xielu
    found, _ = program(model)
    mixed = {op.operands[0].name.rsplit(".", 1)[-1]: op.factor for op in found.ops if isinstance(op, Scale)}
    assert sorted(mixed.values()) == pytest.approx([negative, beta, positive], rel=1e-9)
    total = torch.zeros_like(POINTS) + sum(
        w * ACTIVATIONS[n](POINTS) for n, w in zip(("relu2", "negexp", "identity"), (0.8, 0.3, 0.5), strict=True)
    )
    away = POINTS.abs() > 1e-3
    assert agrees(xielu(POINTS)[away], total[away])
