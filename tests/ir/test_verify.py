"""The verifier: what is not in SSA form or does not fit is refused, and the message names the op."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tintc.errors import IRError
from tintc.ir import auxiliary as aux
from tintc.ir import simulator as sim
from tintc.ir.core import Block, Program, Type, Value, tokens
from tintc.ir.text import parse_program

OUTSIDE = "weights are linear<3x4, bias>, the output side is tokens<4>"
HEADER = 'aux.program {}\n%e = aux.embedding() {table="t"} : tokens<4>\n'
SIM = (
    'sim.program {}\n%x = sim.embedding() {table="t"} : tokens<4>\n%w = sim.weights() {name="w"} : linear<3x4, bias>\n'
)
NORM = '%n = sim.weights() {name="n"} : norm<4, gain, bias>\n'
STEP = "fd_step=0.1} : tokens<4>"
ATTENTION = "n_heads=2, n_kv_heads=1, head_dim=2, scale=1.0"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (HEADER + '%e = aux.embedding() {table="t"} : tokens<4>', "%e is defined twice"),
        (HEADER + '%y = aux.activation(%e) {fn="sine"} : tokens<4>', "unknown activation 'sine'"),
        (HEADER + '%y = aux.activation(%e) {fn="relu"} : tokens<5>', "tokens<4> -> tokens<5>"),
        (HEADER + '%y = aux.norm(%e) {kind="batch", eps=1.0} : tokens<4>', "'batch'"),
        (HEADER + '%y = aux.norm(%e) {kind="rms", eps=0.0} : tokens<4>', "eps is 0.0"),
        (HEADER + '%y = aux.select(%e) {columns=[[2, 6]]} : tokens<4>', "columns ((2, 6),) of tokens<4>"),
        (HEADER + "%y = aux.add(%e) : tokens<4>", "takes two operands, not 1"),
        (HEADER + f"%y = aux.attention(%e, %e, %e) {{{ATTENTION}}} : tokens<4>", "widths (4, 4, 4), not (4, 2, 2)"),
        (HEADER + '%z = aux.logits(%e) {weight="t"} : tokens<9>', "maps tokens to logits"),
        (HEADER + '%x = sim.embedding() {table="t"} : tokens<4>', "does not belong in a 'aux' program"),
        (SIM + "%y = sim.linear_forward(%w, %x) : tokens<4>", OUTSIDE),
        (SIM + "%y = sim.linear_backward(%w, %x) : tokens<4>", OUTSIDE),
        (SIM + '%y = sim.linear_descent(%w, %x, %x) {target="w"} : linear<3x4, bias>', "the output side is tokens<4>"),
        (SIM + "%y = sim.linear_forward(%x, %x) : tokens<4>", "needs linear weights, not tokens<4>"),
        (SIM + '%y = sim.norm_forward(%w, %x) {kind="rms", eps=1.0} : tokens<4>', "needs norm weights"),
        (SIM + '%m = sim.weights() {name="m"} : norm<4, gain>\n'
         '%y = sim.norm_descent(%m, %x) {target="m"} : norm<4, gain>',
         "the norm has no bias to descend"),
        (SIM + NORM + '%y = sim.norm_backward(%n, %x, %x) {kind="rms", eps=1.0, scheme="odd", ' + STEP,
         "unknown finite-difference scheme 'odd'"),
        (SIM + '%y = sim.activation_backward(%x) {fn="relu", scheme="token", ' + STEP, "takes dy and x"),
        (SIM + '%y = sim.gate_backward(%x, %x, %x) {fn="relu", scheme="token", ' + STEP, "gives dg, du"),
        (SIM + '%y = sim.loss_gradient(%x) {loss="mae", head="t"} : tokens<4>', "'mae' is none of"),
        (SIM + '%y = sim.logits(%x) {head="t", softcap=-1.0} : logits<9>', "soft cap is -1.0"),
        (SIM + "%y = sim.add(%x, %w) : tokens<4>", "two values of one width"),
        (SIM + f"%y = sim.attention_forward(%x, %x, %x) {{{ATTENTION}}} : tokens<4>", "(4, 4, 4), not (4, 2, 2)"),
        (SIM + f"%y = sim.attention_backward(%x, %x, %x) {{{ATTENTION}}} : tokens<4>", "(4, 4, 4), not (4, 4, 2)"),
        (SIM + "%y = sim.repeat(%w) {count=0} : linear<3x4, bias>\n(%a) {\n  yield %a\n}", "count is 0"),
        (SIM + "%y = sim.repeat(%w) {count=1} : linear<3x4, bias>\n(%a) {\n  yield %x\n}", "one type"),
        (SIM + "%y = sim.repeat(%w) {count=1} : linear<3x4>\n(%a) {\n  yield %a\n}", "one type"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(text: str, why: str) -> None:
    with pytest.raises(IRError) as caught:
        parse_program(text + "\n")
    assert why in str(caught.value)


def test_a_value_that_no_op_defines() -> None:
    stray, y = Value("stray", tokens(4)), Value("y", tokens(4))
    op = aux.Activation(operands=(stray,), results=(y,), fn="relu")
    with pytest.raises(IRError, match="uses %stray before it is defined"):
        Program("aux", {}, {}, [op], {"y": y}).verify()
    with pytest.raises(IRError, match="Output 'y' names %stray"):
        Program("aux", {}, {}, [], {"y": stray}).verify()


def test_a_block_may_not_yield_what_it_does_not_define() -> None:
    kind = Type("norm", (4,), ("gain",))
    w, argument, out, stray = (Value(name, kind) for name in ("w", "a", "out", "stray"))
    weights = sim.StoredWeights(results=(w,), name="w")
    repeat = sim.Repeat(operands=(w,), results=(out,), count=1, body=Block((argument,), [], (stray,)))
    with pytest.raises(IRError, match="yields %stray"):
        Program("sim", {}, {}, [weights, repeat], {}).verify()
    twice = replace(repeat, body=Block((w,), [], (w,)))
    with pytest.raises(IRError, match="%w is defined twice"):
        Program("sim", {}, {}, [weights, twice], {}).verify()
