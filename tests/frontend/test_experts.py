"""Mixtures of experts enter as one node a layer, whose router is read by what it computes.

fp64 throughout. 1e-9 relative to the exported graph with its casts dropped; 1e-5 to the eager model, whose
routers, norms and rotary tables drop to fp32.
"""

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
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from tintc.errors import UnsupportedModelError
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.captured_experts import EAGER, expert_modules, experts_computed_by
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.importer import import_graph
from tintc.ir.auxiliary import Experts, Linear, Route
from tintc.ir.auxiliary.interpreter import Descent, forward, load, simulate, view
from tintc.ir.core import Program
from tintc.ir.functions import FiniteDifference
from tintc.ir.inputs import resolve_inputs
from tintc.ir.text import parse_program, print_program
from tintc.lowering.passes.assign_layers import assign_layers
from tintc.lowering.passes.canonicalise import canonicalise
from tintc.reference import Approximations, Difference, tune
from tintc.reference.captured import run_captured
from tools.sweep.tiny import VOCAB, tiny_model

SMALL = {"num_hidden_layers": 1, "num_experts_per_tok": 2}
ONE_LAYER = {"layer_types": ["full_attention"]}
TYPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mixtral": ({"num_local_experts": 5}, {"normalise": "sum"}),
    "qwen2_moe": ({"num_experts": 6, "norm_topk_prob": False}, {}),
    "gpt_oss": ({"num_local_experts": 5, **ONE_LAYER}, {"normalise": "sum"}),
    "granitemoe": ({"num_local_experts": 5}, {"normalise": "sum"}),
    "deepseek_v3": (
        {"n_routed_experts": 12, "n_group": 4, "topk_group": 2, "first_k_dense_replace": 0, "num_experts_per_tok": 3},
        {"scores": "sigmoid", "groups": 4, "kept_groups": 2, "group_score": "top2", "normalise": "sum", "factor": 2.5},
    ),
    "minimax_m2": ({"num_local_experts": 5}, {"scores": "sigmoid", "normalise": "sum"}),
    "phimoe": ({"num_local_experts": 5}, {"scores": "sparse_mixer", "jitter": 0.01}),
    "ernie4_5_moe": (
        {"moe_num_experts": 5, "moe_k": 2, "moe_layer_start_index": 0},
        {"normalise": "sum", "floor": 1e-12},
    ),
    "gemma4_text": (
        {"num_experts": 5, "top_k_experts": 2, "enable_moe_block": True, "moe_intermediate_size": 20, **ONE_LAYER},
        {"normalise": "sum"},
    ),
}
"""Options of tiny models, one for each way of routing, and those of `aux.route` that they must be read as."""
SELDOM = ("granitemoe", "mixtral", "ernie4_5_moe", "gemma4_text")
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SELDOM else name for name in TYPES]


@cache
def model(name: str) -> PreTrainedModel:
    """Return the tiny model in fp64; buffers that choose experts are random too."""
    made = tiny_model(name, **{**SMALL, **TYPES[name][0]}).double()
    generator = torch.Generator().manual_seed(3)
    for key, buffer in made.named_buffers():
        if key.endswith("e_score_correction_bias"):
            buffer.copy_(0.2 * torch.rand(buffer.shape, generator=generator))
    return made


@cache
def graph(name: str) -> CapturedGraph:
    return capture(model(name), 32)


@cache
def program(name: str) -> Program:
    return assign_layers(canonicalise(import_graph(graph(name))))


def route(name: str) -> Route:
    return next(op for op in program(name).ops if isinstance(op, Route))


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_graphs_and_the_models(name: str) -> None:
    ids = token_ids(3, 13, VOCAB)
    tensors = load(program(name), graph(name).tensors)
    logits = forward(program(name), tensors, resolve_inputs(ids))
    text = print_program(program(name))
    assert print_program(parse_program(text)) == text
    with torch.no_grad():
        assert relative(logits, run_captured(graph(name), ids)) < 1e-9
        with experts_computed_by(model(name), EAGER):
            assert relative(logits, model(name)(ids, use_cache=False).logits) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_routing_is_read_by_what_it_computes(name: str) -> None:
    found = route(name).options()
    for key, value in TYPES[name][1].items():
        assert found[key] == value, key
    biased = name in ("deepseek_v3", "minimax_m2", "ernie4_5_moe")
    assert bool(found["bias"]) == biased and bool(found["gains"]) == (name == "gemma4_text")


@pytest.mark.parametrize("name", ["gpt_oss"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(name: str, side: str) -> None:
    ids = token_ids(2, 11, VOCAB)
    valid = torch.ones_like(ids)
    real = slice(3, None)
    if side == "right":
        real = slice(None, -3)
    valid[:] = 0
    valid[:, real] = 1
    inputs = resolve_inputs(ids, attention_mask=valid)
    logits = forward(program(name), load(program(name), graph(name).tensors), inputs)
    with torch.no_grad(), experts_computed_by(model(name), EAGER):
        given = {"attention_mask": valid, "position_ids": inputs.position_ids, "use_cache": False}
        assert relative(logits[:, real], model(name)(ids, **given).logits[:, real]) < 1e-5


def test_experts_are_two_stacks_and_the_router_does_not_descend() -> None:
    ops = program("gpt_oss").ops
    stacks = [op for op in ops if isinstance(op, Experts)]
    assert [op.role for op in stacks] == ["ffn"] * 3 and all(op.layer == 0 for op in stacks)
    rows = {program("gpt_oss").parameters[op.weight].rows for op in stacks}
    assert rows == {((0, 279, 2),), ((1, 280, 2),), None}, "interleaved rows are one run with a step"
    (router,) = [op for op in ops if isinstance(op, Linear) and op.result is route("gpt_oss").operands[0]]
    assert router.role == "router" and not router.in_groups({"ffn", "values", "out", "queries", "keys"})


def test_the_text_does_not_grow_with_the_experts() -> None:
    many = tiny_model("gpt_oss", **SMALL | TYPES["gpt_oss"][0] | {"num_local_experts": 20})
    text = print_program(assign_layers(canonicalise(import_graph(capture(many, 32)))))
    few = print_program(program("gpt_oss"))
    assert len(text.splitlines()) == len(few.splitlines()) and len(text) < 1.01 * len(few)


def test_the_text_does_not_grow_with_the_width_of_a_gate_that_is_one_number() -> None:
    """The gate of the shared experts multiplies all columns."""
    assert "columns=[[0, 1, 60]]" in print_program(program("qwen2_moe"))


def test_canonical_text(golden: Callable[[str, str], None]) -> None:
    golden("gpt_oss", print_program(program("gpt_oss")))


class Detached:
    """transformers' own loop over the experts with weights that are constants, for as long as it is entered."""

    def __enter__(self) -> None:
        def experts(module: Any, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
            return type(module).forward.__wrapped__(module, x, index, weights.detach())

        ALL_EXPERTS_FUNCTIONS["detached"] = experts

    def __exit__(self, *_: object) -> None:
        del ALL_EXPERTS_FUNCTIONS["detached"]


@pytest.mark.parametrize("detached", [True, False])
@pytest.mark.parametrize("name", ["qwen2_moe", "gpt_oss"])
def test_tuning_is_autograd_of_the_model(name: str, detached: bool) -> None:
    """With the router's weights as constants, and with their gradients; 1e-5 of all gradients."""
    ids = token_ids(1, 9, VOCAB)
    found = tune(graph(name), ids, torch.ones_like(ids), approximations=Approximations(router=detached)).gradients[0]
    implementation = EAGER
    if detached:
        implementation = "detached"
    with torch.enable_grad(), Detached(), experts_computed_by(model(name), implementation):
        logits = model(name)(ids, use_cache=False).logits
        loss = F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")
        wanted = dict(model(name).named_parameters())
        gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True, materialize_grads=True)
    total = torch.stack([gradient.norm() for gradient in gradients]).norm()
    for key, gradient in zip(wanted, gradients, strict=True):
        assert float((found[key][0] - gradient).norm() / total) < 1e-5, key
    routers = [key for key in found if key.endswith(("router.weight", "mlp.gate.weight"))]
    assert routers and all(bool(found[key].any()) != detached for key in routers)


@pytest.mark.parametrize("scheme", ["token", "fixed"])
@pytest.mark.parametrize("name", ["qwen2_moe", "gpt_oss"])
def test_tuning_with_all_approximations_is_the_interpreter(name: str, scheme: str) -> None:
    """Every gradient to 1e-9 of all of them: differences of activations inside experts, and of shared factors, too."""
    ids = token_ids(2, 10, VOCAB)
    mask = (torch.arange(10) < 6).expand(2, 10)
    difference = Difference(scheme, 1e-3)
    chosen = replace(Approximations.of(), norms=difference, activations=difference)
    tuned = tune(graph(name), ids, mask, approximations=chosen).gradients[0]
    tensors = load(program(name), graph(name).tensors)
    descent = Descent(1.0, difference=FiniteDifference(scheme, 1e-3))
    _, _, updated = simulate(program(name), tensors, resolve_inputs(ids, mask), descent)
    total = torch.stack([gradient.norm() for gradient in tuned.values()]).norm()
    stacks = 0
    for key, tensor in tensors.items():
        parameter = program(name).parameters[key]
        if parameter.source not in tuned or updated[key] is tensor:
            continue
        right = torch.stack([view(parameter, gradient) for gradient in tuned[parameter.source]])
        assert float((tensor - updated[key] - right).norm() / total) < 1e-9, key
        stacks += parameter.stacked
    assert stacks >= 3


def test_the_configuration_is_left_as_it_was() -> None:
    experts = expert_modules(model("mixtral"))
    assert len(experts) == 1 and experts[0].config._experts_implementation != "tintc"
    assert "tintc" not in ALL_EXPERTS_FUNCTIONS


def test_a_gate_that_is_not_known_is_refused_in_words() -> None:
    odd = tiny_model("mixtral", **SMALL, num_local_experts=4)
    odd.model.layers[0].mlp.experts.act_fn.forward = torch.sin
    with pytest.raises(UnsupportedModelError, match=r"between the two layers of an expert is not supported: aten.sin"):
        import_graph(capture(odd, 32))


class Router(nn.Module):
    """Half of each weight goes to the expert that is chosen next."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, weights, index = self.inner(x)
        return logits, weights / 2 + weights.flip(-1) / 3, index


def test_routing_that_is_not_known_is_refused_in_words() -> None:
    odd = tiny_model("mixtral", **SMALL, num_local_experts=4)
    odd.model.layers[0].mlp.gate = Router(odd.model.layers[0].mlp.gate)
    with pytest.raises(UnsupportedModelError, match="routing that tintc does not know"):
        import_graph(capture(odd, 32))
