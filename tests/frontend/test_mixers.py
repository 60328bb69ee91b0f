"""Recurrences and convolutions of transformers' models and of others: captured as nodes, imported, compiled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from programs import check_agreement, import_model, three_ways
from tiny_models import token_ids
from torch import Tensor, nn
from transformers.models.qwen3_5 import modeling_qwen3_5

import tintc
from tintc import mixers
from tintc.compiler import agreeing
from tintc.errors import OptionError, UnsupportedModelError
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.importer import import_graph
from tintc.frontend.mixers import ops
from tintc.frontend.mixers.registry import REGISTERED, mixers_as_nodes
from tintc.frontend.source.load import load_auxiliary
from tintc.ir.auxiliary import Pointwise, Recurrence
from tintc.ir.auxiliary.interpreter import Descent
from tintc.reference import Approximations, tune
from tintc.reference.verify import verify
from tools.sweep.tiny import tiny_model

ONE_LAYER = {"num_hidden_layers": 1}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gated delta rule": ("qwen3_5_text", {**ONE_LAYER, "layer_types": ["linear_attention"], "intermediate_size": 75}),
    "delta rule by coordinate": ("kimi_linear", {}),
    "state space": ("mamba2", {**ONE_LAYER, "n_groups": 2, "time_step_limit": (0.05, 0.6)}),
    "state space beside attention": ("falcon_h1", {}),
    "selective scan": ("mamba", {"intermediate_size": 20, "state_size": 4, "time_step_rank": 5}),
    "convolution": ("lfm2", {"intermediate_size": 75, "block_auto_adjust_ff_dim": False}),
}
FEW = ("state space",)
"""Kinds that every run of the tests compiles; `test_odd_mixers` compiles others."""
IDS = token_ids(1, 16, 97)


@pytest.mark.parametrize(
    "kind", [kind if kind in FEW else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_compiles_and_descends_as_the_graph(kind: str) -> None:
    """The logits agree with padding on either side; one step, 1e-9 of the update between all ways to execute and 1e-3
    from explicit tuning of the graph (fp64)."""
    name, options = KINDS[kind]
    imported = import_model(tiny_model(name, **options))
    imported = replace(imported, auxiliary=agreeing(imported.auxiliary, imported.source))
    sim = imported.compile(inner_lr=1e-2)
    program = imported.auxiliary.program
    found = three_ways(sim, program, imported.tensors, IDS, Descent(1e-2))
    check_agreement(found)
    before, after = found["literal"]
    graph = imported.auxiliary.graph
    tuned = tune(graph, IDS, torch.arange(16)[None] < 8, inner_lr=1e-2, approximations=Approximations.of())
    assert float((after - tuned.logits).norm() / (after - before).norm()) < 1e-3


def test_one_node_for_every_call() -> None:
    name, options = KINDS["gated delta rule"]
    graph = capture(tiny_model(name, **options), 32)
    targets = [node.target for node in graph.module.graph.nodes]
    assert targets.count(ops.recurrence_of_tokens) == targets.count(ops.convolution_of_tokens) == 1


def test_functions_of_transformers_come_back() -> None:
    kept = modeling_qwen3_5.causal_conv1d_fn
    with pytest.raises(ZeroDivisionError), mixers_as_nodes(tiny_model("qwen3_5_text")):
        assert modeling_qwen3_5.causal_conv1d_fn is not kept
        raise ZeroDivisionError
    assert modeling_qwen3_5.causal_conv1d_fn is kept


def test_decays_are_recognised_by_what_they_compute() -> None:
    """softplus with a time step's bias and a decay's rate; a sigmoid times two."""
    program = import_graph(capture(tiny_model("olmo_hybrid"), 32))
    decay, strength = (op for op in program.ops if isinstance(op, Pointwise))
    assert (decay.fn, bool(decay.shift), bool(decay.gain)) == ("softplus", True, True)
    assert (strength.fn, strength.shift) == ("sigmoid", "")


def running_mean(x: Tensor, strength: Tensor, *, decay: Tensor) -> Tensor:
    """Return ``y_t = decay y_(t-1) + strength_t x_t``, ``[B, T, C]``, for strengths ``[B, T, C]`` and a decay ``[C]``:
    of somebody's package, in a loop that export cannot follow."""
    y = torch.zeros_like(x[:, 0])
    rows = []
    for t in range(x.shape[1]):
        y = decay * y + strength[:, t] * x[:, t]
        rows.append(y)
    return torch.stack(rows, 1)


def as_recurrence(x: Tensor, strength: Tensor, *, decay: Tensor) -> Tensor:
    """What `running_mean` computes: a recurrence of one head a channel, with queries and keys of one."""
    one = torch.ones_like(x[..., :1]).unsqueeze(2)
    g = torch.log(decay).expand_as(strength)
    return mixers.recurrence(one, one, x.unsqueeze(-1), g, strength).squeeze(-1)


class Ours(nn.Module):
    """A decoder outside transformers, whose one layer mixes tokens by a convolution and by `running_mean`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 12)
        self.inner = nn.Linear(12, 12)
        self.strength = nn.Linear(12, 12)
        self.out = nn.Linear(12, 12)
        self.head = nn.Linear(12, 11, bias=False)
        self.weight = nn.Parameter(torch.randn(12, 3))
        self.rate = nn.Parameter(torch.rand(12))

    def forward(self, ids: Tensor) -> Any:
        x = self.embed(ids)
        values = mixers.convolution(F.silu(self.inner(x)), self.weight)
        mixed = running_mean(values, self.strength(x).sigmoid(), decay=torch.exp(-self.rate))
        return SimpleNamespace(logits=self.head(x + self.out(mixed)))


def test_registered_function_of_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits as the module's own, and all ways to execute agree (fp64, 1e-9)."""
    monkeypatch.setitem(REGISTERED, running_mean, as_recurrence)
    mixers.register(running_mean, as_recurrence)
    torch.manual_seed(0)
    model = Ours().double().eval()
    imported = import_model(model)
    ids = token_ids(2, 9, 11)
    sim = imported.compile(inner_lr=0.1)
    with torch.no_grad():
        torch.testing.assert_close(sim(ids, return_before=True).logits_before, model(ids).logits, rtol=0, atol=1e-9)
    check_agreement(three_ways(sim, imported.auxiliary.program, imported.tensors, ids, Descent(0.1)))
    roles = {op.attributes().get("weight", ""): op.attributes().get("role") for op in imported.auxiliary.program.ops}
    assert (roles["inner.weight"], roles["strength.weight"], roles["out.weight"]) == ("value", "gate", "output")


def test_register_refuses_an_unknown_kind() -> None:
    with pytest.raises(OptionError, match="choose one of gated_delta_rule, kda, state_space"):
        mixers.register("f", "lstm")
    assert "f" not in REGISTERED


def test_recurrence_outside_of_an_export_is_the_loop() -> None:
    """The delta rule of one head by its recurrence, state by state (fp64, 1e-12), and differentiable."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 5, 1, 3, dtype=torch.float64) for _ in range(3))
    g = -torch.rand(1, 5, 1, dtype=torch.float64)
    beta = torch.rand(1, 5, 1, dtype=torch.float64, requires_grad=True)
    state = torch.zeros(3, 3, dtype=torch.float64)
    rows = []
    for t in range(5):
        state = state * g[0, t, 0].exp()
        u = beta[0, t, 0] * (v[0, t, 0] - k[0, t, 0] @ state)
        state = state + torch.outer(k[0, t, 0], u)
        rows.append(q[0, t, 0] @ state)
    y = mixers.recurrence(q, k, v, g, beta, delta=True)
    torch.testing.assert_close(y[0, :, 0], torch.stack(rows), rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(y.sum(), beta)
    assert gradient.abs().sum() > 0


def test_heads_with_projections_of_their_own_are_one_layer() -> None:
    """Zeros off the diagonal; and where such a layer makes values, which descend, it is refused."""
    model: Any = tiny_model("zamba", layers_block_type=["hybrid", "hybrid"], num_hidden_layers=2)
    graph = capture(model, 32)
    program = import_graph(graph)
    mixer = model.model.layers[0].mamba_decoder.mamba
    source = program.parameters["model.layers.0.mamba_decoder.mamba.x_proj_weight"].source
    wanted = torch.block_diag(*mixer.x_proj_weight.detach().double())
    torch.testing.assert_close(graph.tensors[source], wanted, rtol=0, atol=1e-12)
    assert sum(isinstance(op, Recurrence) for op in program.ops) == 4, "two heads in each of two layers"
    with pytest.raises(UnsupportedModelError, match="every head has a linear layer of its own"):
        import_graph(capture(PerHead(), 32))


class PerHead(Ours):
    """Each half of what the convolution reads is multiplied with a matrix of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.randn(2, 1, 6, 6))

    def forward(self, ids: Tensor) -> Any:
        x = self.embed(ids)
        heads = (self.own @ self.inner(x).unflatten(-1, (2, 6)).permute(2, 0, 3, 1)).permute(1, 3, 0, 2).flatten(2)
        one = torch.ones_like(x[..., :1]).unsqueeze(2)
        g = -self.rate.exp().expand_as(x)
        mixed = mixers.recurrence(one, one, heads.unsqueeze(-1), g, self.strength(x).sigmoid()).squeeze(-1)
        return SimpleNamespace(logits=self.head(x + self.out(mixed)))


def test_recurrence_op_is_in_the_program() -> None:
    name, options = KINDS["state space"]
    program = import_graph(capture(tiny_model(name, **options), 32))
    found = [op for op in program.ops if isinstance(op, Recurrence)]
    assert len(found) == 1 and found[0].skip and not found[0].delta


def test_a_folder_of_biases_is_loaded_and_verified(tmp_path: Path) -> None:
    """Padding reads as the projections' biases there, of which the graph says nothing; fp32, `verify`'s tolerances."""
    torch.manual_seed(0)
    model = tiny_model("mamba2", **ONE_LAYER, n_groups=2, use_bias=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3)
    sim = tintc.compile(model, max_length=32, output=tmp_path / "sim")
    mask = torch.ones_like(IDS)
    mask[:, :3] = 0
    with torch.no_grad():
        before = sim(IDS, attention_mask=mask, return_before=True).logits_before[:, 3:]
        right = model(IDS, attention_mask=mask).logits[:, 3:]
    torch.testing.assert_close(before, right, rtol=0, atol=1e-5)
    source = load_auxiliary(model, sim.layout.max_length)
    result = verify(str(tmp_path / "sim"), sim, source, IDS[0], 8)
    assert not result.problems and result.update_cosine > 0.999
