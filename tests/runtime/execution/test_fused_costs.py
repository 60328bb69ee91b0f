"""The operation count is what PyTorch's own counter finds in a run, and the plan chooses the cheaper update."""

from __future__ import annotations

import pytest
import torch
from fused_cases import FAMILIES, compiled, run, token_ids
from torch.utils.flop_counter import FlopCounterMode

from tintc.errors import OptionError
from tintc.ir import simulator as ops
from tintc.ir.inputs import resolve_inputs
from tintc.runtime.execution.fused import planner
from tintc.runtime.execution.fused.costs import multiply_adds
from tintc.runtime.execution.fused.executor import FusedExecutor
from tintc.runtime.execution.fused.plan import ExecutionPlan, Sizes
from tintc.runtime.execution.fused.planner import UPDATES, make_plan
from tintc.runtime.model.causal_lm import TintForCausalLM


def plan(
    sim: TintForCausalLM, batch: int, length: int, train: int | tuple[int, ...], update: str = "auto"
) -> ExecutionPlan:
    return make_plan(sim.program, ("logits",), Sizes(batch, length, train, 53), update)


@pytest.mark.parametrize("train", [6, (3, 9), (8, 4)])
@pytest.mark.parametrize("update", ["lazy", "materialised"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_count_is_what_runs(name: str, update: str, train: int | tuple[int, ...]) -> None:
    """Attention aside, whose kernel PyTorch counts without its causal half; one position's loss does not count.

    With gradients on, since the counter does not know operations in place. Steps may train on parts of other lengths.
    """
    check_count(compiled(name, n_steps=2), update, train)


@pytest.mark.parametrize("update", ["lazy", "materialised"])
def test_the_count_of_an_optimiser_is_what_runs(update: str) -> None:
    rule = {"optimizer": "normalized", "normalize": "all", "momentum": 0.5, "decay": 0.1}
    check_count(compiled("llama", n_steps=2, **rule), update, 6)


def check_count(sim: TintForCausalLM, update: str, train: int | tuple[int, ...]) -> None:
    made = plan(sim, 2, 12, train, update)
    attention = {ops.AttentionForward, ops.AttentionBackward}
    head = 2 * 2 * 2 * sim.config.hidden_size * 53
    steps = (train, train) if isinstance(train, int) else train
    masks = torch.arange(12) < torch.tensor(steps)[:, None, None].expand(2, 2, 1)
    executor = FusedExecutor(sim, resolve_inputs(token_ids(2, 12), masks), made, None, {})
    with FlopCounterMode(display=False) as counter:
        executor.run()
    products = ("mm", "addmm", "bmm", "baddbmm")
    found = sum(n for op, n in counter.get_flop_counts()["Global"].items() if str(op).split(".")[-1] in products) // 2
    backward = sum(
        2 * steps[op.step] ** 2 * op.n_heads * op.head_dim for op in made.ops if isinstance(op, ops.AttentionBackward)
    )
    wanted = multiply_adds(without(made, attention)) + 2 * backward - head
    assert found == wanted


def without(made: ExecutionPlan, kinds: set[type]) -> ExecutionPlan:
    kept = [op for op in made.ops if type(op) not in kinds]
    return ExecutionPlan(made.sizes, kept, made.lengths, made.last, made.alias, made.lazy)


def test_lazy_up_to_the_length_where_it_saves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the cost of writing: iff fewer than din dout / (din + dout) positions follow.

    See construction.md, section 13.
    """
    monkeypatch.setattr(planner, "WRITE_COST", 0)
    sim = compiled("opt")
    for length in (4, 7, 8, 11, 12, 20):
        made = plan(sim, 1, length, 4)
        for op in made.ops:
            if isinstance(op, ops.LinearDescent):
                dout, din = op.result.type.dims
                assert (op in made.lazy) == (length < din * dout / (din + dout))


def test_the_chosen_update_is_never_far_from_the_cheapest() -> None:
    sim = compiled("llama", n_steps=2)
    for length in (4, 8, 16, 32):
        costs = {update: multiply_adds(plan(sim, 1, length, length // 2, update)) for update in UPDATES}
        written = 3 * sum(p.numel() for p in sim.prefixes.parameters()) * planner.WRITE_COST
        assert costs["auto"] <= min(costs["lazy"], costs["materialised"] + written)


def test_unknown_updates_are_refused() -> None:
    with pytest.raises(OptionError, match="auto, lazy, materialised"):
        run(compiled("opt"), torch.zeros(1, 4, dtype=torch.long), update="eager")
