"""What is said of a name that is no folder, without asking the hub at length. No test asks it at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import tintc
from tintc import hub
from tintc.errors import ArtefactError, ModelError


def unreachable(*_: object, **__: object) -> bool:
    raise ConnectionError("no network")


ANSWERS: dict[str, tuple[str, Callable[..., bool], str]] = {
    "no id": ("sims/../story", unreachable, "no model on the hub can have that name"),
    "offline": ("someone/nosuch", unreachable, r"the hub cannot be asked for it \(ConnectionError\)"),
    "one word": ("nosuch", unreachable, r"the hub cannot be asked for it \(ConnectionError\)"),
    "not there": ("nosuch", lambda *_, **__: False, "the hub has no such model"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_a_name_that_is_nothing(case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name, answer, says = ANSWERS[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "file_exists", answer)
    monkeypatch.setattr("tintc.runtime.artefact.beside.cached_file", None)
    with pytest.raises(ArtefactError, match=f"There is no folder {name}, and {says}; check the path"):
        tintc.load(name)
    with pytest.raises(ModelError, match=f"There is no folder {name}, and {says}; pass a folder"):
        tintc.compile(name)


def test_what_is_cached_needs_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "file_exists", unreachable)
    snapshot = tmp_path / "models--someone--sim" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "models--someone--sim" / "refs").mkdir()
    (tmp_path / "models--someone--sim" / "refs" / "main").write_text("0")
    assert hub.why_missing("someone/sim", cache_dir=tmp_path) is None
    assert "in the cache" in str(hub.why_missing("someone/other", cache_dir=tmp_path, local_files_only=True))
