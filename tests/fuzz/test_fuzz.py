"""Mutated files of simulators, states, models and GGUF: each is read or refused in a sentence, in two seconds, within
200 MB and its folder. `make fuzz` tries as many as one likes (`run.py`).

Cases run in a fork: what watches them, hears all that its process does.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import pytest
from cases import Case, Watch, tried
from command import finished, forked
from edits import Edit
from hypothesis import HealthCheck, Phase, given, settings
from readers import READERS, Reader, Sandbox

CORPUS = Path(__file__).with_name("corpus.jsonl")
"""Cases that were wrong once."""
COUNT = 500


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory, llama_sim: Path) -> Sandbox:
    return Sandbox(tmp_path_factory.mktemp("fuzz") / "sandbox", llama_sim.parent)


def outcomes(sandbox: Sandbox, scratch: Path, given_cases: Callable[[Callable[[Case], None]], object]) -> Any:
    """Return how many cases were tried and refused, and what is wrong with those that are."""

    def action() -> None:
        tempfile.tempdir = str(scratch)
        watch = Watch(sandbox, scratch)
        told: dict[str, Any] = {"tried": 0, "refused": 0, "readers": {}, "wrong": []}

        def one(case: Case) -> None:
            outcome = tried(case, sandbox, watch)
            told["tried"] += 1
            told["refused"] += outcome.refused
            told["readers"][case.reader] = True
            if outcome.wrong:
                told["wrong"].append(f"{case.line()}: {outcome.wrong}")

        given_cases(one)
        print("\n" + json.dumps(told))

    result = finished(forked(action))
    assert result.code == 0, result.err
    return json.loads(result.out.splitlines()[-1])


def test_drawn_cases(sandbox: Sandbox, tmp_path: Path) -> None:
    """The same ones each time; `make fuzz` draws others."""

    def drawn(one: Callable[[Case], None]) -> None:
        @settings(
            max_examples=COUNT,
            database=None,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        )
        @given(cases.cases())
        def each(case: Case) -> None:
            one(case)

        each()

    told = outcomes(sandbox, tmp_path, drawn)
    assert not told["wrong"], "\n".join(told["wrong"])
    assert told["tried"] == COUNT and told["readers"].keys() == READERS.keys()
    assert COUNT // 2 < told["refused"] < COUNT


def test_corpus(sandbox: Sandbox, tmp_path: Path) -> None:
    corpus = [Case.of_line(line) for line in CORPUS.read_text().splitlines()]
    told = outcomes(sandbox, tmp_path, lambda one: [one(case) for case in corpus])
    assert not told["wrong"], "\n".join(told["wrong"])
    assert told["tried"] == len(corpus) > 0


def test_whole_files_are_read(sandbox: Sandbox, tmp_path: Path) -> None:
    """What all edits begin with is refused by no reader but that of an adapter, whose package may be missing."""
    told = outcomes(sandbox, tmp_path, lambda one: [one(Case(name, ())) for name in READERS])
    assert not told["wrong"] and told["tried"] == len(READERS) and told["refused"] == 0


def _write(place: Path) -> None:
    place.write_text("x")


def _hoard(_: Path) -> None:
    len(bytearray(b"x") * (60 << 20))


def _fail(_: Path) -> None:
    raise KeyError("name")


def _wait(_: Path) -> None:
    time.sleep(5)


def _turn(_: Path) -> None:
    while True:
        pass


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "an error": (_fail, "KeyError"),
    "a file outside": (lambda folder: _write(folder.parents[1] / "elsewhere"), "elsewhere"),
    "a file outside removed": (lambda folder: (folder.parents[1] / "kept").unlink(), "os.remove of"),
    "a file outside read": (lambda folder: (folder.parent / "outside" / "program.tint").read_text(), "opened"),
    "memory": (_hoard, "MB"),
    "waiting": (_wait, "it took 5.0 s"),
    "time": (_turn, "TooLongError"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_noticed(sandbox: Sandbox, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    act, says = MISTAKES[name]
    (sandbox.base.parent / "kept").touch()
    monkeypatch.setitem(READERS, "wrong", Reader("sim", {}, lambda _, folder: act(folder), 1))
    monkeypatch.setattr(cases, "MOST_SECONDS", 0.1)
    monkeypatch.setattr(cases, "MOST_MEMORY", 40_000_000)
    monkeypatch.setattr("time.sleep", _audited_sleep)
    told = outcomes(sandbox, tmp_path, lambda one: one(Case("wrong", ())))
    assert len(told["wrong"]) == 1 and says in told["wrong"][0]


def _audited_sleep(seconds: float) -> None:
    """Tell of a sleep without sleeping."""
    sys.audit("time.sleep", seconds)


def test_a_case_is_a_line() -> None:
    case = Case("settings", (Edit("config.json", "set", 3, 5),))
    assert Case.of_line(case.line()) == case
