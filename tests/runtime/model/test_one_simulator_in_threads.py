"""One simulator in several threads: what each gets is what it gets alone, bit for bit (fp64)."""

from __future__ import annotations

import asyncio
import locale
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from programs import import_model
from tiny_models import gpt2, token_ids
from torch import Tensor

import tintc
from tintc.errors import TintcError
from tintc.runtime.model.causal_lm import TintForCausalLM

TEXTS = [token_ids(1 + k % 3, 8 + k, seed=k) for k in range(6)]
POINT = "pass1.final"


@cache
def one_layer() -> TintForCausalLM:
    sim = import_model(gpt2(n_layers=1, n_heads=3, head_dim=6, d_ff=31)).compile(inner_lr=0.02)
    sim.executor = "auto"
    return sim


def learnt(sim: TintForCausalLM, ids: Tensor) -> Tensor:
    return sim(ids[:, :5], state=sim.adapt(ids)).logits


def generated(sim: TintForCausalLM, ids: Tensor) -> Tensor:
    return sim.generate(ids, max_new_tokens=3, do_sample=False).double()


def captured(sim: TintForCausalLM, ids: Tensor) -> Tensor:
    with sim.capture(POINT) as seen:
        sim(ids)
    return seen[POINT]


def edited(sim: TintForCausalLM, ids: Tensor) -> Tensor:
    with sim.edit({POINT: lambda value: value * float(ids.shape[1])}):
        return sim(ids).logits


USES: dict[str, Callable[[TintForCausalLM, Tensor], Tensor]] = {
    "logits": lambda sim, ids: sim(ids, return_before=True).logits_before + sim(ids).logits,
    "rates": lambda sim, ids: sim(ids, inner_lr=0.01 * ids.shape[1]).logits,
    "states": learnt,
    "generation": generated,
    "captures": captured,
    "edits": edited,
}


@pytest.mark.parametrize("executor", ["fused", "literal"])
def test_every_use_at_once(executor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of several sizes, all uses mixed, four threads that change places as often as Python lets them."""
    sim = one_layer()
    monkeypatch.setattr(sim, "executor", executor)
    uses, texts = list(USES.values()), TEXTS
    if executor == "literal":  # which goes on from no state, and is slower
        uses, texts = [USES[name] for name in ("logits", "captures", "edits")], TEXTS[:2]
    jobs = [(use, ids) for ids in texts for use in uses]
    before = sys.getswitchinterval()

    def one(job: tuple[Any, Tensor]) -> Tensor:
        with torch.no_grad():
            return job[0](sim, job[1])

    alone = [one(job) for job in jobs]
    sim.plans.clear()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as threads:
            together = list(threads.map(one, jobs))
    finally:
        sys.setswitchinterval(before)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_blocks_belong_to_their_context() -> None:
    """Another thread, or another task, sees neither captures nor edits, while its own are there."""
    sim = one_layer()
    ids = TEXTS[0]
    with torch.no_grad():
        plain = sim(ids).logits
        other: list[Tensor] = []

        def elsewhere() -> None:
            with torch.no_grad():
                other.append(sim(ids).logits)

        with sim.capture(POINT) as seen, sim.edit({POINT: torch.zeros_like}):
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            assert not seen and sim.edits
            assert not sim(ids).logits.equal(plain) and seen[POINT].eq(0).all()
        assert not sim.edits and other[0].equal(plain) and sim(ids).logits.equal(plain)

    async def editing(first: asyncio.Event, second: asyncio.Event) -> bool:
        with sim.edit({POINT: torch.zeros_like}):
            first.set()
            await second.wait()
            return bool(sim.edits)

    async def looking(first: asyncio.Event, second: asyncio.Event) -> bool:
        await first.wait()
        second.set()
        return bool(sim.edits)

    async def both() -> list[bool]:
        events = asyncio.Event(), asyncio.Event()
        return list(await asyncio.gather(editing(*events), looking(*events)))

    assert asyncio.run(both()) == [True, False]


def test_blocks_that_end_in_another_order() -> None:
    sim = one_layer()
    first, second = sim.edit({POINT: lambda value: value}), sim.edit({"pass0.final": lambda value: value})
    first.__enter__()
    second.__enter__()
    assert len(sim.edits) == 2
    first.__exit__(None, None, None)
    assert len(sim.edits) == 1
    second.__exit__(None, None, None)
    assert not sim.edits


def settings() -> tuple[Any, ...]:
    """What belongs to the whole process."""
    loggers = ("", "transformers", "tintc", "huggingface_hub", "torch", "py.warnings")
    return (
        [(logging.getLogger(name).level, len(logging.getLogger(name).filters)) for name in loggers],
        transformers.logging.get_verbosity(),
        list(warnings.filters),
        (sys.stdout, sys.stderr, sys.excepthook, os.getcwd(), locale.setlocale(locale.LC_ALL), dict(os.environ)),
        (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_default_device()),
        (torch.initial_seed(), torch.get_rng_state().sum().item(), torch.are_deterministic_algorithms_enabled()),
        (torch.backends.mkldnn.enabled, torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")),
    )


def test_no_setting_of_the_process_outlives_a_call(one_layer: Path, tmp_path: Path) -> None:
    """Compiling, saving, loading, running, adapting, exporting, and their refusals."""
    before = settings()
    sim = tintc.compile(one_layer, output=tmp_path / "sim")
    sim.save_pretrained(tmp_path / "saved")
    loaded = tintc.load(tmp_path / "sim")
    state = loaded.adapt(TEXTS[0])
    loaded(TEXTS[0][:, :4], state=state)
    state.export(tmp_path / "out")
    for refused in (lambda: tintc.load(tmp_path), lambda: tintc.compile(tmp_path), lambda: loaded(TEXTS[0] + 10**6)):
        with pytest.raises(TintcError):
            refused()
    assert settings() == before
