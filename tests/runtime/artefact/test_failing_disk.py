"""The n-th call that touches the disk fails, or its process is killed there, for every n: what is read afterwards is
the old simulator or the new one, whole, and the next save leaves nothing of the failed one.

The files are a few bytes: what is tested is the order of renaming and synchronising.
"""

from __future__ import annotations

import errno
import io
import os
import pkgutil
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from command import finished, forked, process

import tintc
from tintc.errors import ArtefactError, ModelError
from tintc.frontend.source.load import load_auxiliary
from tintc.runtime.artefact.one_file import staged_file
from tintc.runtime.artefact.snapshot import open_snapshot
from tintc.runtime.artefact.staging import merged, staged
from tintc.runtime.model.from_folder import Source

NAMES = ("config.json", "model.safetensors", "program.tint", "tokenizer.json")
MOST_CALLS = 200
MANY = f"after {MOST_CALLS} calls it is not at its end"
WRITERS: dict[str, Callable[[Path], AbstractContextManager[Path]]] = {
    "a folder for another": staged,
    "files in a folder": lambda target: merged(target, ["gone*"]),
}
UNUSED = {"a folder for another": ("os.rename",), "files in a folder": ("tintc.runtime.artefact.disk._renameat2",)}
"""Calls that a writer does not make."""
WRITE, WRITE_OF_OPEN = "writing", "writing to what open() gives"
"""Not calls of a module, but of whatever file was opened, by `io.open` or by the name that Python knows it by."""
WRITES = {WRITE: "io.open", WRITE_OF_OPEN: "builtins.open"}
SHORT = ("os.rename", "os.fsync", "tintc.runtime.artefact.disk._renameat2")
LONG = (
    "os.open",
    "io.open",
    WRITE,
    "os.mkdir",
    "os.unlink",
    "os.chmod",
    "os.listdir",
    "os.scandir",
    "fcntl.flock",
    "os.stat",
)
SAFE_OPEN = "tintc.runtime.artefact.tensor_files.safe_open"
"""What maps files of tensors."""
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
    calls = [0]
    if name in WRITES:
        patch.setattr(WRITES[name], _counting_writes(io.open, calls, n, act))
        return calls
    real = pkgutil.resolve_name(name)

    def counted(*given: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == n + 1:
            answer = act()
            if answer is not None:
                return answer
        return real(*given, **named)

    patch.setattr(name, counted)
    return calls


def _counting_writes(real: Any, calls: list[int], n: int, act: Callable[[], object]) -> Any:
    """Return an `open` of files of which the n-th write of all does something else."""

    def opened(*given: Any, **named: Any) -> Any:
        file = real(*given, **named)
        if not file.writable():
            return file
        write = file.write

        def counted(data: Any) -> Any:
            calls[0] += 1
            if calls[0] == n + 1:
                write(data[: len(data) // 2])  # as a disk that is full does
                act()
            return write(data)

        try:
            file.write = counted
        except AttributeError:  # one of C, which stays as it is
            return file
        return file

    return opened


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
    else:
        pytest.fail(MANY)


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
    else:
        pytest.fail(MANY)
    assert n or name in UNUSED[writer]


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


@pytest.mark.parametrize("name", ["os.open", "os.pread", "os.fstat", "os.stat", "os.listdir", SAFE_OPEN])
def test_every_call_of_a_reader_fails_once(llama_sim: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder whose disk fails while it is read is refused in a sentence, and no descriptor is left open."""
    Source.of(llama_sim, {})
    before = len(os.listdir("/proc/self/fd"))
    refused = 0
    for n in range(MOST_CALLS):
        with monkeypatch.context() as patch:
            calls = nth(name, n, fail, patch)
            try:
                Source.of(llama_sim, {})
            except ArtefactError as error:
                refused += 1
                assert "\n" not in str(error)
        if calls[0] <= n:
            break
    else:
        pytest.fail(MANY)
    assert refused
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_mapping_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a GGUF file, which is mapped."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    monkeypatch.setattr("tintc.frontend.source.gguf_header.mmap", lambda *_, **__: fail())
    with pytest.raises(ModelError, match=r"model\.gguf cannot be read: Input/output error"):
        load_auxiliary(tmp_path)


def test_two_that_compile_to_one_place(one_layer: Path, tmp_path: Path) -> None:
    """Neither may replace what is there: one wins, the other is refused in a sentence, and the place is whole."""
    out = tmp_path / "sim"
    running = [process("compile", one_layer, "-o", out, "--lr", rate) for rate in (0.25, 0.5)]
    results = [finished(one) for one in running]
    assert sorted(result.code for result in results) == [0, 2], results
    (loser,) = [result for result in results if result.code]
    assert "exists already" in loser.err and len(loser.err.strip().splitlines()) == 1
    won = 0.25 if results[0].code == 0 else 0.5
    assert tintc.load(out).config.inner_lr == won
    assert [path.name for path in tmp_path.iterdir()] == ["sim"]
