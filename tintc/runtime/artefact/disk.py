"""Small steps on a disk: writing through to it, exchanging, locking, permissions."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

AT_CWD = -100
NOREPLACE, EXCHANGE = 1, 2
"""Flags of Linux's renameat2."""
WITHOUT = (errno.EINVAL, errno.ENOTSUP, errno.EROFS, errno.EACCES)
"""Errors of file systems on which a folder cannot be synchronised."""


def sync_file(path: str | os.PathLike[str]) -> None:
    """Wait until a file is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: str | os.PathLike[str]) -> None:
    """Wait until a folder's names are on the disk, where the file system can do that."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in WITHOUT:
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Wait until everything below a folder, and its names, are on the disk."""
    for path, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync_file(os.path.join(path, name))
        sync_folder(path)


def exchange(a: Path, b: Path) -> bool:
    """Exchange two paths atomically; return False where that cannot be done."""
    return _renameat2(a, b, EXCHANGE) == 0


def rename_new(old: Path, new: Path) -> None:
    """Rename a folder to a path at which nothing is; raise `FileExistsError` if something is, whoever made it when."""
    code = _renameat2(old, new, NOREPLACE)
    if code in (errno.EEXIST, errno.ENOTEMPTY):
        raise FileExistsError(code, os.strerror(code), str(new))
    if code:  # where there is no such call: of those who make the folder, one succeeds, and fills it
        os.mkdir(new)
        os.rename(old, new)


def _renameat2(a: Path, b: Path, flag: int) -> int:
    """Return 0, or the number of the error."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.renameat2(AT_CWD, os.fsencode(a), AT_CWD, os.fsencode(b), flag) == 0:
            return 0
        return ctypes.get_errno()
    except (OSError, AttributeError):
        return errno.ENOSYS


def lock(path: Path, wait: bool = True) -> int | None:
    """Return the descriptor that locks a folder until it is closed; None if somebody else has it and `wait` is False.

    On file systems without locks it locks nothing.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    how = fcntl.LOCK_EX
    if not wait:
        how |= fcntl.LOCK_NB
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        return descriptor
    return descriptor


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Hold the lock of a folder during the block."""
    descriptor = lock(path)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def open_up(path: str | os.PathLike[str]) -> None:
    """Give one file or folder permissions by the umask; temporary files are their owner's alone."""
    mode = 0o666
    if os.path.isdir(path):
        mode = 0o777
    os.chmod(path, mode & ~_umask())


def open_up_tree(folder: Path) -> None:
    """Give a folder and everything below it permissions by the umask."""
    for path in (folder, *folder.rglob("*")):
        open_up(path)


def _umask() -> int:
    """Return the umask; asking for it by the system call would change it, for all threads, for a moment."""
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        line = next(line for line in lines if line.startswith("Umask:"))
        return int(line.split()[1], 8)
    mask = os.umask(0)
    os.umask(mask)
    return mask
