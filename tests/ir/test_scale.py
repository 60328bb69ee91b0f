"""`aux.scale` and `sim.scale`: three executions of a program with scales agree, to 1e-9 of the update in fp64."""

from __future__ import annotations

import pytest
import torch
from programs import Sketch, check_agreement, simulator, three_ways

from tintc.ir import auxiliary as aux
from tintc.ir.auxiliary.interpreter import Descent


@pytest.mark.parametrize("width", [12, 15])
def test_embedding_scale_and_residual_multiplier(width: int) -> None:
    make = Sketch(width)
    x = make.add(aux.Scale, "scaled", width, make.embedding("wte", 11), factor=3.5)
    make.layer = 0
    mixed = make.attention("attn", make.norm("ln1", x), 3, 3)
    mid = make.sum("mid", x, make.add(aux.Scale, "attn.scaled", width, mixed, factor=0.22))
    inner = make.feed_forward("ffn", make.norm("ln2", mid), 20, False)
    x = make.sum("out", mid, make.add(aux.Scale, "ffn.scaled", width, inner, factor=-0.5))
    make.layer = -1
    program, tensors = make.finish(make.norm("lnf", x, "final"), 11, 1)
    ids = torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(0))
    sim = simulator(program, tensors, n_steps=2, inner_lr=1e-3)
    check_agreement(three_ways(sim, program, tensors, ids, Descent(1e-3, 2)))
