"""Fused execution = literal execution = interpreter: families, losses, semantics, steps, masks, batches, dtypes.

Where `test_executors_agree` has literal execution beside the interpreter, fused execution alone is compared here.

fp64: 1e-9 of the update. Shorter types are measured against the fp64 update of the same weights: fp32 1e-3, bf16 0.2
(weights and products in bf16, whose rounding is 4e-3; differences and sums in fp32).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fused_cases import FAMILIES, check_fused, compiled, edited, relative_to_update, run, token_ids
from programs import Sketch, simulator

from tintc.ir import simulator as ops
from tintc.ir.auxiliary import Gate, Linear
from tintc.ir.core import Program, Value, substitute
from tintc.ir.inputs import resolve_inputs
from tintc.ir.simulator.interface.interpreter import interpret
from tintc.option_facts import LOSSES
from tintc.runtime.execution.fused.planner import UPDATES
from tintc.runtime.model.causal_lm import TintForCausalLM

NAMES = tuple(FAMILIES)
TRAIN = torch.tensor([[0, 1, 1, 0, 1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 0, 0]])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", NAMES)
def test_families(name: str, loss: str) -> None:
    """Every pair of family, loss and semantics, though not every three of them."""
    semantics = ("exact", "paper-code")[(NAMES.index(name) + LOSSES.index(loss)) % 2]
    check_fused(compiled(name, loss=loss, semantics=semantics), token_ids(2, 12))


@pytest.mark.parametrize(
    ("name", "steps", "layers"),
    [("gpt2", 1, 1), ("opt", 2, None), ("llama", 2, 1), ("gpt2", 3, 2), ("llama", 3, 2), ("opt", 1, 2)],
)
def test_steps_and_top_layers(name: str, steps: int, layers: int | None) -> None:
    for batch in (1, 2):
        check_fused(compiled(name, n_steps=steps, n_update_layers=layers), token_ids(batch, 9), literal=False)


@pytest.mark.parametrize(
    ("name", "semantics"), [("gpt2", "exact"), ("opt", "paper-code"), ("llama", "exact"), ("llama", "paper-code")]
)
def test_masks(name: str, semantics: str) -> None:
    """Train tokens that are no prefix and differ in number, targets left out, who sees whom, positions of one's own:
    one of them alone, another one for each family, and all together."""
    sim, ids = compiled(name, n_steps=2, semantics=semantics), token_ids(2, 12)
    generator = torch.Generator().manual_seed(0)
    seen = torch.rand(2, 12, 12, generator=generator) < 0.7
    positions = torch.stack([torch.arange(12), torch.arange(12) % 5 + 3])
    alone: list[dict[str, Any]] = [{"train_mask": TRAIN}, {"loss_mask": seen[:, 1]}, {"attention_mask": seen}]
    check_fused(sim, ids, literal=False, **alone[NAMES.index(name)])
    together = {"attention_mask": seen, "train_mask": TRAIN, "loss_mask": seen[:, 0], "position_ids": positions}
    check_fused(sim, ids, literal=False, **together)


@pytest.mark.parametrize(
    ("name", "side"), [("gpt2", "left"), ("opt", "right"), ("llama", "both"), ("llama", "left"), ("gpt2", "both")]
)
def test_padding(name: str, side: str) -> None:
    mask = torch.ones(3, 12, dtype=torch.long)
    for row, pads in enumerate((1, 4, 0)):
        if side in ("left", "both"):
            mask[row, :pads] = 0
        if side in ("right", "both"):
            mask[row, 12 - pads :] = 0
    check_fused(compiled(name, n_steps=2), token_ids(3, 12), literal=side == "both", attention_mask=mask)


@pytest.mark.parametrize("name", NAMES)
def test_rates_of_the_call(name: str) -> None:
    rates = torch.tensor([0.03, 0.0, 0.01], dtype=torch.float64)
    check_fused(compiled(name, n_steps=2), token_ids(3, 10), rates, literal=name == "opt")


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_its_examples_one_by_one(name: str, update: str) -> None:
    """Each example has an update of its own, whatever the others' padding and number of train tokens."""
    sim, ids, mask = compiled(name, n_steps=2), token_ids(2, 12), torch.ones(2, 12, dtype=torch.long)
    mask[1, :5] = 0
    rates = torch.tensor([0.03, 0.02], dtype=torch.float64)
    together = run(sim, ids, update=update, attention_mask=mask, inner_lr=rates, return_before=True)
    for row, length in ((0, 12), (1, 7)):
        alone = run(sim, ids[row : row + 1, -length:], update=update, inner_lr=float(rates[row]))
        found, before = (z[row : row + 1, -length:] for z in (together.logits, together.logits_before))
        assert relative_to_update(found, alone.logits, before) < 1e-9


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("name", NAMES)
def test_too_few_train_tokens(name: str, update: str) -> None:
    """Nothing is trained, and the logits after are those before; a row that is trained beside it is."""
    sim, ids = compiled(name), token_ids(2, 8)
    for mask in (torch.zeros(2, 8), torch.eye(2, 8)):
        out = run(sim, ids, update=update, train_mask=mask, return_before=True)
        assert torch.equal(out.logits, out.logits_before)
    mask = torch.zeros(2, 8)
    mask[0, :4], mask[1, 2] = 1, 1
    out = run(sim, ids, update=update, train_mask=mask, return_before=True)
    assert not torch.equal(out.logits[0], out.logits_before[0])
    assert torch.allclose(out.logits[1], out.logits_before[1], rtol=0, atol=1e-12)
    assert run(sim, ids[:1, :1], return_before=True).logits.shape == (1, 1, 53)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("name", NAMES)
def test_shorter_types(name: str, update: str, dtype: torch.dtype, tolerance: float) -> None:
    """Of the fp64 update. bf16: before and after of one run share the rounding of the weights, so updates compare.

    They are 0.7 % off.
    """
    ids = token_ids(2, 16)
    right = run(compiled(name), ids, return_before=True, inner_lr=0.1)
    found = run(compiled(name, dtype), ids, update=update, return_before=True, inner_lr=0.1)
    assert found.logits.dtype == dtype
    wanted = right.logits - right.logits_before
    got = found.logits.double() - found.logits_before.double()
    assert float((got - wanted).norm() / wanted.norm()) < tolerance
    if dtype == torch.float32:
        assert relative_to_update(found.logits.double(), right.logits, right.logits_before) < tolerance


def test_weights_are_never_written(name: str = "gpt2") -> None:
    """Later steps may overwrite the weights an earlier step made, and no others."""
    sim, ids = compiled(name, n_steps=3, n_update_layers=2), token_ids(1, 12)
    kept = {key: tensor.clone() for key, tensor in sim.state_dict().items()}
    for update in UPDATES:
        first, second = (run(sim, ids, update=update).logits for _ in range(2))
        assert torch.equal(first, second)
    assert all(torch.equal(tensor, kept[key]) for key, tensor in sim.state_dict().items())


@pytest.mark.parametrize("batch", [1, 2])
def test_layers_that_share_weights(batch: int) -> None:
    """Both layers' gradients are taken with the weights from before the step, though one descent follows the other."""
    make = Sketch(12, seed=3)
    x = make.embedding("wte", 11)
    for make.layer in range(2):
        x = make.sum(
            f"out{make.layer}", x, make.feed_forward(f"ffn{make.layer}", make.norm(f"ln{make.layer}", x), 20, False)
        )
    for op in make.ops:
        if isinstance(op, Linear):
            op.weight, op.bias = (name.replace("ffn1", "ffn0") for name in (op.weight, op.bias))
    make.layer = -1
    program, tensors = make.finish(make.norm("lnf", x, "final"), 11, 2)
    sim = simulator(program, tensors, n_steps=3, inner_lr=1e-3)
    sim.trust()
    ids = torch.randint(0, 11, (batch, 9), generator=torch.Generator().manual_seed(0))
    check_fused(sim, ids, literal=batch == 2)


def test_values_that_an_op_reads_twice() -> None:
    """``x silu(x)`` and ``x + x``: what is written over must not be the other operand."""
    make = Sketch(12, seed=4)
    x = make.embedding("wte", 11)
    make.layer = 0
    up = make.linear("up", make.norm("ln", x), 20, "ffn")
    down = make.linear("down", make.add(Gate, "act", 20, up, up, fn="silu"), 12, "ffn")
    x = make.sum("out", x, make.sum("twice", down, down))
    make.layer = -1
    program, tensors = make.finish(make.norm("lnf", x, "final"), 11, 1)
    sim = simulator(program, tensors, n_steps=2, inner_lr=1e-2)
    sim.trust()
    check_fused(sim, torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(0)))


def drop_descent(program: Program) -> None:
    """Without the first feed-forward descent: the layer keeps its weights."""
    op = next(op for op in program.ops if isinstance(op, ops.LinearDescent) and op.role == "ffn")
    program.ops.remove(op)
    replace_uses(program, {op.results[0]: op.operands[0]})


def double_rate(program: Program) -> None:
    for op in program.ops:
        if isinstance(op, ops.LinearDescent) and op.role == "output":
            op.rate_scale = 2.0


def swap_layers(program: Program) -> None:
    """The feed-forwards' first weights of layers 0 and 1 change places."""
    stored = [op for op in program.ops if isinstance(op, ops.StoredWeights) and op.role == "ffn"]
    first, second = (next(op for op in stored if op.layer == layer) for layer in (0, 1))
    a, b = first.results[0], second.results[0]
    replace_uses(program, {a: b, b: a})


def replace_uses(program: Program, mapping: dict[Value, Value]) -> None:
    for op in program.ops:
        op.operands = substitute(op.operands, mapping)


@pytest.mark.parametrize("edit", [drop_descent, double_rate, swap_layers])
def test_an_edited_program_is_what_runs(edit: object) -> None:
    """The text is the program: an edit changes fused execution and the interpreter alike (`test_editing`: literal)."""
    sim, ids = compiled("gpt2", n_steps=2), token_ids(2, 10)
    program = parse(sim)
    assert callable(edit)
    edit(program)
    other = edited(sim, program)
    check_fused(other, ids, literal=False)
    plain, changed = run(sim, ids, return_before=True), run(other, ids)
    assert relative_to_update(changed.logits, plain.logits, plain.logits_before) > 1e-3


def parse(sim: TintForCausalLM) -> Program:
    from tintc.ir.text import parse_program, print_program

    return parse_program(print_program(sim.program))


def test_long_texts_take_the_attention_backward_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ROWS` queries, `CHUNK` positions and `WORDS` of the vocabulary at a time give what all at once do."""
    from tintc.ir.simulator.ops import loss_gradient
    from tintc.ir.simulator.shared import attention_common

    monkeypatch.setattr(attention_common, "ROWS", 3)
    monkeypatch.setattr(loss_gradient, "CHUNK", 4)
    monkeypatch.setattr(loss_gradient, "WORDS", 7)
    train, mask = torch.arange(16) < torch.tensor([[11], [7]]), torch.ones(2, 16)
    mask[1, :3] = 0
    for name, loss in (("gpt2", "ce"), ("llama", "ce"), ("opt", "quad")):
        for given in ({}, {"attention_mask": mask}):
            check_fused(compiled(name, loss=loss), token_ids(2, 16), literal=False, train_mask=train, **given)


def test_scores_of_any_size_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks whose largest score is far above or below the last one's: fp32 against one softmax in fp64, 1e-5."""
    from tintc.ir.losses import loss_gradient as right
    from tintc.ir.simulator.ops import loss_gradient

    monkeypatch.setattr(loss_gradient, "WORDS", 5)
    generator = torch.Generator().manual_seed(0)
    x, ids = torch.randn(6, 8, generator=generator), torch.tensor([0, 4, 5, 22, 9, 1])
    for factors in (torch.linspace(-60, 60, 23), torch.linspace(60, -60, 23), torch.full((23,), 1e-3)):
        head = torch.randn(23, 8, generator=generator) * factors[:, None]
        bias = torch.randn(23, generator=generator)
        wanted = right("ce", x.double(), head.double(), bias.double(), ids)
        found = loss_gradient.blockwise_gradient("ce", x, head, bias, ids)
        assert float((found.double() - wanted).norm() / wanted.norm()) < 1e-5


def test_rotation_far_into_the_text_in_bf16() -> None:
    """Positions beyond 1000, which bf16 cannot tell apart, are turned in fp32: the update lies within 0.2 of fp64's."""
    ids, positions = token_ids(1, 16), torch.arange(1001, 1017)[None]
    given = {"position_ids": positions, "return_before": True, "inner_lr": 0.1}
    right, found = (run(compiled("llama", dtype), ids, **given) for dtype in (torch.float64, torch.bfloat16))
    near = run(compiled("llama"), ids, return_before=True, inner_lr=0.1)
    wanted, got = (out.logits.double() - out.logits_before.double() for out in (right, found))
    assert float((got - wanted).norm() / wanted.norm()) < 0.2
    assert relative_to_update(right.logits, near.logits, near.logits_before) < 1e-3  # only distances matter


def test_nothing_is_written_that_is_read_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """In-place ops touch no operand that the plan does not free: every operand that is not is what it was."""
    from tintc.ir.simulator.interface.base import SimOp

    checked = 0
    for cls in {type(op) for name in NAMES for op in compiled(name).program.ops if isinstance(op, SimOp)}:

        def watched(self: SimOp, run: Any, *operands: Any, original: Any = cls.fused) -> Any:
            nonlocal checked
            kept = [
                (operand, operand.clone())
                for value, operand in zip(self.operands, operands, strict=False)
                if isinstance(operand, torch.Tensor) and not run.frees(self, value)
            ]
            result = original(self, run, *operands)
            for operand, before in kept:
                assert torch.equal(operand, before), self.opname
                checked += 1
            return result

        monkeypatch.setattr(cls, "fused", watched)
    for name in NAMES:
        for update in UPDATES:
            run(compiled(name, n_steps=2), token_ids(2, 12), update=update)
    assert checked > 100


def test_the_plan_leaves_out_what_nobody_needs() -> None:
    """Test tokens' first pass, and backward below the lowest updated layer."""
    sim = compiled("gpt2", n_update_layers=1)
    run(sim, token_ids(1, 12))
    run(sim, token_ids(1, 12), return_before=True)
    alone, both = (plan for plan in sim.plans.values() if plan.sizes.length == 12 and plan.sizes.batch == 1)
    first = {op: alone.lengths[op] for op in alone.ops if op.phase == "forward" and op.layer == 2}
    assert set(first.values()) == {6, 12} and set(both.lengths.values()) == {6, 12}
    assert len(alone.ops) < len(both.ops)
    assert all(op.layer in (-1, 2) for op in alone.ops if op.phase in ("backward", "descent"))
    inputs = resolve_inputs(token_ids(1, 12))
    assert interpret(sim.program, sim.state_dict(), inputs)["logits"].shape == (1, 12, 53)
