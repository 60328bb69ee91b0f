"""`staged`: a folder that appears whole or not at all, whatever happens while it is written; `merged`: files that take
their places in a folder together.

They are written under a hidden name beside their place, locked as long as their writer lives, and renamed when they are
whole. What a killed writer left is not locked any more: the next one that writes to the same place removes it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

OLD = ".old"
PROGRAM_FILE = "program.tint"


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Give a new folder to write into, which takes the place of `target` if the block ends well, and else is removed.

    An existing `target` is exchanged for it and removed; its parent exists. Raises `OSError` if the disk will not take
    it.
    """
    remove_abandoned(target)
    staging, lock = _locked_folder(target)
    try:
        yield staging
        _open_up(staging)
        _move(staging, target)
    finally:
        _remove(staging)
        os.close(lock)


@contextmanager
def merged(target: Path, replaced: Iterable[str] = ()) -> Iterator[Path]:
    """Give a new folder to write into, whose files take their places in the existing folder `target` if the block ends
    well; otherwise nothing changes.

    replaced: patterns of files that are removed from `target` unless they are written anew; other files stay. It is
    hidden inside `target`, which may be a disk of its own or where somebody works, and the files are renamed one by
    one: a kill in that moment leaves `target` without a program, so no artefact, never a mixture. Raises `OSError` if
    the disk will not take it.
    """
    place = target / "save"
    remove_abandoned(place)
    staging, lock = _locked_folder(place)
    try:
        yield staging
        _open_up(staging)
        _merge(staging, target, {file.name for pattern in replaced for file in target.glob(pattern)})
    finally:
        _remove(staging)
        os.close(lock)


def _merge(staging: Path, target: Path, replaced: set[str]) -> None:
    """Exchange what `staging` holds for what `target` holds of the same names, or of those that are `replaced`; all of
    it or nothing. The program goes first and comes last."""
    new = sorted((path.name for path in staging.iterdir()), key=lambda name: name == PROGRAM_FILE)
    old = staging / OLD
    old.mkdir()
    try:
        for name in sorted({PROGRAM_FILE, *new, *replaced}, key=lambda name: name != PROGRAM_FILE):
            if os.path.lexists(target / name):
                os.rename(target / name, old / name)
        for name in new:
            os.rename(staging / name, target / name)
    except BaseException:
        for name in new:
            if not os.path.lexists(staging / name):
                os.rename(target / name, staging / name)
        for name in sorted((path.name for path in old.iterdir()), key=lambda name: name == PROGRAM_FILE):
            os.rename(old / name, target / name)
        raise


def remove_abandoned(target: Path) -> None:
    """Remove what killed writers to `target` left beside it; what a living one writes stays, and so does an old folder
    whose place is empty."""
    for folder in [path for path in target.parent.iterdir() if path.name.startswith(_prefix(target))]:
        if folder.name.endswith(OLD) and not target.exists():
            continue
        with suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder)
            finally:
                os.close(lock)


def _prefix(target: Path) -> str:
    return f".{target.name}.tintc-"


def _locked_folder(target: Path) -> tuple[Path, int]:
    """Make a new folder; return it and the descriptor that locks it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        with suppress(OSError):  # file systems without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder, lock
        os.close(lock)  # another writer came between and took it for abandoned


def _remove(folder: Path) -> None:
    """Remove a folder, the files that make it a model first, so that a half-removed one does not look like one."""
    for name in (PROGRAM_FILE, "config.json"):
        with suppress(OSError):
            (folder / name).unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _move(staging: Path, target: Path) -> None:
    """Rename, or exchange with what is there; `staging` then holds the old folder, which the caller removes."""
    if not target.exists():
        os.rename(staging, target)
    elif not _exchange(staging, target):
        old = staging.with_name(staging.name + OLD)
        os.rename(target, old)
        try:
            os.rename(staging, target)
        except OSError:
            os.rename(old, target)
            raise
        _remove(old)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two paths atomically (Linux renameat2 with RENAME_EXCHANGE); return False where that cannot be done."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        at_cwd = -100
        exchange = 2
        return libc.renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange) == 0
    except (OSError, AttributeError):
        return False


def _open_up(folder: Path) -> None:
    """Give a folder's files permissions by the umask; temporary files are their owner's alone."""
    for path in (folder, *folder.rglob("*")):
        open_path(path)


def open_path(path: str | os.PathLike[str]) -> None:
    """Give one file or folder permissions by the umask."""
    mode = 0o666
    if os.path.isdir(path):
        mode = 0o777
    os.chmod(path, mode & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
