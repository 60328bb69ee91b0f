"""State files: the same bytes for the same state, nothing replaced that is none, and every changed bit refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import contents, finished, forked
from continuations import compiled
from fused_cases import token_ids
from programs import mixture_like, simulator
from safetensors.torch import load_file, save_file

from tintc.errors import ArtefactError
from tintc.runtime.adaptation.state_writer import is_state
from tintc.runtime.model.adapted_state import AdaptedState


def link(path: Path) -> None:
    path.with_name("elsewhere").write_text("a letter")
    path.symlink_to("elsewhere")


TARGETS: dict[str, tuple[Callable[[Path], object], str, bool]] = {
    "a pipe": (os.mkfifo, "is no regular file, so it will not be replaced", False),
    "a link": (link, "is a link, which is not replaced", False),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), "is a link, which is not replaced", False),
    "a folder": (Path.mkdir, "is a folder", False),
    "a letter": (lambda path: path.write_text("a letter"), "exists already and is not a state; pass force=True", True),
    "an empty file": (Path.touch, "exists already and is not a state", True),
    "other tensors": (lambda path: save_file({"a": torch.zeros(1)}, path), "exists already and is not a state", True),
}
"""What is there, what is said of it, and whether `force` replaces it."""


def identity(path: Path) -> tuple[int, ...]:
    """Return what tells a file, replaced or written to, from itself; not when it was read."""
    status = os.lstat(path)
    return status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@pytest.mark.parametrize("what", TARGETS)
def test_what_is_not_replaced(tmp_path: Path, what: str) -> None:
    make, says, forced = TARGETS[what]
    state, target = compiled("gpt2").adapt(token_ids(1, 8)), tmp_path / "state"
    make(target)
    before = identity(target)
    for force in (False,) if forced else (False, True):
        with pytest.raises(ArtefactError, match=says):
            state.save(target, force=force)
    assert identity(target) == before
    if forced:
        state.save(target, force=True)
        assert is_state(target)
        state.save(target)


@pytest.mark.parametrize("kind", ["one text", "several texts", "experts"])
def test_the_same_bytes(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another process too, whose hashes of text are others; the tensors are the state's. One text's state is made
    literally, the others fused."""
    if kind == "experts":
        sim = simulator(*mixture_like(chosen=2), inner_lr=0.02)
        sim.executor = "fused"
    else:
        sim = compiled("gpt2")
        monkeypatch.setattr(sim, "executor", "literal" if kind == "one text" else "fused")
    ids = token_ids(1 + (kind != "one text"), 8) % 11
    sim.adapt(ids).save(tmp_path / "a")
    other = finished(forked(lambda: sim.adapt(ids).save(tmp_path / "b")))
    assert other.code == 0, other.err
    AdaptedState.load(tmp_path / "a", sim).save(tmp_path / "c")
    files = contents(tmp_path)
    assert files["a"] == files["b"] == files["c"]
    length = int.from_bytes(files["a"][:8], "little")
    assert (8 + length) % 8 == 0 and list(load_file(tmp_path / "a")) != []


def test_every_changed_bit_is_refused(tmp_path: Path) -> None:
    """Of the numbers; and of the header what does not change what it says."""
    sim, file = compiled("gpt2"), tmp_path / "state"
    sim.adapt(token_ids(1, 8)).save(file)
    data = file.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    for position in (begin, begin + (len(data) - begin) // 2, len(data) - 1):
        changed = bytearray(data)
        changed[position] ^= 1
        file.write_bytes(changed)
        with pytest.raises(ArtefactError, match=r"(not those that were written|NaN or infinite)"):
            AdaptedState.load(file, sim)


def rewritten(file: Path, **metadata: Any) -> None:
    tensors = load_file(file)
    save_file(tensors, file, {"format": "tintc-state", "version": "1"} | metadata)


def test_hostile_files(tmp_path: Path) -> None:
    """A pipe, types that no state has, and metadata that nest without end."""
    sim, file = compiled("gpt2"), tmp_path / "state"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtefactError, match="it is a pipe, not a file"):
        AdaptedState.load(tmp_path / "pipe", sim)
    sim.adapt(token_ids(3, 9)).save(file)
    data = file.read_bytes()
    name = next(iter(sorted(load_file(file))))
    for old, new, says in (
        (b'"F64"', b'"C64"', "(of the type C64|cannot be read as a state)"),
        (b'"F64"', b'"I64"', "of the type I64"),
        (name.encode(), name[:-1].encode() + b"9", "it has no"),
    ):
        file.write_bytes(data.replace(old, new, 1))
        with pytest.raises(ArtefactError, match=says):
            AdaptedState.load(file, sim)
    file.write_bytes(data)
    metadata = {"simulator": "0" * 64, "examples": "2", "pending": "[" * 100_000}
    rewritten(file, **metadata)
    with pytest.raises(ArtefactError, match="belongs to another simulator"):
        AdaptedState.load(file, sim)


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    """But not what others keep there, nor what a living one writes."""
    state, target = compiled("gpt2").adapt(token_ids(1, 8)), tmp_path / "state"
    for name in (".state.tintc-dead", ".state.notes", ".states.tintc-dead"):
        (tmp_path / name).write_text("half of it")
    (tmp_path / ".state.tintc-folder").mkdir()
    state.save(target)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"state", ".state.notes", ".states.tintc-dead", ".state.tintc-folder"}
