"""Literal runs that will not fit are refused before they start, or run in parts (fp64, 1e-12)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fused_cases import compiled, run, token_ids
from live_bytes import Live
from programs import gpt_like, llama_like, simulator

from tintc.errors import InputError
from tintc.runtime.execution import memory
from tintc.runtime.execution.fused.executor import FusedExecutor
from tintc.runtime.execution.literal.budget import peak_bytes
from tintc.runtime.execution.literal.executor import LiteralExecutor
from tintc.runtime.model.causal_lm import TintForCausalLM

IDS = token_ids(5, 12)


def gpt() -> TintForCausalLM:
    return compiled("gpt2", n_update_layers=1)


def limit(monkeypatch: pytest.MonkeyPatch, examples: float) -> None:
    """As much memory as a literal run of that many examples takes."""
    sim = gpt()
    one = peak_bytes(sim.program, sim.layout, 1, 12, 8, False)
    monkeypatch.setattr(memory, "available_bytes", lambda device: int(one * examples / memory.HEADROOM) + 1)


MODELS: dict[str, Callable[[], TintForCausalLM]] = {
    "gpt": lambda: simulator(*gpt_like()).float(),
    "llama": lambda: simulator(*llama_like()).float(),
    "opt": lambda: compiled("opt", torch.float32),
}


@pytest.mark.parametrize(
    ("name", "recorded", "batch", "length"),
    [
        ("gpt", False, 2, 24),
        ("gpt", True, 1, 12),
        ("llama", False, 1, 12),
        ("llama", True, 2, 24),
        ("opt", True, 1, 12),
    ],
)
def test_the_estimate_is_what_a_run_takes(name: str, recorded: bool, batch: int, length: int) -> None:
    """Within a tenth below and the double above the bytes of all tensors alive at the peak, fp32; every two of kind,
    shape and whether autograd records, though not every three of them."""
    sim = MODELS[name]()
    kept, sim.executor = sim.executor, "literal"
    with torch.set_grad_enabled(recorded), Live() as live:
        sim(token_ids(batch, length, sim.config.vocab_size))
    sim.executor = kept
    estimate = peak_bytes(sim.program, sim.layout, batch, length, 4, recorded)
    assert 0.9 < estimate / live.peak < 2, (batch, length)


@pytest.mark.parametrize("max_batch", [2, "auto"])
def test_parts_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch, max_batch: Any) -> None:
    sim, rates = gpt(), torch.linspace(0.01, 0.05, 5, dtype=torch.float64)
    whole = run(sim, IDS, "literal", inner_lr=rates, return_before=True)
    limit(monkeypatch, 2.5)
    parts = run(sim, IDS, "literal", inner_lr=rates, return_before=True, max_batch=max_batch)
    assert torch.allclose(parts.logits, whole.logits, rtol=0, atol=1e-12)
    assert torch.allclose(parts.logits_before, whole.logits_before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("executor", ["literal", "fused"])
def test_memory_that_runs_out_all_the_same(monkeypatch: pytest.MonkeyPatch, executor: str) -> None:
    """Where three texts do not find room in the end, ``auto`` goes on with fewer; else a sentence says so."""
    sim = gpt()
    whole = run(sim, IDS, executor).logits
    owner = {"literal": LiteralExecutor, "fused": FusedExecutor}[executor]
    real, counts = owner.run, list[int]()

    def without_room(self: Any, *given: Any, **named: Any) -> Any:
        counts.append(self.inputs.shape[0])
        if counts[-1] > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes.")
        return real(self, *given, **named)

    monkeypatch.setattr(owner, "run", without_room)
    with pytest.raises(InputError, match=r"The memory does not suffice for 5 of 5 texts at a time \(Default"):
        run(sim, IDS, executor)
    counts.clear()
    assert torch.allclose(run(sim, IDS, executor, max_batch="auto").logits, whole, rtol=0, atol=1e-12)
    assert counts == [5, 2, 2, 1]


def test_the_refusal_names_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    sim = gpt()
    limit(monkeypatch, 2.2)
    with pytest.raises(InputError, match=r"A batch of 5 texts of 12 tokens needs about .* a batch of 2 would fit, or"):
        run(sim, IDS, "literal")
    assert run(sim, IDS[:2], "literal").logits.shape[0] == 2
    limit(monkeypatch, 0.9)
    with pytest.raises(InputError) as refused:
        run(sim, IDS[:1], "literal", max_batch="auto")
    shorter = re.search(r"texts of (\d+) tokens would fit", str(refused.value))
    assert shorter is not None
    assert run(sim, IDS[:1, : int(shorter[1])], "literal").logits.shape[0] == 1


def test_what_is_adapted_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    sim = gpt()
    limit(monkeypatch, 0.9)
    kept, sim.executor = sim.executor, "literal"
    try:
        with pytest.raises(InputError, match=r"texts of .* tokens would fit"):
            sim.adapt(IDS[:1])
    finally:
        sim.executor = kept
