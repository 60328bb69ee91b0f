"""What will not fit is refused before it runs, or run in parts; parts give what the whole gives (fp64, 1e-12)."""

from __future__ import annotations

import re
import resource
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from command import finished, forked
from fused_cases import FAMILIES, compiled, run, token_ids
from live_bytes import Live

from tintc.errors import InputError, OptionError
from tintc.runtime.execution import available, memory
from tintc.runtime.execution.fused.costs import peak_bytes
from tintc.runtime.execution.fused.plan import Sizes
from tintc.runtime.execution.fused.planner import make_plan
from tintc.runtime.execution.memory import HEADROOM

IDS = token_ids(5, 12)


def limit(monkeypatch: pytest.MonkeyPatch, examples: float) -> None:
    """As much memory as that many examples take."""
    sim = compiled("gpt2", n_steps=2)
    one = peak_bytes(make_plan(sim.program, ("logits",), Sizes(1, 12, 6, 53)), 8)
    monkeypatch.setattr(memory, "available_bytes", lambda device: int(one * examples / HEADROOM) + 1)


@pytest.mark.parametrize("max_batch", [1, 2, 3, 5, 99, "auto"])
def test_parts_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch, max_batch: Any) -> None:
    sim, rates = compiled("gpt2", n_steps=2), torch.linspace(0.01, 0.05, 5, dtype=torch.float64)
    mask = torch.ones(5, 12)
    mask[3, :4] = 0
    given = {"inner_lr": rates, "attention_mask": mask, "return_before": True}
    whole = run(sim, IDS, **given)
    if max_batch == "auto":
        limit(monkeypatch, 4.5)
    parts = run(sim, IDS, max_batch=max_batch, **given)
    assert torch.allclose(parts.logits, whole.logits, rtol=0, atol=1e-12)
    assert torch.allclose(parts.logits_before, whole.logits_before, rtol=0, atol=1e-12)


def test_the_refusal_names_a_batch_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 3.2)
    sim = compiled("gpt2", n_steps=2)
    with pytest.raises(InputError, match=r"A batch of 5 texts of 12 tokens needs about .* GB") as caught:
        run(sim, IDS)
    found = re.search(r"a batch of (\d+) would fit", str(caught.value))
    assert found is not None
    fits = int(found[1])
    assert run(sim, IDS[:fits]).logits.shape[0] == fits
    with pytest.raises(InputError):
        run(sim, IDS[: fits + 1])


def test_the_refusal_names_a_length_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 0.7)
    sim = compiled("gpt2", n_steps=2)
    for max_batch in (None, "auto"):
        with pytest.raises(InputError) as caught:
            run(sim, IDS[:1], max_batch=max_batch)
    found = re.search(r"texts of (\d+) tokens would fit", str(caught.value))
    assert found is not None
    assert run(sim, IDS[:1, : int(found[1])]).logits.shape[1] == int(found[1])


@pytest.mark.parametrize("max_batch", [0, -1, "all", 1.5])
def test_parts_that_make_no_sense(max_batch: Any) -> None:
    with pytest.raises(OptionError, match="max_batch"):
        run(compiled("gpt2", n_steps=2), IDS, max_batch=max_batch)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("update", ["lazy", "materialised"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_estimate_is_what_a_run_takes(name: str, update: str, recorded: bool) -> None:
    """Within a sixth below and the double above the bytes of all tensors alive at the peak, fp32, masked or not.

    Every family and update with every shape, half of them where autograd records and half where it does not."""
    sim = compiled(name, torch.float32, n_steps=2)
    shapes = ((1, 30, 15, True), (4, 30, 20, False), (1, 12, 6, False), (4, 12, 3, True))
    odd = (list(FAMILIES).index(name) + (update == "lazy") + recorded) % 2
    for batch, length, train, masked in shapes[odd::2]:
        ids, given = token_ids(batch, length), {"train_mask": torch.arange(length).expand(batch, -1) < train}
        if masked:
            given["attention_mask"] = torch.ones(batch, length).index_fill(1, torch.tensor([0]), 0)
        kept, (sim.executor, sim.update) = (sim.executor, sim.update), ("fused", update)
        with torch.set_grad_enabled(recorded), Live() as live:
            sim(ids, **given)
        sim.executor, sim.update = kept
        plan = make_plan(sim.program, ("logits",), Sizes(batch, length, train, 53, masked), update)
        assert 0.83 < peak_bytes(plan, 4, recorded) / live.peak < 2, (batch, length, train, masked)


def test_a_slower_update_where_the_fastest_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` falls back on what takes less memory, and gives the same; what was asked for is refused."""
    sim, ids = compiled("opt"), token_ids(4, 30)
    given: dict[str, Any] = {"train_mask": torch.arange(30).expand(4, -1) < 16}
    whole, sizes = run(sim, ids, **given), Sizes(4, 30, 16, 53)
    auto, lazy = (peak_bytes(make_plan(sim.program, ("logits",), sizes, update), 8) for update in ("auto", "lazy"))
    assert lazy < auto
    monkeypatch.setattr(memory, "available_bytes", lambda device: int(lazy / HEADROOM) + 1)
    assert torch.allclose(run(sim, ids, **given).logits, whole.logits, rtol=0, atol=1e-12)
    with pytest.raises(InputError, match="would fit"):
        run(sim, ids, update="materialised", **given)


def test_recorded_runs_are_told_to_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 1.1)
    sim = compiled("gpt2", n_steps=2)
    assert run(sim, IDS[:1]).logits.shape[0] == 1
    monkeypatch.setattr(sim, "executor", "fused")
    with pytest.raises(InputError, match="without gradients"):
        sim(IDS[:1])


@pytest.mark.parametrize(
    ("membership", "files", "left"),
    [
        (
            "0::/job",
            {"job/memory.max": "1000", "job/memory.current": "400", "job/memory.stat": "inactive_file 50"},
            650,
        ),
        ("0::/a/b", {"a/memory.max": "900", "a/memory.current": "100", "a/b/memory.max": "max"}, 800),
        ("4:memory:/j", {"memory/j/memory.limit_in_bytes": "700", "memory/j/memory.usage_in_bytes": "800"}, 0),
        ("3:cpu:/j", {"cpu/j/memory.limit_in_bytes": "700"}, available.UNLIMITED),
        ("4:memory:/", {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, available.UNLIMITED),
    ],
)
def test_limits_of_containers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, membership: str, files: dict[str, str], left: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "cgroup").write_text(membership + "\n")
    monkeypatch.setattr(available, "CGROUP", tmp_path)
    monkeypatch.setattr(available, "MEMBERSHIP", tmp_path / "cgroup")
    assert available.container_bytes() == left


@pytest.mark.parametrize("process", [None, 3 << 30])
def test_limits_of_address_space(monkeypatch: pytest.MonkeyPatch, process: int | None) -> None:
    """What `ulimit -v` leaves beyond what the process has counts as memory; no limit counts as none."""
    used = psutil.Process().memory_info().vms
    most = resource.RLIM_INFINITY if process is None else used + process
    monkeypatch.setattr(resource, "getrlimit", lambda _: (most, most))
    if process is None:
        assert available.address_bytes() == available.UNLIMITED
    else:
        assert abs(available.address_bytes() - process) < 1 << 28
        assert available.available_bytes(torch.device("cpu")) <= process + (1 << 28)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1, 1))
    assert available.available_bytes(torch.device("cpu")) == 0


def test_what_a_gpu_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free memory, and what PyTorch keeps cached; the machine's own memory does not count."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 300)
    assert available.available_bytes(torch.device("cuda", 0)) == 1400


def test_under_a_limit_of_address_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may not have more is refused in a sentence, by both executors, and ends whole."""
    sim = compiled("gpt2", torch.float32)

    def limited() -> None:
        used = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 27), used + (1 << 27)))
        for sim.executor in ("fused", "literal"):
            try:
                with torch.no_grad():
                    sim(token_ids(1, 32).expand(4000, -1))
            except InputError as error:
                print(str(error).partition("would fit")[1])

    result = finished(forked(limited))
    assert result.code == 0 and result.out.split("\n")[:2] == ["would fit"] * 2, result
