"""The power fails at any moment of a save: what was not synchronised is lost, and what is read afterwards is the old
version or the new one, whole.

Nothing is cut here: every call that synchronises, renames or removes is recorded, and after each of them two disks are
made up. On one, nothing has survived but what was synchronised: a file's bytes, a folder's names. On the other all
names have, and of the bytes only those.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_failing_disk import WRITERS, check_after, old, write

from tintc.runtime.artefact.one_file import staged_file

CHANGES = ("os.rename", "os.replace", "os.unlink", "os.rmdir", "tintc.runtime.artefact.disk._renameat2")


class Disk:
    """What of a folder, by inode, has been synchronised. Inodes are held open, so that none is used again."""

    def __init__(self, base: Path):
        self.base = base
        self.bytes: dict[int, bytes] = {}
        self.names: dict[int, dict[str, int]] = {}
        self.kinds: dict[int, bool] = {}
        self.held: list[int] = []
        for path in (base, *base.rglob("*")):
            self.sync(path)

    def inode(self, path: Path) -> int:
        """Return the number of what is at a path, which is a folder or a file for ever."""
        status = path.lstat()
        if status.st_ino not in self.kinds:
            self.held.append(os.open(path, os.O_RDONLY))
            self.kinds[status.st_ino] = stat.S_ISDIR(status.st_mode)
        return status.st_ino

    def sync(self, path: Path) -> None:
        """Note that a file or folder is on the disk as it is now."""
        number = self.inode(path)
        if self.kinds[number]:
            self.names[number] = {child.name: self.inode(child) for child in path.iterdir()}
        else:
            self.bytes[number] = path.read_bytes()

    def after_a_cut(self, target: Path, names_survive: bool) -> None:
        """Make the folder that a cut leaves."""
        self._write(self.inode(self.base), self.base if names_survive else None, target)

    def _write(self, number: int, now: Path | None, target: Path) -> None:
        if not self.kinds[number]:
            target.write_bytes(self.bytes.get(number, b""))
            return
        target.mkdir()
        children = self.names.get(number, {})
        if now is not None:
            children = {child.name: self.inode(child) for child in now.iterdir()}
        for name, child in children.items():
            self._write(child, None if now is None else now / name, target / name)

    def close(self) -> None:
        for descriptor in self.held:
            os.close(descriptor)


@contextmanager
def recorded(disk: Disk, cut: Callable[[], None], patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Call `cut` after every change of the disk inside the block; give the names of the changes."""
    seen: list[str] = []
    fsync = os.fsync

    def synced(descriptor: Any) -> None:
        fsync(descriptor)
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        path = Path(os.readlink(f"/proc/self/fd/{number}"))
        if path.is_relative_to(disk.base):
            disk.sync(path)
            seen.append(f"fsync of {path.name}")
            cut()

    def changing(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*given: Any, **named: Any) -> Any:
            result = real(*given, **named)
            seen.append(name)
            cut()
            return result

        return changed

    with patch.context() as inside:
        inside.setattr(os, "fsync", synced)
        for name in CHANGES:
            module, _, function = name.rpartition(".")
            owner: Any = os
            if module != "os":
                from tintc.runtime.artefact import disk as owner
            inside.setattr(owner, function, changing(name, getattr(owner, function)))
        yield seen


def cuts(
    base: Path, save: Callable[[], None], check: Callable[[Path], str], patch: pytest.MonkeyPatch
) -> list[tuple[str, str]]:
    """Return what is there after each change, on both disks. check: looks at such a disk, and may write to it."""
    disk = Disk(base)
    found: list[tuple[str, str]] = []

    def cut() -> None:
        with patch.context() as inside:
            for name, real in REAL.items():
                inside.setattr(name, real)
            both = []
            for survive in (False, True):
                place = base.parent / "cut"
                disk.after_a_cut(place, survive)
                both.append(check(place))
                shutil.rmtree(place)
            found.append((both[0], both[1]))

    with recorded(disk, cut, patch) as seen:
        save()
    disk.close()
    assert len(seen) == len(found)
    return found


REAL = {name: getattr(os, name.removeprefix("os.")) for name in ("os.fsync", *CHANGES[:4])}


@pytest.mark.parametrize("writer", WRITERS)
def test_folders(tmp_path: Path, writer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tintc.runtime.artefact import disk

    monkeypatch.setitem(REAL, "tintc.runtime.artefact.disk._renameat2", disk._renameat2)
    target = old(tmp_path / "base")
    found = cuts(
        target.parent, lambda: write(target, writer, "new"), lambda at: check_after(at / "sim", writer), monkeypatch
    )
    for kept in zip(*found, strict=True):
        assert list(kept) == sorted(kept, reverse=True) and set(kept) == {"old", "new"}, "old after new"
    assert found[-1] == ("new", "new"), "the writer has come to its end, and the disk has not"


def test_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "state").write_text("old")

    def save() -> None:
        with staged_file(base / "state") as stream:
            stream.write(b"new")

    found = cuts(base, save, lambda at: (at / "state").read_text(), monkeypatch)
    assert {one for both in found for one in both} == {"old", "new"} and found[-1] == ("new", "new")


@pytest.mark.parametrize("left_out", ["sync_tree", "sync_folder"])
def test_without_synchronising(tmp_path: Path, left_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The made-up disks are worth something: a writer that leaves one of these out is found."""
    from tintc.runtime.artefact import disk

    monkeypatch.setitem(REAL, "tintc.runtime.artefact.disk._renameat2", disk._renameat2)
    monkeypatch.setattr(disk, left_out, lambda _: None)
    target = old(tmp_path / "base")

    def check(at: Path) -> str:
        names = sorted(file.name for file in (at / "sim").iterdir() if not file.name.startswith("."))
        return ",".join(dict.fromkeys((at / "sim" / name).read_text() for name in names if name != "gone.txt"))

    found = cuts(target.parent, lambda: write(target, "a folder for another", "new"), check, monkeypatch)
    assert found[-1] != ("new", "new") or any("" in both for both in found)
