"""Files that may be anybody's: opened only where they are regular, and read only up to a bound.

Opening a pipe waits for a writer, opening a device may do something, and a sparse file of gigabytes takes a few bytes
of disk. So a path is looked at before it is opened, opened without waiting, and looked at again.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

from tintc.errors import TintcError

MOST_CONFIG = 1 << 24
"""Bytes of the longest JSON file of settings that is read."""
MOST_GENERATION = 1 << 16
"""Bytes of the longest file of settings of generation, of which transformers makes and compares many copies."""
MOST_TOKENIZER = 1 << 28
"""Bytes of the longest file of a tokenizer."""
MOST_VALUES = 1 << 20
"""Values that a JSON file may have: some take twenty times their bytes of memory."""
DEPTH = 64
"""Lists and objects that a JSON file may nest."""


class UnfitFileError(OSError):
    """A file that is not read, with the reason as the end of a sentence: "it is ..."."""


def check_path(path: str | os.PathLike[str], error: type[TintcError]) -> None:
    """Raise `error` for a path that no file can have: too long, or with a null byte."""
    try:
        os.lstat(path)
    except ValueError as problem:
        raise error(f"There can be no {str(path)[:200]!r}: {problem}.") from problem
    except OSError as problem:
        if problem.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise error(f"There can be no {str(path)[:200]!r}: {problem.strerror}.") from problem


def open_regular(path: str | os.PathLike[str], folder: int | None = None) -> int:
    """Return a descriptor of a regular file, opened for reading; raise `UnfitFileError` if it is anything else.

    A link is followed: see `leaves` for where to. folder: descriptor of the folder that a relative path is in.
    """
    _check_regular(os.stat(path, dir_fd=folder))
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        _check_regular(os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(status: os.stat_result) -> None:
    kinds = {
        stat.S_ISDIR: "a folder",
        stat.S_ISFIFO: "a pipe",
        stat.S_ISSOCK: "a socket",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
    }
    for is_kind, name in kinds.items():
        if is_kind(status.st_mode):
            raise UnfitFileError(f"it is {name}, not a file")


def read_all(descriptor: int, most: int) -> bytes:
    """Return a file's bytes; raise `UnfitFileError` if they are more than `most`."""
    size = os.fstat(descriptor).st_size
    if size > most:
        raise UnfitFileError(f"it has {size:,} bytes, and at most {most:,} are read")
    pieces = []
    position = 0
    while position <= most:
        piece = os.pread(descriptor, min(1 << 20, most + 1 - position), position)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        position += len(piece)
    raise UnfitFileError(f"it has more than {most:,} bytes, which is the most that is read")


def read_file(path: str | os.PathLike[str], most: int = MOST_CONFIG, folder: int | None = None) -> bytes:
    """Return the bytes of a regular file of at most `most`; raise `UnfitFileError`, or another `OSError`."""
    descriptor = open_regular(path, folder)
    try:
        return read_all(descriptor, most)
    finally:
        os.close(descriptor)


def parse_json(data: bytes) -> Any:
    """Return what a JSON text says; raise `UnfitFileError` for one that is not UTF-8, not JSON, nests
    too deep or has too many values."""
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > MOST_VALUES:
        raise UnfitFileError(f"it has more than {MOST_VALUES:,} values")
    try:
        value = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UnfitFileError("it is not UTF-8") from error
    except RecursionError as error:
        raise UnfitFileError(f"it nests more than {DEPTH} lists and objects") from error
    except ValueError as error:  # no JSON, or a number of thousands of digits
        raise UnfitFileError(f"it is not valid JSON ({str(error).splitlines()[0]})") from error
    if _nests_deeper(value, DEPTH):
        raise UnfitFileError(f"it nests more than {DEPTH} lists and objects")
    return value


def _nests_deeper(value: Any, depth: int) -> bool:
    """Return True if lists and objects stand in each other more than `depth` deep."""
    level = [value]
    for _ in range(depth + 1):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner.extend(one.values())
            elif isinstance(one, list):
                inner.extend(one)
        level = inner
        if not level:
            return False
    return True


def leaves(folder: Path, name: str) -> bool:
    """Return True if a name in a folder, links followed, stands for a file elsewhere.

    The hub's cache keeps files in ``blobs`` beside its ``snapshots``, whose links to there stay in one folder.
    """
    inside = Path(os.path.realpath(folder))
    target = Path(os.path.realpath(folder / name))
    if target.is_relative_to(inside):
        return False
    return not (is_cached(inside) and target.parent == inside.parent.parent / "blobs")


def is_cached(folder: Path) -> bool:
    """Return True for a folder of the hub's cache, which holds the files that were asked for."""
    return folder.parent.name == "snapshots"


def is_plain_name(name: object) -> bool:
    """Return True for the name of a file in a folder, without a path to anywhere."""
    return (
        isinstance(name, str)
        and name.isprintable()
        and 0 < len(name.encode()) < 256
        and name not in (".", "..")
        and not set(name) & {"/", "\\"}
    )
