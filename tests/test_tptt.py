"""examples/tptt.py: softmax attention mixed with delta rules that write once or twice a token, with adapters."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from command import ROOT
from programs import check_agreement, import_model, three_ways
from tiny_models import llama, token_ids

from tintc.frontend.mixers.registry import REGISTERED
from tintc.ir.auxiliary import Linear, Recurrence
from tintc.ir.auxiliary.interpreter import Descent
from tintc.reference import Approximations, tune

IDS = token_ids(2, 13)


@pytest.fixture(scope="module")
def example() -> Any:
    """The example as a module, where code looks for modules; what it registers is taken back."""
    name = "tptt_example"
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / "tptt.py")
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    kept = dict(REGISTERED)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]
    REGISTERED.clear()
    REGISTERED.update(kept)


def mixed_model(example: Any, order: int, subtracts: bool) -> Any:
    """A tiny llama with `LiZA` around its attentions, and adapters that change something."""
    model = example.with_liza(llama(n_layers=1).double(), order, subtracts).double().eval()
    for layer in model.model.layers:
        for name in example.PROJECTIONS:
            torch.nn.init.normal_(getattr(layer.self_attn.attention, name).b.weight, std=0.1)
    return model


def test_rule_is_the_loop(example: Any) -> None:
    """What stands for the loop over tokens and writes computes the same, with and without subtraction (fp64, 1e-12)."""
    torch.manual_seed(0)
    q = torch.randn(2, 7, 3, 4, dtype=torch.float64)
    k, v = (torch.randn(2, 7, 3, 2, 4, dtype=torch.float64) for _ in range(2))
    beta = torch.rand(2, 7, 3, 2, dtype=torch.float64)
    for subtracts in (True, False):
        right = example.delta_product(q, k, v, beta, subtracts)
        torch.testing.assert_close(example.as_recurrence(q, k, v, beta, subtracts), right, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("order", "subtracts"), [pytest.param(1, False, marks=pytest.mark.slow), (2, True)])
def test_compiles(example: Any, order: int, subtracts: bool) -> None:
    """Logits under padding as the model's (fp64, 1e-6: it drops to fp32 inside); one step, 1e-9 of the update between
    all ways to execute, and 1e-3 from explicit tuning of the model."""
    model = mixed_model(example, order, subtracts)
    imported = import_model(model)
    program = imported.auxiliary.program
    mixers = [op for op in program.ops if isinstance(op, Recurrence)]
    assert [(op.writes, op.delta, op.layer) for op in mixers] == [(order, subtracts, 0)]
    stem = "model.layers.0.self_attn."
    roles = {op.weight.removeprefix(stem): op.role for op in program.ops if isinstance(op, Linear)}
    assert roles["attention.k_proj.base.weight"] == roles["attention.k_proj.b.weight"] == "key"
    assert (roles["attention.v_proj.b.weight"], roles["mean_of_heads"]) == ("value", "gate")
    sim = imported.compile(inner_lr=1e-2)
    mask = torch.ones(2, 13, dtype=torch.long)
    mask[0, :3] = 0
    mask[1, 11:] = 0
    real = mask.bool()
    with torch.no_grad():
        found = sim(IDS, attention_mask=mask, return_before=True).logits_before[real]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        right = model(IDS, attention_mask=mask, position_ids=positions, use_cache=False).logits[real]
    assert float((found - right).norm() / right.norm()) < 1e-6
    ways = three_ways(sim, program, imported.tensors, IDS, Descent(1e-2))
    check_agreement(ways)
    before, after = ways["literal"]
    train = (torch.arange(13) < 6).expand(2, -1)
    tuned = tune(imported.auxiliary.graph, IDS, train, inner_lr=1e-2, approximations=Approximations.of())
    assert float((after - tuned.logits).norm() / (after - before).norm()) < 1e-3
