"""The n-th call that touches the disk fails, or its process is killed there, for every n: what is read afterwards is
the old simulator or the new one, whole, and the next save leaves nothing of the failed one.

The files are a few bytes: what is tested is the order of renaming and synchronising.
"""

from __future__ import annotations

import errno
import os
import pkgutil
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from command import finished, forked

from tintc.runtime.artefact.one_file import staged_file
from tintc.runtime.artefact.snapshot import open_snapshot
from tintc.runtime.artefact.staging import merged, staged

NAMES = ("config.json", "model.safetensors", "program.tint", "tokenizer.json")
MOST_CALLS = 200
WRITERS: dict[str, Callable[[Path], AbstractContextManager[Path]]] = {
    "a folder for another": staged,
    "files in a folder": lambda target: merged(target, ["gone*"]),
}
UNUSED = {"a folder for another": ("os.rename",), "files in a folder": ("tintc.runtime.artefact.disk._renameat2",)}
"""Calls that a writer does not make."""
SHORT = ("os.rename", "os.fsync", "tintc.runtime.artefact.disk._renameat2")
LONG = ("os.open", "os.mkdir", "os.unlink", "os.chmod", "os.listdir", "os.scandir", "fcntl.flock", "os.stat")
CALLS = [*SHORT, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG)]


def write(target: Path, writer: str, version: str) -> None:
    with WRITERS[writer](target) as place:
        for name in NAMES:
            (place / name).write_text(version)


def old(base: Path) -> Path:
    """A folder of the first version, in which somebody keeps notes."""
    base.mkdir()
    target = base / "sim"
    target.mkdir()
    for name in (*NAMES, "gone.txt"):
        (target / name).write_text("old")
    return target


def versions(target: Path) -> set[str]:
    """What a reader sees, after what it may finish."""
    with open_snapshot(target) as snapshot:
        assert snapshot.files.keys() == {*NAMES}
        return {str(snapshot.text(name)) for name in NAMES}


def check_after(target: Path, writer: str) -> str:
    """Return the version that is there, whole; the next save is whole too, and nothing else is left."""
    (seen,) = versions(target)
    assert (target / "gone.txt").exists() == (seen == "old")
    write(target, writer, "later")
    assert versions(target) == {"later"}
    assert [path.name for path in target.parent.iterdir()] == ["sim"]
    assert {path.name for path in target.iterdir()} == {*NAMES}
    return seen


def nth(name: str, n: int, act: Callable[[], object], patch: pytest.MonkeyPatch) -> list[int]:
    """Have the n-th call of a function do something else; return the number of calls, in a list."""
    real = pkgutil.resolve_name(name)
    calls = [0]

    def counted(*given: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == n + 1:
            answer = act()
            if answer is not None:
                return answer
        return real(*given, **named)

    patch.setattr(name, counted)
    return calls


def fail() -> None:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("writer", WRITERS)
def test_every_call_fails_once(tmp_path: Path, writer: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    act: Callable[[], object] = fail
    if name.endswith("_renameat2"):  # which returns what went wrong
        act = lambda: errno.EIO  # noqa: E731
    for n in range(MOST_CALLS):
        target = old(tmp_path / str(n))
        failed = False
        with monkeypatch.context() as patch:
            calls = nth(name, n, act, patch)
            try:
                write(target, writer, "new")
            except OSError:
                failed = True
        if calls[0] <= n:
            break
        after = check_after(target, writer)
        assert after == "old" or not failed or name in LONG, f"call {n} of {name} failed, and the new one is there"
    assert calls[0] <= n


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("writer", WRITERS)
def test_killed_at_every_call(tmp_path: Path, writer: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(MOST_CALLS):
        target = old(tmp_path / str(n))
        with monkeypatch.context() as patch:
            nth(name, n, lambda: os.kill(os.getpid(), signal.SIGKILL), patch)
            running = forked(lambda target=target: write(target, writer, "new"))
        result = finished(running)
        if result.code == 0:
            break
        assert result.code == -signal.SIGKILL, result.err
        check_after(target, writer)
    assert result.code == 0 and (n or name in UNUSED[writer])


@pytest.mark.parametrize("name", ["os.replace", "os.fsync", "os.chmod", "tempfile.mkstemp"])
def test_one_file(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, for a single file: failing, and killed."""
    for n in range(5):
        for kills in (False, True):
            target = tmp_path / f"{n}{kills}" / "state"
            target.parent.mkdir()
            target.write_text("old")

            def save(target: Path = target) -> None:
                with staged_file(target) as stream:
                    stream.write(b"new")

            with monkeypatch.context() as patch:
                if kills:
                    nth(name, n, lambda: os.kill(os.getpid(), signal.SIGKILL), patch)
                    ended = finished(forked(save)).code
                else:
                    ended = 0
                    nth(name, n, fail, patch)
                    try:
                        save()
                    except OSError:
                        ended = 1
            assert target.read_text() in ("old", "new") and (ended or target.read_text() == "new")
            if not kills:
                assert [path.name for path in target.parent.iterdir()] == ["state"]
            save()
            assert [path.name for path in target.parent.iterdir()] == ["state"] and target.read_text() == "new"
