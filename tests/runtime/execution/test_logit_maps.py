"""Heads whose logits are scaled or capped, in every interpreter and executor. fp64, 1e-9 of the update."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fused_cases import check_every_way
from programs import gpt_like, simulator

from tintc.ir.auxiliary import Logits
from tintc.ir.auxiliary.interpreter import Descent

CASES = [("ce", 0.25, 0.0), ("ce", 1.5, 2.0), ("quad", 1.0, 1.5), ("quad", 0.25, 0.0), ("mse", 1.5, 2.0)]


@pytest.mark.parametrize(("loss", "scale", "softcap"), CASES)
def test_scaled_and_capped_logits(loss: str, scale: float, softcap: float) -> None:
    program, tensors = gpt_like(layers=1, seed=5)
    program.ops = [replace(op, scale=scale, softcap=softcap) if isinstance(op, Logits) else op for op in program.ops]
    program.outputs = {"logits": program.ops[-1].result}
    sim = simulator(program, tensors, n_steps=2, inner_lr=0.01, loss=loss)
    sim.trust()
    ids = torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(0))
    check_every_way(sim, program, tensors, ids, Descent(0.01, 2, loss=loss))
    if softcap:
        assert float(sim(ids).logits.detach().abs().max()) <= softcap
