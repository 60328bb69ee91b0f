"""Mixtures that multiply every token with every expert: fp64, 1e-9 relative to the model with its casts dropped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import relative, token_ids
from torch import Tensor, nn
from transformers import PreTrainedModel

from tintc.errors import UnsupportedModelError
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.captured_experts import CapturedExperts
from tintc.frontend.graph.evaluation import opname
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.importer import import_graph
from tintc.ir.auxiliary import Combine, Experts, Route, Spread
from tintc.ir.auxiliary.interpreter import Descent, forward, load, simulate, view
from tintc.ir.core import Program
from tintc.ir.functions import FiniteDifference
from tintc.ir.inputs import resolve_inputs
from tintc.lowering.passes.assign_layers import assign_layers
from tintc.lowering.passes.canonicalise import canonicalise
from tintc.reference import Approximations, Difference, tune
from tintc.reference.captured import run_captured
from tools.sweep.tiny import VOCAB, tiny_model

DTYPE = torch.float64


@cache
def model() -> PreTrainedModel:
    """Return a layer of five experts, of which a token takes two."""
    return tiny_model(
        "llama4_text", num_hidden_layers=1, layer_types=["full_attention"], num_local_experts=5, num_experts_per_tok=2
    ).double()


@cache
def graph() -> CapturedGraph:
    return capture(model(), 32)


@cache
def program() -> Program:
    return assign_layers(canonicalise(import_graph(graph())))


def without_casts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model's router, norms and tables of angles stay in fp64."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)


def test_every_mixture_is_one_node_and_nothing_of_it_is_left() -> None:
    nodes = list(graph().module.graph.nodes)
    assert sum(isinstance(node.target, CapturedExperts) for node in nodes) == 1
    assert not any(opname(node) in ("bmm", "sum", "repeat") for node in nodes)
    ops = program().ops
    assert [op.weighted for op in ops if isinstance(op, Spread)] == [True]
    assert [op.weighted for op in ops if isinstance(op, Combine)] == [False]
    routes = [op.options() for op in ops if isinstance(op, Route)]
    assert all(options["scores"] == "sigmoid" and options["chosen"] == 2 for options in routes)
    stacks = [program().parameters[op.weight] for op in ops if isinstance(op, Experts)]
    assert len(stacks) == 3 and all(stack.transpose and stack.stacked for stack in stacks)


def test_logits_are_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = token_ids(3, 13, VOCAB)
    logits = forward(program(), load(program(), graph().tensors), resolve_inputs(ids))
    with torch.no_grad():
        assert relative(logits, run_captured(graph(), ids)) < 1e-9
        without_casts(monkeypatch)
        assert relative(logits, model()(ids, use_cache=False).logits) < 1e-9


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(side: str) -> None:
    """1e-5: the eager model drops to fp32 in places."""
    ids = token_ids(2, 11, VOCAB)
    real = slice(3, None)
    if side == "right":
        real = slice(None, -3)
    valid = torch.zeros_like(ids)
    valid[:, real] = 1
    inputs = resolve_inputs(ids, attention_mask=valid)
    logits = forward(program(), load(program(), graph().tensors), inputs)
    with torch.no_grad():
        given = {"attention_mask": valid, "position_ids": inputs.position_ids, "use_cache": False}
        assert relative(logits[:, real], model()(ids, **given).logits[:, real]) < 1e-5


def test_tuning_is_autograd_of_the_model() -> None:
    """With the gradients of the router's weights; 1e-5 of all gradients, for the model drops to fp32 in places."""
    ids = token_ids(1, 9, VOCAB)
    found = tune(graph(), ids, torch.ones_like(ids), approximations=Approximations(router=False)).gradients[0]
    with torch.enable_grad():
        logits = model()(ids, use_cache=False).logits
        loss = F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")
        wanted = dict(model().named_parameters())
        gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True, materialize_grads=True)
    total = torch.stack([gradient.norm() for gradient in gradients]).norm()
    for key, gradient in zip(wanted, gradients, strict=True):
        assert float((found[key][0] - gradient).norm() / total) < 1e-5, key
    assert any(key.endswith("router.weight") and bool(value.any()) for key, value in found.items())


def test_tuning_with_all_approximations_is_the_interpreter() -> None:
    """The weights of the router, which multiply the input, are constants; every gradient to 1e-9 of all of them."""
    ids = token_ids(2, 10, VOCAB)
    mask = (torch.arange(10) < 6).expand(2, 10)
    difference = Difference("token", 1e-3)
    approximations = replace(Approximations.of(), norms=difference, activations=difference)
    tuned = tune(graph(), ids, mask, approximations=approximations).gradients[0]
    tensors = load(program(), graph().tensors)
    descent = Descent(1.0, difference=FiniteDifference("token", 1e-3))
    _, _, updated = simulate(program(), tensors, resolve_inputs(ids, mask), descent)
    total = torch.stack([gradient.norm() for gradient in tuned.values()]).norm()
    stacks = 0
    for key, tensor in tensors.items():
        parameter = program().parameters[key]
        if parameter.source not in tuned or updated[key] is tensor:
            continue
        right = torch.stack([view(parameter, gradient) for gradient in tuned[parameter.source]])
        assert float((tensor - updated[key] - right).norm() / total) < 1e-9, key
        stacks += parameter.stacked
    assert stacks == 3


class Mixture(nn.Module):
    """A dense mixture in a residual stream, with the gate and the matrices' layout that a test asks for."""

    def __init__(self, gate: Callable[[Tensor], Tensor], transposed: bool):
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> nn.Parameter:
            return nn.Parameter(0.3 * torch.randn(*shape, generator=generator, dtype=DTYPE))

        self.experts, self.width = 4, 12
        self.router = random(4, 12)
        self.up = random(4, 12, 10)
        self.down = random(4, 5, 12)
        if not transposed:
            self.up = random(4, 10, 12)
            self.down = random(4, 12, 5)
        self.gate, self.transposed = gate, transposed

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.width)
        logits = F.linear(rows, self.router)
        values, index = logits.topk(2, -1)
        weights = torch.zeros_like(logits).scatter(1, index, values.softmax(-1))
        up, down = self.up, self.down
        if not self.transposed:
            up, down = up.transpose(1, 2), down.transpose(-1, -2)
        hidden = torch.matmul(rows[None] * weights.t()[:, :, None], up)
        return torch.bmm(self.gate(hidden), down).sum(0).view(x.shape)


def clipped(hidden: Tensor) -> Tensor:
    gate, up = hidden.split(5, -1)
    return F.gelu(gate).clamp(max=0.4) * up


class Decoder(nn.Module):
    """An attention and a mixture."""

    def __init__(self, mixture: nn.Module):
        super().__init__()
        self.table = nn.Embedding(VOCAB, 12, dtype=DTYPE)
        self.mixer = nn.Linear(12, 36, dtype=DTYPE)
        self.out = nn.Linear(12, 12, dtype=DTYPE)
        self.experts = mixture
        self.head = nn.Linear(12, VOCAB, dtype=DTYPE)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.table(input_ids)
        q, k, v = (part[:, None] for part in self.mixer(x).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0])
        return self.head(x + self.experts(x))


@pytest.mark.parametrize("transposed", [True, False])
def test_other_spellings(transposed: bool) -> None:
    """A softmax over the chosen, matrices stored either way, a clipped gate; 1e-9."""
    decoder = Decoder(Mixture(clipped, transposed))
    captured = capture(decoder, 32)
    found = canonicalise(import_graph(captured))
    ids = token_ids(2, 9, VOCAB)
    with torch.no_grad():
        assert relative(forward(found, load(found, captured.tensors), resolve_inputs(ids)), decoder(ids)) < 1e-9
    (route,) = [op for op in found.ops if isinstance(op, Route)]
    assert (route.scores, route.normalise, route.chosen) in (("softmax", "sum", 2), ("identity", "softmax", 2))


def over_experts(hidden: Tensor) -> Tensor:
    return hidden[..., :5] - hidden[..., :5].mean(0, keepdim=True)


def one_at_nothing(hidden: Tensor) -> Tensor:
    return hidden[..., :5].cos()


@pytest.mark.parametrize("gate", [over_experts, one_at_nothing])
def test_what_is_no_mixture_is_left_and_refused(gate: Any) -> None:
    """A function that mixes the experts, and one by which experts that are not chosen add to the sum."""
    captured = capture(Decoder(Mixture(gate, True)), 32)
    assert not any(isinstance(node.target, CapturedExperts) for node in captured.module.graph.nodes)
    with pytest.raises(UnsupportedModelError, match="it has a mixture of experts that"):
        import_graph(captured)
