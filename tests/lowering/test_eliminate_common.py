"""`eliminate_common`: what is computed twice is computed once, and what nobody needs is not."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from programs import build, gpt_like, llama_like

from tintc.ir import simulator as sim
from tintc.ir.inputs import resolve_inputs
from tintc.ir.simulator.interface.interpreter import interpret
from tintc.ir.text import print_program
from tintc.lowering.passes.allocate_slots import allocate_slots
from tintc.lowering.passes.differentiate import differentiate
from tintc.lowering.passes.eliminate_common import eliminate_common
from tintc.lowering.passes.plan_layout import plan_layout
from tintc.lowering.passes.unroll_steps import unroll_steps
from tintc.options import Options

MAKERS = {"gpt": lambda: gpt_like(layers=2), "parallel": lambda: llama_like(layers=2, parallel=True)}
OPTIONS = Options(n_steps=2, n_update_layers=1, inner_lr=0.01)


@pytest.mark.parametrize("name", MAKERS)
def test_layers_below_the_updated_ones_run_once(name: str) -> None:
    program, _ = MAKERS[name]()
    found = eliminate_common(unroll_steps(differentiate(program, OPTIONS)))
    runs = Counter(op.origin for op in found.ops if isinstance(op, sim.LinearForward))
    for part in ("attn.q", "attn.v", "ffn.up", "ffn.down"):
        assert runs[f"h.0.{part}"] == 1
    assert runs["h.1.ffn.down"] == runs["h.1.attn.o"] == 3, "before, after one step, after two"
    assert runs["h.1.attn.q"] == (1 if name == "parallel" else 3), "its norm has a bias, which descends"


@pytest.mark.parametrize("name", MAKERS)
def test_it_is_idempotent(name: str) -> None:
    program, _ = MAKERS[name]()
    once = eliminate_common(unroll_steps(differentiate(program, OPTIONS)))
    assert print_program(eliminate_common(once)) == print_program(once)


@pytest.mark.parametrize("name", MAKERS)
def test_it_changes_no_result(name: str) -> None:
    """fp64, equal bit for bit; and descents of different steps stay apart, since they read different rates."""
    program, tensors = MAKERS[name]()
    long = unroll_steps(differentiate(program, OPTIONS))
    inputs = resolve_inputs(torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(0)))
    logits = []
    for candidate in (long, eliminate_common(long)):
        planned = allocate_slots(plan_layout(candidate, OPTIONS, 24))
        state = build(planned, tensors, 0.01).state_dict()
        logits.append(interpret(planned, state, inputs, ("logits", "logits_before")))
    for label in ("logits", "logits_before"):
        assert torch.equal(logits[0][label], logits[1][label])


def test_what_nobody_needs_goes() -> None:
    program, _ = gpt_like(layers=2)
    found = eliminate_common(unroll_steps(differentiate(program, OPTIONS)))
    used = {operand for op in found.ops for operand in op.operands} | set(found.outputs.values())
    assert all(used.intersection(op.results) for op in found.ops)
