"""Which of two kernels runs: one table, overridable, and only where ours can."""

from __future__ import annotations

import pytest
import torch

from tintc.errors import OptionError
from tintc.ir.simulator.kernels import choice
from tintc.ir.simulator.kernels.choice import TABLE, VARIABLE, chosen, using


@pytest.fixture
def with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where our kernels can run, in the interpreter."""
    monkeypatch.setattr(choice, "has_triton", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delenv(VARIABLE, raising=False)


def test_the_table_and_what_overrides_it(with_triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
    name, other, x = "norm_backward", "gate_backward", torch.zeros(3)
    with torch.no_grad():
        assert [name for name, entry in TABLE.items() if chosen(name, x) != (entry.way == "triton")] == []
        monkeypatch.setenv(VARIABLE, f"{name}=triton")
        assert chosen(name, x) and not chosen(other, x)
        monkeypatch.setenv(VARIABLE, "triton")
        assert all(chosen(name, x) for name in TABLE)
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


@pytest.mark.parametrize("asked", ["cuda", "norm=triton", "norm_backward=cuda"])
def test_what_does_not_exist_is_refused(asked: str, with_triton: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, asked)
    with torch.no_grad(), pytest.raises(OptionError, match="each with one of torch and triton"):
        chosen("norm_backward", torch.zeros(3))
    with pytest.raises(OptionError, match="there are the kernels"), using("triton", "norm"):
        pass
