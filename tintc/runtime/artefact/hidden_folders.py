"""Hidden folders beside a place, or inside it: where a writer puts what is not in its place yet.

A writer locks its folder as long as it lives, so whoever comes next can tell what was left by one that was killed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from tintc.runtime.artefact import disk
from tintc.runtime.artefact.names import CONFIG_FILE, PROGRAM_FILE

OLD = ".old"
"""The end of the name of a hidden folder that was in the place before. Inside a hidden folder: the name of the folder
that receives the files which were in the place before."""
SAVE = "save"
"""The name before ``.tintc-`` of what is hidden inside a folder."""


def hidden_prefix(target: Path) -> str:
    """Return how the names begin of what is written for `target` and not in its place yet."""
    return f".{target.name}.tintc-"


def hidden_folders(target: Path) -> list[Path]:
    """Return the hidden folders beside `target`, of living and killed writers."""
    try:
        return sorted(path for path in target.parent.iterdir() if path.name.startswith(hidden_prefix(target)))
    except (FileNotFoundError, NotADirectoryError):
        return []


def locked_folder(target: Path) -> tuple[Path, int]:
    """Make a new folder; return it and the descriptor that locks it."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=hidden_prefix(target), dir=target.parent))
        lock = None
        try:
            lock = disk.lock(folder)
            assert lock is not None
            if os.path.lexists(folder):
                return folder, lock
            os.close(lock)
        except FileNotFoundError:  # another writer came between and took it for abandoned
            continue
        except BaseException:
            if lock is not None:
                os.close(lock)
            remove(folder)
            raise


def remove(folder: Path) -> None:
    """Remove a folder, the files that make it a model first, so that a half-removed one does not look like one."""
    for name in (PROGRAM_FILE, CONFIG_FILE):
        with suppress(OSError):
            (folder / name).unlink()
    shutil.rmtree(folder, ignore_errors=True)
