"""The journal of files that take their places in a folder one by one: all of them or none, also after a kill.

It is written before the first file is renamed, and removed after the last. Whoever comes after a writer that was killed
in between finishes its work by the journal.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from tintc.bounded import UnfitFileError, is_plain_name, parse_json, read_file
from tintc.runtime.artefact import disk
from tintc.runtime.artefact.hidden_folders import OLD, remove
from tintc.runtime.artefact.names import MOST_SHARDS, PROGRAM_FILE

JOURNAL = ".journal"


class JournalError(UnfitFileError):
    """A journal that no writer has left, with what to do about it."""


def has_journal(folder: Path) -> bool:
    """Return True if a hidden folder has a journal, or if a failing disk leaves that open."""
    try:
        os.lstat(folder / JOURNAL)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def merge(staging: Path, target: Path, replaced: set[str]) -> None:
    """Exchange what `staging` holds for what `target` holds of the same names, or of those that are `replaced`; all of
    it or nothing."""
    new = sorted(path.name for path in staging.iterdir())
    gone = sorted(replaced - set(new))
    (staging / OLD).mkdir()
    unfinished = staging / f"{JOURNAL}.new"
    unfinished.write_text(json.dumps({"new": new, "gone": gone}), encoding="utf-8")
    disk.sync_file(unfinished)
    os.rename(unfinished, staging / JOURNAL)
    try:
        disk.sync_folder(staging)
        disk.sync_folder(target)
        _finish(staging, target, new, gone)
    except BaseException:
        _undo(staging, target, new)
        raise


def _finish(staging: Path, target: Path, new: list[str], gone: list[str]) -> None:
    """Rename what a journal says and has not been renamed yet: the program goes first and comes last."""
    old = staging / OLD
    if os.path.lexists(staging / PROGRAM_FILE):
        _rename_if_there(target / PROGRAM_FILE, old / PROGRAM_FILE)
    for name in gone:
        _rename_if_there(target / name, old / name)
    for name in sorted(new, key=lambda name: name == PROGRAM_FILE):
        if os.path.lexists(staging / name):
            _rename_if_there(target / name, old / name)
            os.rename(staging / name, target / name)
    _end(staging, target)


def _undo(staging: Path, target: Path, new: list[str]) -> None:
    """Rename everything back. Where that fails too, the journal stays, from which `recover` goes forward."""
    old = staging / OLD
    for name in new:
        if not os.path.lexists(staging / name):
            os.rename(target / name, staging / name)
    for name in sorted((path.name for path in old.iterdir()), key=lambda name: name == PROGRAM_FILE):
        os.rename(old / name, target / name)
    _end(staging, target)


def _end(staging: Path, target: Path) -> None:
    """Remove the journal, once all names are on the disk."""
    for folder in (target, staging, staging / OLD):
        disk.sync_folder(folder)
    (staging / JOURNAL).unlink()
    with suppress(OSError):  # everything is in its place, and the journal would say so again
        disk.sync_folder(staging)


def _rename_if_there(path: Path, new: Path) -> None:
    if os.path.lexists(path):
        os.rename(path, new)


def recover_merge(staging: Path, target: Path) -> None:
    """Finish renaming by a journal, which is believed only where it names files in these two folders.

    Raises `JournalError` for another, which no writer has made: it is whole or not there.
    """
    file = staging / JOURNAL
    if file.is_symlink() or staging.is_symlink() or (staging / OLD).is_symlink() or not (staging / OLD).is_dir():
        raise JournalError(f"{file} is not what a writer leaves; remove that folder")
    try:
        journal = parse_json(read_file(file))
    except FileNotFoundError:  # its writer has just come to its end
        return
    except UnfitFileError as error:
        raise JournalError(f"{file} is damaged ({error}); remove that folder") from error
    new: Any = None
    gone: Any = None
    if isinstance(journal, dict):
        new, gone = journal.get("new"), journal.get("gone")
    if not (_are_names(new) and _are_names(gone)) or {OLD, JOURNAL}.intersection(new):
        raise JournalError(f"{file} is damaged (it is no list of files); remove that folder")
    _finish(staging, target, new, gone)
    remove(staging)


def _are_names(names: object) -> bool:
    """Return True for a list of names of files in a folder, each once, and no more than an artefact may have."""
    if not isinstance(names, list) or len(names) > 2 * MOST_SHARDS:
        return False
    return all(map(is_plain_name, names)) and len(set(names)) == len(names)
