"""Fused runs leave their small ops to one thread, and leave PyTorch's number of threads as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from fused_cases import compiled, token_ids

from tintc.ir.simulator import LinearForward, NormForward
from tintc.runtime.model import TintForCausalLM


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def threads_seen(sim: TintForCausalLM, monkeypatch: pytest.MonkeyPatch, *kinds: type) -> dict[type, set[int]]:
    """How many threads the fused forms of some ops find in a run."""
    monkeypatch.setattr(sim, "executor", "fused")
    seen: dict[type, set[int]] = {kind: set() for kind in kinds}
    for kind in kinds:

        def noted(self, *args, kind=kind, fused=kind.fused):
            seen[kind].add(torch.get_num_threads())
            return fused(self, *args)

        monkeypatch.setattr(kind, "fused", noted)
    sim(token_ids(1, 12))
    return seen


def test_products_have_all_threads_and_small_ops_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        seen = threads_seen(compiled("gpt2"), monkeypatch, LinearForward, NormForward)
    assert seen == {LinearForward: {3}, NormForward: {1}}
    assert torch.get_num_threads() == 3


def test_a_recorded_run_keeps_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads_seen(compiled("gpt2"), monkeypatch, NormForward) == {NormForward: {3}}


def test_large_ops_keep_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tintc.runtime.fused.plan.SMALL", 10)
    with torch.no_grad():
        sim = compiled("gpt2", inner_lr=0.03)  # its own, since plans are kept
        assert threads_seen(sim, monkeypatch, NormForward) == {NormForward: {3}}


def test_threads_come_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise KeyError("broken")

    sim = compiled("gpt2")
    monkeypatch.setattr(NormForward, "fused", broken)
    monkeypatch.setattr(sim, "executor", "fused")
    with torch.no_grad(), pytest.raises(KeyError, match="broken"):
        sim(token_ids(1, 12))
    assert torch.get_num_threads() == 3
