"""The runner of the exported graph, which other tests take for the truth."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_models import gpt2, llama, opt, relative, token_ids
from transformers import PreTrainedModel

from tintc.frontend.graph.trace_model import capture
from tintc.reference.captured import run_captured


@pytest.mark.parametrize("make", [gpt2, opt, llama])
def test_with_casts_kept_it_is_the_eager_model(make: Callable[..., PreTrainedModel]) -> None:
    model = make(n_layers=1)
    ids = token_ids(3, 10)
    with torch.no_grad():
        assert relative(run_captured(capture(model), ids, keep_casts=True), model(ids).logits) < 1e-6  # fp32


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("make", [gpt2, llama])
def test_detached_attention_gives_no_gradient_to_queries_and_keys(
    make: Callable[..., PreTrainedModel], attention: str
) -> None:
    model = make(attention=attention, n_layers=1)
    graph = capture(model)
    parameters = {name: graph.tensors[name].double().requires_grad_() for name in graph.parameter_names}
    ids = token_ids(2, 7)
    run_captured(graph, ids, parameters, detach_attention=True).square().sum().backward()
    gradients = {name: tensor.grad for name, tensor in parameters.items()}
    if make is llama:
        assert gradients["model.layers.0.self_attn.q_proj.weight"] is None
        assert gradients["model.layers.0.self_attn.k_proj.weight"] is None
        assert gradients["model.layers.0.self_attn.v_proj.weight"] is not None
    else:
        fused = gradients["transformer.h.0.attn.c_attn.weight"]
        assert fused is not None
        q, k, v = fused.chunk(3, 1)
        assert q.abs().max() == 0 and k.abs().max() == 0 and v.abs().max() > 0


def test_fused_and_written_out_attention_have_the_same_gradients() -> None:
    """fp64, 1e-10."""
    gradients = []
    for attention in ("sdpa", "eager"):
        graph = capture(llama(attention=attention, n_layers=1))
        parameters = {name: graph.tensors[name].double().requires_grad_() for name in sorted(graph.parameter_names)}
        run_captured(graph, token_ids(2, 7), parameters, detach_attention=True).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in parameters.values() if p.grad is not None]))
    assert relative(gradients[0], gradients[1]) < 1e-10


def test_a_tied_tensor_may_be_given_by_either_name() -> None:
    model = gpt2(n_layers=1)
    graph = capture(model)
    ids = token_ids(1, 5)
    changed = torch.randn_like(model.lm_head.weight)
    a = run_captured(graph, ids, {"lm_head.weight": changed})
    b = run_captured(graph, ids, {"transformer.wte.weight": changed})
    assert torch.equal(a, b) and relative(a, run_captured(graph, ids)) > 0.1


@pytest.mark.usefixtures("traced_anew")
def test_capture_leaves_the_model_alone() -> None:
    model = llama(n_layers=1).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    capture(model)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
