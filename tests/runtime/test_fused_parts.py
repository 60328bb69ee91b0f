"""A run by parts of the text gives what a whole run gives: fp64, 1e-9 of the update."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest
import torch
from fused_cases import FAMILIES, compiled, edited, relative_to_update, run, token_ids
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import tintc
from tintc.ir.inputs import resolve_inputs
from tintc.ir.simulator import AttentionBackward, LinearDescent, NormForward
from tintc.reference.tiny import tiny_model
from tintc.runtime.fused import UPDATES, FusedExecutor, make_plan
from tintc.runtime.fused.batches import sizes_of
from tintc.runtime.fused.parts import can_part, run_parts
from tintc.runtime.model import TintForCausalLM

BOTH = ("logits_before", "logits")


def check_parts(
    sim: TintForCausalLM, ids: torch.Tensor, *, outputs=BOTH, update="auto", rate=None, **masks: Any
) -> None:
    inputs = resolve_inputs(ids, n_steps=sim.program.attributes["n_steps"], **masks)
    rate = sim._rate_of(rate, len(ids))
    plan = make_plan(sim.program, outputs, sizes_of(inputs, sim.config.vocab_size), update)
    with torch.no_grad():
        whole = FusedExecutor(sim, inputs, plan, rate).run()
        found = run_parts(sim, inputs, plan, rate)
        before = FusedExecutor(sim, inputs, make_plan(sim.program, BOTH, plan.sizes), rate).run()["logits_before"]
    assert found.keys() == whole.keys()
    for label, logits in found.items():
        assert float((logits - whole[label]).norm()) <= 1e-9 * float((whole["logits"] - before).norm())


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_families(name: str, steps: int, update: str) -> None:
    sim = compiled(name, n_steps=steps)
    check_parts(sim, token_ids(1, 11), update=update)
    check_parts(sim, token_ids(2, 12), update=update, outputs=("logits",))


FEATURES = {
    "alibi": "bloom",
    "soft caps and windows": "gemma2",
    "queries scaled by position": "ministral3",
}


@pytest.mark.parametrize("feature", FEATURES)
def test_features(feature: str) -> None:
    sim = tintc.compile(tiny_model(FEATURES[feature]).double(), inner_lr=0.01, max_length=32)
    check_parts(sim, token_ids(2, 21) % sim.config.vocab_size)


@settings(max_examples=12, deadline=None)
@given(length=st.integers(3, 20), batch=st.integers(1, 3), data=st.data())
def test_masks_and_lengths(length: int, batch: int, data: st.DataObject) -> None:
    """Any tokens are trained on, in each of two steps; padding on either side; rates by example."""
    sim, generator = compiled("llama", n_steps=2), torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    train = torch.rand(2, batch, length, generator=generator) < 0.6
    train[:, :, :2] = True
    pads = data.draw(st.integers(0, length - 3))
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, :pads] = 0
    train[:, 0, pads : pads + 2] = True
    rate = torch.linspace(0.01, 0.03, batch, dtype=torch.float64)
    outputs = BOTH if data.draw(st.booleans()) else BOTH[1:]
    check_parts(sim, token_ids(batch, length), train_mask=train, attention_mask=mask, rate=rate, outputs=outputs)


def test_weights_are_outputs_too() -> None:
    sim = compiled("gpt2")
    made = {op.target: op.result for op in sim.program.ops if isinstance(op, LinearDescent)}
    program = edited(sim, sim.program)
    program.program.outputs |= {
        op.target: op.result for op in program.program.ops if isinstance(op, LinearDescent) and op.target in made
    }
    inputs = resolve_inputs(token_ids(1, 12))
    plan = make_plan(program.program, tuple(made), sizes_of(inputs, 53), "materialised")
    with torch.no_grad():
        whole, found = FusedExecutor(program, inputs, plan, None).run(), run_parts(program, inputs, plan, None)
    for name in made:
        torch.testing.assert_close(found[name].weight, whole[name].weight, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("where", [NormForward, AttentionBackward, LinearDescent])
def test_an_error_in_either_part_is_the_callers(where: type, monkeypatch: pytest.MonkeyPatch) -> None:
    sim, inputs = compiled("gpt2"), resolve_inputs(token_ids(1, 12))
    plan = make_plan(sim.program, ("logits",), sizes_of(inputs, 53))
    for failing in (0, 1):
        fused = where.fused

        def broken(self, run, *args, fused=fused, failing=failing):
            if run.part == failing:
                raise KeyError(f"part {failing}")
            return fused(self, run, *args)

        monkeypatch.setattr(where, "fused", broken)
        running, threads = threading.active_count(), torch.get_num_threads()
        with torch.no_grad(), pytest.raises(KeyError, match=f"part {failing}"):
            run_parts(sim, inputs, plan, None)
        assert threading.active_count() == running and torch.get_num_threads() == threads
        monkeypatch.undo()


def test_an_interruption_outside_of_the_ops_ends_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    sim, inputs = compiled("gpt2"), resolve_inputs(token_ids(1, 12))
    plan = make_plan(sim.program, ("logits",), sizes_of(inputs, 53))
    start, started = threading.Thread.start, []

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        started.append(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with torch.no_grad(), pytest.raises(KeyboardInterrupt):
        run_parts(sim, inputs, plan, None)
    (thread,) = started
    thread.join(timeout=20)
    assert not thread.is_alive()


def test_nothing_is_kept_after_a_run() -> None:
    """Every value that parts hand to each other is let go of, outputs aside."""
    sim, inputs = compiled("llama", n_steps=2), resolve_inputs(token_ids(1, 12))
    plan = make_plan(sim.program, ("logits",), sizes_of(inputs, 53))
    kept: list[weakref.ref[torch.Tensor]] = []
    fused = NormForward.fused

    def noted(self, run, *args):
        result = fused(self, run, *args)
        kept.append(weakref.ref(result))
        return result

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(NormForward, "fused", noted)
        found = run_parts(sim, inputs, plan, None)
    gc.collect()
    assert len(kept) > 10 and not any(ref() is not None for ref in kept)
    assert found["logits"].shape == (1, 12, 53)


def test_when_a_run_is_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU with threads to share, for long texts; never where a thread would escape a mode."""
    sim, cpu = compiled("llama"), torch.device("cpu")

    def plan(length: int) -> Any:
        inputs = resolve_inputs(torch.zeros(1, length, dtype=torch.long))
        return make_plan(sim.program, ("logits",), sizes_of(inputs, 53))

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with torch.no_grad():
        assert can_part(plan(128), cpu)
        assert not can_part(plan(64), cpu)
        assert not can_part(plan(128), torch.device("cuda"))
        with FlopCounterMode(display=False):
            assert not can_part(plan(128), cpu)
        with torch.autocast("cpu"):
            assert not can_part(plan(128), cpu)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
            assert not can_part(plan(128), cpu)
    assert not can_part(plan(128), cpu)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with torch.no_grad():
        assert not can_part(plan(128), cpu)


def test_the_model_runs_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch in pieces, what captures show, and generation."""
    sim, ids = compiled("llama", max_length=128), token_ids(3, 100)
    called: list[int] = []
    monkeypatch.setattr("tintc.runtime.fused.batches.run_parts", lambda *a: called.append(1) or run_parts(*a))

    def everything() -> Any:
        with sim.capture("pass*.layers.*.residual") as seen:
            out = run(sim, ids, return_before=True, max_batch=2)
        sim.executor = "fused"
        return out, dict(seen), sim.generate(ids, max_new_tokens=5, do_sample=False)

    threads, executor = torch.get_num_threads(), sim.executor
    try:
        torch.set_num_threads(1)
        whole, shown, text = everything()
        assert called == []
        torch.set_num_threads(2)
        by_parts, shown_by_parts, text_by_parts = everything()
    finally:
        torch.set_num_threads(threads)
        sim.executor = executor
    assert len(called) == 3  # two pieces of the batch, and the prompt
    assert relative_to_update(by_parts.logits, whole.logits, whole.logits_before) < 1e-9
    assert text.equal(text_by_parts) and shown.keys() == shown_by_parts.keys() and len(shown) > 2
    for name, value in shown.items():
        torch.testing.assert_close(shown_by_parts[name], value, rtol=1e-9, atol=1e-12)
