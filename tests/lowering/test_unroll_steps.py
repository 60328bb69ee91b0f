"""`unroll_steps`: the step's block, once per step, each handed the weights of the one before."""

from __future__ import annotations

from programs import gpt_like

from tintc.ir import simulator as sim
from tintc.ir.text import print_program
from tintc.lowering.passes.differentiate import differentiate
from tintc.lowering.passes.unroll_steps import unroll_steps
from tintc.options import Options


def test_steps_are_chained() -> None:
    program, _ = gpt_like(layers=2)
    found = unroll_steps(differentiate(program, Options(n_steps=3)))
    assert not [op for op in found.ops if isinstance(op, sim.Repeat)]
    producers = found.producers()
    for target in ("h.0.attn.v", "h.1.ffn.down"):
        chain = [op for op in found.ops if isinstance(op, sim.LinearDescent) and op.target == target]
        assert [op.step for op in chain] == [0, 1, 2]
        assert isinstance(producers[chain[0].operands[0]], sim.StoredWeights)
        assert [producers[op.operands[0]] for op in chain[1:]] == chain[:-1]
        (last,) = [
            op for op in found.users()[chain[-1].result] if isinstance(op, sim.LinearForward) and op.step == 3
        ]  # the forward pass after the last update
        assert last.origin == target


def test_unrolling_twice_changes_nothing() -> None:
    program, _ = gpt_like(layers=1)
    once = unroll_steps(differentiate(program, Options(n_steps=2)))
    text = print_program(unroll_steps(once))
    assert len(unroll_steps(once).ops) == len(once.ops) and "sim.repeat" not in text
