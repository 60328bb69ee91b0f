"""As the finite-difference step goes to 0, gradients are autograd's on the *exported graph* with attention detached.

Nothing of the IR is in the reference: `run_captured` runs the FX graph node by node. Gradients of the simulator are
read from its updated weights at learning rate 1. fp64; the error shrinks linearly and is below 1e-4 at step 1e-5.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import gpt2, llama, opt, token_ids
from torch import Tensor

from tintc import stages
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.importer import import_graph
from tintc.ir import simulator as sim
from tintc.ir.auxiliary.interpreter import view
from tintc.ir.core import Program, Value
from tintc.ir.inputs import Inputs, resolve_inputs
from tintc.ir.simulator.interface.interpreter import interpret
from tintc.ir.simulator.interface.semantics import Weights
from tintc.lowering.emission.emit import emit
from tintc.lowering.passes.assign_layers import assign_layers
from tintc.lowering.passes.canonicalise import canonicalise
from tintc.options import Options
from tintc.reference.captured import run_captured

MODELS = {
    "gpt2": lambda: gpt2(n_heads=3, head_dim=6),
    "opt": lambda: opt(n_heads=3, head_dim=6, activation_function="gelu"),
    "llama": lambda: llama(n_heads=4, n_kv_heads=2, head_dim=6, attention_bias=True),
}


def explicit(graph: CapturedGraph, ids: Tensor, inputs: Inputs, loss: str) -> dict[str, Tensor]:
    """Gradient of the summed loss over counting positions, by name in the checkpoint."""
    parameters = {name: graph.tensors[name].double().clone().requires_grad_() for name in sorted(graph.parameter_names)}
    z = run_captured(graph, ids, parameters, detach_attention=True)
    picked = z.gather(-1, inputs.next_ids[..., None])[..., 0]
    each = z.logsumexp(-1) - picked if loss == "ce" else z.square().sum(-1) / 2 - picked
    (each * inputs.loss_positions).sum().backward()
    return {name: tensor.grad for name, tensor in parameters.items() if tensor.grad is not None}


def gradients(program: Program, tensors: dict[str, Tensor], inputs: Inputs) -> dict[str, Tensor]:
    """What the simulator's descent subtracts at rate 1, by parameter name of the program; one example."""
    stored = {op.name: op.result for op in program.ops if isinstance(op, sim.StoredWeights)}
    updated: dict[str, Value] = {
        op.target: op.result for op in program.ops if isinstance(op, sim.LinearDescent | sim.NormDescent)
    }
    outputs = {f"new.{name}": value for name, value in updated.items()} | {
        f"old.{name}": stored[name] for name in updated
    }
    found = interpret(
        replace(program, outputs=outputs), dict(emit(program, tensors, 1.0, torch.float64)), inputs, tuple(outputs)
    )
    result: dict[str, Tensor] = {}
    for name in updated:
        old, new = found[f"old.{name}"], found[f"new.{name}"]
        assert isinstance(old, Weights) and isinstance(new, Weights)
        if name + ".gain" not in program.parameters:
            assert old.weight is not None and new.weight is not None
            result[f"{name}.weight"] = (old.weight - new.weight)[0]
        if old.bias is not None and new.bias is not None:
            result[f"{name}.bias"] = (old.bias - new.bias)[0]
    return result


@pytest.mark.parametrize("loss", ["ce", "quad"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_tend_to_autograd_s(name: str, loss: str) -> None:
    graph = capture(MODELS[name]())
    auxiliary = assign_layers(canonicalise(import_graph(graph)))
    ids = token_ids(1, 12)
    inputs = resolve_inputs(ids, train_mask=torch.tensor([[1] * 8 + [0] * 4]))
    right = explicit(graph, ids, inputs, loss)
    errors: dict[str, list[float]] = {}
    for step in (1e-3, 1e-4, 1e-5):
        program = stages.lower(auxiliary, Options(fd_step=step, loss=loss), 16)
        for key, gradient in gradients(program, graph.tensors, inputs).items():
            parameter = program.parameters[key]
            wanted = view(parameter, right[parameter.source])
            errors.setdefault(key, []).append(float((gradient - wanted).norm() / wanted.norm()))
    layers = 2
    assert len(errors) >= layers * (5 if name == "llama" else 10)
    for key, (coarse, middle, fine) in errors.items():
        assert fine < 1e-4, key
        if coarse > 1e-9:
            assert 8 < coarse / middle < 12.5 and 8 < middle / fine < 12.5, (key, coarse, middle, fine)
    assert max(coarse for coarse, _, _ in errors.values()) > 1e-5, "the test must see finite differences at work"
