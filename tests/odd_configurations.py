"""What holds of every odd configuration of a decoder, whatever its layers."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from fused_cases import check_fused
from programs import relative_to_update
from torch import Tensor

import tintc
from tintc.reference import tune
from tools.sweep.tiny import VOCAB, tiny_model

LENGTH = 12


@dataclass(frozen=True)
class Compiled:
    """A model, its simulator, and the two texts ``[2, LENGTH]`` with padding on either side that both were run on."""

    model: Any
    sim: tintc.TintForCausalLM
    ids: Tensor
    mask: Tensor


def cases(odd: dict[str, Any], few: tuple[str, ...]) -> list[Any]:
    """Return the names of configurations as parameters of a test; those that are not among the few are slow."""
    return [case if case in few else pytest.param(case, marks=pytest.mark.slow) for case in odd]


def checked(name: str, options: dict[str, Any]) -> Compiled:
    """Compile a tiny model, all in fp64, and check its logits (1e-6 of the eager model's, which drops to fp32 inside),
    and that all ways to execute and explicit tuning agree (1e-9 of the update)."""
    model: Any = tiny_model(name, **options).double()
    model.set_experts_implementation("eager")  # others refuse fp64
    sim = tintc.compile(model, max_length=32, inner_lr=1e-3)
    ids = torch.randint(3, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[0, :4] = 0
    mask[1, 9:] = 0
    real = mask.bool()
    arguments: dict[str, Tensor] = {"attention_mask": mask}
    if "position_ids" in inspect.signature(model.forward).parameters:
        arguments["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        right = model(ids, use_cache=False, **arguments).logits[real]
        out = sim(ids, attention_mask=mask, return_before=True)
    assert float((out.logits_before[real] - right).norm() / right.norm()) < 1e-6
    check_fused(sim, ids, attention_mask=mask)
    tuned = tune(model, ids, attention_mask=mask, inner_lr=1e-3)
    assert relative_to_update(out.logits[real], tuned.logits[real], tuned.logits_before[real]) < 1e-9
    return Compiled(model, sim, ids, mask)
