"""Rules on hand-written decoders: each way of writing a norm, an activation, a projection, a rotation. fp64, 1e-9."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tiny_models import relative, token_ids
from torch import Tensor, nn

from tintc.errors import UnsupportedModelError
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.importer import import_graph
from tintc.ir.auxiliary.interpreter import forward, load
from tintc.ir.core import Op, Program
from tintc.ir.inputs import resolve_inputs
from tintc.reference.captured import run_captured

D, HEADS, VOCAB = 24, 3, 29


class Decoder(nn.Module):
    """Embedding, norm, attention, sum, activation, head; each part a function that a test may replace."""

    def __init__(
        self,
        norm: Callable[[Tensor, Tensor], Tensor] | None = None,
        act: Callable[[Tensor], Tensor] = F.relu,
        turn: Callable[[Tensor], Tensor] | None = None,
        causal: bool = True,
    ):
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(max_position_embeddings=16)
        self.embed = nn.Embedding(VOCAB, D)
        self.gain = nn.Parameter(torch.rand(D) + 0.5)
        self.qkv = nn.Linear(D, 3 * D)
        self.out = nn.Parameter(torch.randn(D, D))
        self.head = nn.Linear(D, VOCAB, bias=False)
        self.norm, self.act, self.turn, self.causal = norm, act, turn or (lambda heads: heads), causal

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        x = self.embed(input_ids)
        y = self.norm(x, self.gain) if self.norm else x
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(y).chunk(3, -1))
        a = F.scaled_dot_product_attention(self.turn(q), self.turn(k), v, is_causal=self.causal)
        x = x + a.transpose(1, 2).flatten(2) @ self.out
        return (self.head(self.act(x)),)


def imported(model: nn.Module) -> Program:
    """The program, checked against the exported graph."""
    graph = capture(model)
    program = import_graph(graph)
    ids = token_ids(2, 11, VOCAB)
    assert (
        relative(forward(program, load(program, graph.tensors), resolve_inputs(ids)), run_captured(graph, ids)) < 1e-9
    )
    return program


def only(program: Program, opname: str) -> Op:
    (op,) = [op for op in program.ops if op.opname == opname]
    return op


def reasons(model: nn.Module) -> str:
    with pytest.raises(UnsupportedModelError) as error:
        import_graph(capture(model))
    return str(error.value)


NORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rsqrt": lambda x, g: g * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)),
    "pow -0.5": lambda x, g: (x * (x.square().mean(-1, keepdim=True) + 1e-5) ** -0.5) * g,
    "sqrt and divide": lambda x, g: x / torch.sqrt(1e-5 + (x * x).mean(-1, keepdim=True)) * g,
    "reciprocal": lambda x, g: x * (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt().reciprocal() * g,
    "casts": lambda x, g: g * (x.double() * torch.rsqrt(x.double().pow(2).mean(2, True) + 1e-5)).float(),
    "fused": lambda x, g: F.rms_norm(x, (D,), g, 1e-5),
}


def test_rms_norms() -> None:
    """All spellings, one after the other in one decoder."""

    def normed(x: Tensor, gain: Tensor) -> Tensor:
        for norm in NORMS.values():
            x = norm(x, gain)
        return x

    norms = [op.attributes() for op in imported(Decoder(norm=normed)).ops if op.opname == "aux.norm"]
    assert norms == [{"kind": "rms", "eps": 1e-5, "weight": "gain"}] * len(NORMS)


def test_norms_without_gain_or_bias() -> None:
    assert only(imported(Decoder(norm=lambda x, g: F.layer_norm(x, (D,)))), "aux.norm").attributes()["kind"] == "layer"
    bare = Decoder(norm=lambda x, g: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))
    assert "weight" not in only(imported(bare), "aux.norm").attributes()


ACTS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "silu spelled out": ("silu", lambda x: x / (1 + torch.exp(-x))),
    "relu squared": ("relu2", lambda x: F.relu(x) ** 2),
    "quick gelu": ("quick_gelu", lambda x: x * torch.sigmoid(1.702 * x)),
    "gelu by erf": ("gelu", lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))),
    "gelu by tanh": (
        "gelu_tanh",
        lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3)))),
    ),
}


def test_activations_are_recognised_by_what_they_compute() -> None:
    """All spellings, one after the other in one decoder."""

    def act(x: Tensor) -> Tensor:
        for _, one in ACTS.values():
            x = one(x) * 2
        return x

    found = [op.attributes()["fn"] for op in imported(Decoder(act=act)).ops if op.opname == "aux.activation"]
    assert found == [name for name, _ in ACTS.values()]


def test_functions_that_are_no_activation() -> None:
    assert only(imported(Decoder(act=lambda x: x * 2)), "aux.scale").attributes()["factor"] == 2
    assert "none of the known activations" in reasons(Decoder(act=lambda x: torch.sin(x)))


def test_noise_is_looked_through() -> None:
    noisy = Decoder(act=lambda x: F.dropout(F.relu((x + 0).clone() * 1.0).reshape(-1, D), 0.5, False).view(x.shape))
    assert only(imported(noisy), "aux.activation").attributes()["fn"] == "relu"


def neighbours(heads: Tensor) -> Tensor:
    """Interleaved rotary embedding of the first six coordinates, frequencies computed on the spot."""
    position = torch.arange(heads.shape[2])[:, None] * torch.exp(-0.7 * torch.arange(3, dtype=torch.float64))
    cos, sin = position.cos().to(heads), position.sin().to(heads)
    a, b = heads[..., 0:6:2], heads[..., 1:6:2]
    return torch.cat((torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2), heads[..., 6:]), -1)


def test_interleaved_partial_rotation_with_derived_frequencies() -> None:
    attention = only(imported(Decoder(turn=neighbours)), "aux.attention").attributes()
    assert (attention["rotary_style"], attention["inv_freq"]) == ("interleaved", "constant.rotary.0")


def test_factors_of_q_and_k_go_into_the_scale() -> None:
    attention = only(imported(Decoder(turn=lambda heads: heads * 0.5)), "aux.attention").attributes()
    assert attention["scale"] == pytest.approx(0.25 * (D // HEADS) ** -0.5, rel=1e-12)


def test_attention_that_is_not_causal_or_not_a_rotation() -> None:
    assert "no causal mask" in reasons(Decoder(causal=False))
    assert "mix" in reasons(Decoder(turn=lambda heads: heads + heads.flip(-1)))
    assert "position" in reasons(Decoder(turn=lambda heads: heads * torch.arange(1, heads.shape[2] + 1)[:, None]))
    assert "aten.sin" in reasons(Decoder(turn=lambda heads: heads.sin()))
    assert reasons(Decoder(act=lambda x: torch.div(x, 2, rounding_mode="floor")))
