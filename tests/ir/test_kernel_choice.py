"""Which of two kernels runs: one table, overridable, and only where ours can."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from tintc.errors import OptionError
from tintc.ir.simulator.kernels import choice, measured
from tintc.ir.simulator.kernels.choice import TABLE, VARIABLE, chosen, using
from tintc.ir.simulator.kernels.measured import Case
from tintc.ir.simulator.kernels.rows import takes_tf32
from tintc.runtime.execution.fused import graphs

LOSS_BY_CHUNKS = hasattr(torch.nn.functional, "linear_cross_entropy")
"""Torch 2.11 has none."""


@pytest.fixture
def with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where our kernels can run, in the interpreter."""
    monkeypatch.setattr(choice, "has_triton", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delenv(VARIABLE, raising=False)


def test_the_table_and_what_overrides_it(with_triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
    name, other, x = "norm_backward", "gate_backward", torch.zeros(3)
    with torch.no_grad():
        ours = [name for name, entry in TABLE.items() if entry.other == "triton"]
        assert [name for name in ours if chosen(name, x) != (TABLE[name].way == "triton")] == []
        monkeypatch.setenv(VARIABLE, f"{name}=triton")
        assert chosen(name, x) and not chosen(other, x)
        monkeypatch.setenv(VARIABLE, "triton")
        assert all(chosen(name, x) for name in ours) and not chosen("recurrence", x)
        with using("torch", name):
            assert not chosen(name, x) and chosen(other, x)
            with using("triton"):
                assert chosen(name, x)
        assert chosen(name, x)


def test_where_ours_cannot_run(with_triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autograd, in fp64, without Triton, and on a CPU that interprets nothing."""
    x = torch.zeros(3)
    with using("triton"):
        assert not chosen("norm_backward", x)
        with torch.no_grad():
            assert not chosen("norm_backward", x.double())
            assert not chosen("norm_backward", x, x.double())
            monkeypatch.delenv("TRITON_INTERPRET")
            assert not chosen("norm_backward", x)
            monkeypatch.setenv("TRITON_INTERPRET", "1")
            monkeypatch.setattr(choice, "has_triton", lambda: False)
            assert not chosen("norm_backward", x)


def test_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each where it is, and takes what there is."""
    short, even = torch.zeros(3, 8, 24, dtype=torch.bfloat16), torch.zeros(3, 8)
    with torch.no_grad(), using("library"):
        assert chosen("grouped_product", short) and not chosen("grouped_product", short[..., :23])
        assert not chosen("grouped_product", even) and not chosen("norm_backward", even)
        assert chosen("loss_gradient", even) == LOSS_BY_CHUNKS and not chosen("recurrence", short)
        with using("torch"):
            assert not chosen("grouped_product", short)
        with torch.inference_mode():
            assert not chosen("loss_gradient", even)
        monkeypatch.setattr(choice, "has_module", lambda name: True)
        assert not chosen("recurrence", short)  # on a CPU


@pytest.mark.parametrize("asked", ["cuda", "norm=triton", "norm_backward=cuda", "recurrence=triton"])
def test_what_does_not_exist_is_refused(asked: str, with_triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, asked)
    with torch.no_grad(), pytest.raises(OptionError, match="each also as torch's operators"):
        chosen("norm_backward", torch.zeros(3))
    with pytest.raises(OptionError, match="there are the kernels"), using("triton", "norm"):
        pass


def test_what_was_measured_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, by dtype, unless something else is asked for; results that are wrong are not worth their speed."""
    cases = [
        Case("norm_backward", "bfloat16", "8 x 9", 2e-4, 1e-4, 1e-3),
        Case("norm_backward", "bfloat16", "8 x 99", 2e-4, 2e-4, 1e-3),
        Case("norm_backward", "float32", "8 x 9", 1e-4, 0.97e-4, 1e-4),
        Case("gate_backward", "bfloat16", "8 x 9", 2e-4, 1e-4, float("nan")),
    ]
    kept = json.loads(measured.as_text("a GPU", cases))
    assert [Case(**case) for case in kept["cases"]][:3] == cases[:3]
    found = measured.verdicts(kept["machine"], cases)
    monkeypatch.setattr(choice, "measured", lambda: found)
    monkeypatch.delenv(VARIABLE, raising=False)
    on_gpu = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16)
    won = choice.entry("norm_backward", on_gpu)  # pyright: ignore[reportArgumentType]
    assert won.way == "triton"
    assert won.reason == "0.71 of the time of PyTorch's operators (0.50 at 8 x 9, 1.00 at 8 x 99), on a GPU"
    wrong = choice.entry("gate_backward", on_gpu)  # pyright: ignore[reportArgumentType]
    assert wrong.way == "torch" and "nan off at 8 x 9" in wrong.reason
    on_gpu.dtype = torch.float32
    assert choice.entry("norm_backward", on_gpu).way == "torch"  # pyright: ignore[reportArgumentType]
    assert choice.entry("norm_backward", torch.zeros(2)) == TABLE["norm_backward"]
    with using("triton"):
        assert choice.entry("norm_backward", on_gpu).way == "triton"  # pyright: ignore[reportArgumentType]


def test_what_is_measured_belongs_to_kernels() -> None:
    """The file in the package can be read, and names kernels that there are."""
    assert {kernel for kernel, _ in measured.measured()} <= TABLE.keys()


def test_tf32_by_either_switch() -> None:
    """The old one cannot be read where the new one was set."""
    switches = torch.backends.cuda.matmul
    before = graphs.surroundings()
    try:
        switches.fp32_precision = "tf32"
        with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
            _ = switches.allow_tf32
        assert takes_tf32() and graphs.surroundings() != before
        switches.allow_tf32 = False
        assert not takes_tf32() and graphs.surroundings() == before
        switches.allow_tf32 = True
        assert takes_tf32()
    finally:
        switches.allow_tf32 = False
