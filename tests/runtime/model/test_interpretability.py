"""Tools of others on a simulator: nnsight traces and captum attributions run on its modules, literally.

fp64, 1e-9 of a value's size.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from programs import import_model
from tiny_models import llama, token_ids
from torch import Tensor

from tintc.runtime.model.causal_lm import TintForCausalLM

IDS = token_ids(2, 9)
SITE = "sites.forward_1.model.layers.0.self_attn.o_proj"
POINT = "pass1.modules.model.layers.0.self_attn.o_proj"


@pytest.fixture(autouse=True)
def backward_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """nnsight, once imported, reads the source of every caller of `Tensor.backward`; other tests' may have none."""
    monkeypatch.setattr(torch.Tensor, "backward", torch.Tensor.backward)


@cache
def imported() -> Any:
    return import_model(llama(n_layers=1, n_heads=3, n_kv_heads=1, head_dim=4, d_ff=20))


def simulator() -> TintForCausalLM:
    """One of its own for each test: nnsight leaves its mark on the modules."""
    sim = imported().compile(max_length=16, inner_lr=0.02)
    sim.executor = "auto"
    return sim


def off(found: Tensor, right: Tensor) -> float:
    return float((found - right).norm() / right.norm())


def captured(sim: TintForCausalLM) -> tuple[Tensor, Tensor]:
    """Logits, and the result of the module at `SITE`, of a fused run."""
    with torch.no_grad(), sim.capture(POINT) as seen:
        logits = sim(IDS).logits
    assert sim.last_executor == "fused"
    return logits, seen[POINT]


def test_nnsight_reads_and_patches_a_site() -> None:
    """What it reads is the capture point; zeros in the module's place are an edit of the capture point."""
    nnsight = pytest.importorskip("nnsight")
    sim = simulator()
    logits, right = captured(sim)
    with torch.no_grad(), sim.edit({POINT: torch.zeros_like}):
        without = sim(IDS).logits
    k, width = sim.layout.n_prefixes, right.shape[-1]
    traced = nnsight.NNsight(sim)
    with torch.no_grad():
        with traced.trace(IDS):
            seen = traced.get(SITE).output.save()
            plain = traced.output.logits.save()
        assert sim.last_executor == "literal"
        with traced.trace(IDS):
            traced.get(SITE).output[:, k:] = 0
            patched = traced.output.logits.save()
    assert off(seen[:, k:, :width], right) < 1e-9 and off(plain, logits) < 1e-9
    assert off(patched, without) < 1e-9 < off(without, logits)


def test_captum_attributes_to_a_site() -> None:
    """Gradient times activation of a module, which is that of the capture point in fused execution."""
    attr = pytest.importorskip("captum.attr")
    sim = simulator()

    def target(ids: Tensor) -> Tensor:
        return sim(ids).logits[:, -1, 3]

    with sim.capture(POINT) as seen:
        (gradient,) = torch.autograd.grad(target(IDS).sum(), seen[POINT])
    assert sim.last_executor == "fused"
    right = (gradient * seen[POINT]).detach()
    found = attr.LayerGradientXActivation(target, sim.get_submodule(SITE)).attribute(IDS).detach()
    assert sim.last_executor == "literal"
    assert off(found[:, sim.layout.n_prefixes :, : right.shape[-1]], right) < 1e-9
