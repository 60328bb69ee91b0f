"""`staged`: a folder that appears whole or not at all, whatever happens while it is written.

It is written under a hidden name beside its place, locked as long as its writer lives, and renamed when it is whole.
What a killed writer left is not locked any more: the next one that writes to the same place removes it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

OLD = ".old"


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `target` if the block ends well; otherwise nothing changes.

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
    """A new folder and the descriptor that locks it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        with suppress(OSError):  # file systems without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder, lock
        os.close(lock)  # another writer came between and took it for abandoned


def _remove(folder: Path) -> None:
    """The files that make it a model go first, so that a half-removed folder does not look like one."""
    for name in ("program.tint", "config.json"):
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
    """Swap two paths atomically (Linux renameat2 with RENAME_EXCHANGE); False where that cannot be done."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        at_cwd, exchange = -100, 2
        return libc.renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange) == 0
    except (OSError, AttributeError):
        return False


def _open_up(folder: Path) -> None:
    """Permissions as the umask gives them: temporary folders and safetensors' files are their owner's alone."""
    os.chmod(folder, 0o777 & ~_umask())
    for file in folder.iterdir():
        open_file(file)


def open_file(file: str | os.PathLike[str]) -> None:
    """Permissions of one file as the umask gives them."""
    os.chmod(file, 0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
