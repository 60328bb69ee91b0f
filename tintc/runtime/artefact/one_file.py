"""`staged_file`: a file that appears whole or not at all, and replaces nothing that is not its writer's.

It is written under a hidden name beside its place, locked as long as its writer lives, and renamed when it is on the
disk. What a killed writer left is not locked any more: the next one that writes to the same place removes it.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tintc.bounded import check_path
from tintc.errors import ArtefactError
from tintc.runtime.artefact import disk
from tintc.runtime.artefact.hidden_folders import hidden_prefix


def check_replaceable(
    target: Path, is_own: Callable[[Path], bool], kind: str, advice: str = "pass force=True to replace it, or "
) -> None:
    """Raise `ArtefactError` if something is at a path that a writer of such files may not replace.

    is_own: whether a file is one of them; kind: what they are, as "state"; advice: how to replace another file.
    """
    check_path(target, ArtefactError)
    try:
        status = os.lstat(target)
    except FileNotFoundError:
        return
    except OSError as error:  # a file in place of the folder
        raise ArtefactError(f"The {kind} cannot be written to {target}: {error.strerror or error}.") from error
    if stat.S_ISDIR(status.st_mode):
        raise ArtefactError(f"{target} is a folder; name a file for the {kind}.")
    if stat.S_ISLNK(status.st_mode):
        raise ArtefactError(f"{target} is a link, which is not replaced; name the file itself.")
    if not stat.S_ISREG(status.st_mode):
        raise ArtefactError(f"{target} is no regular file, so it will not be replaced; choose another name.")
    if not is_own(target):
        raise ArtefactError(f"{target} exists already and is not a {kind}; {advice}choose another name.")


@contextmanager
def staged_file(target: Path) -> Generator[BinaryIO]:
    """Give a new file to write into, which takes the place of `target` if the block ends well, and else is removed.

    Raises `OSError` if the disk will not take it.
    """
    _remove_abandoned(target)
    handle, name = tempfile.mkstemp(prefix=hidden_prefix(target), dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield stream
            stream.flush()
            disk.open_up(name)
            os.fsync(stream.fileno())
            os.replace(name, target)
            disk.sync_folder(target.parent)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def _remove_abandoned(target: Path) -> None:
    """Remove what killed writers to `target` left beside it; what a living one writes stays."""
    prefix = hidden_prefix(target)
    for path in [path for path in target.parent.iterdir() if path.name.startswith(prefix)]:
        with suppress(OSError):
            if not stat.S_ISREG(os.lstat(path).st_mode):
                continue
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
            finally:
                os.close(descriptor)
