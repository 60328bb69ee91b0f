"""Simulators from strangers: every lie of `lies` is refused in one sentence, and nothing else happens."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from lies import LIES

import tintc
from tintc.errors import TintcError


@pytest.fixture(autouse=True)
def _ended_after_a_minute() -> Iterator[None]:
    """A reader that waits for a pipe does so for ever."""

    def stop(*_: object) -> None:
        raise TimeoutError("it does not come to an end")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("lie", LIES)
def test_lies(llama_sim: Path, tmp_path: Path, lie: str) -> None:
    change, says = LIES[lie]
    folder = Path(shutil.copytree(llama_sim, tmp_path / "sim"))
    change(folder)
    with pytest.raises(TintcError) as refused:
        _ = tintc.load(folder).tokenizer
    sentence = str(refused.value)
    assert says in sentence and "\n" not in sentence and len(sentence) < 1000


def test_without_a_lie(llama_sim: Path) -> None:
    """What all rows begin with is taken."""
    assert tintc.load(llama_sim).tokenizer is not None
