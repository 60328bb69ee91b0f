"""`staged`: a folder that appears whole or not at all, whatever happens while it is written; `merged`: files that take
their places in a folder together.

They are written under a hidden name beside their place, locked as long as their writer lives, and renamed when they are
whole and on the disk; what was there before is removed when the new names are on the disk too. Files that are renamed
one by one have a journal, from which whoever comes next finishes the work of a writer that was killed (`recover`). What
else a killed writer left is not locked any more: the next one that writes to the same place removes it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tintc.bounded import UnfitFileError, is_plain_name, parse_json, read_file
from tintc.runtime.artefact import disk
from tintc.runtime.artefact.names import CONFIG_FILE, MOST_SHARDS, PROGRAM_FILE

OLD = ".old"
JOURNAL = ".journal"
SAVE = "save"
"""The name before ``.tintc-`` of what is hidden inside a folder."""


class JournalError(UnfitFileError):
    """A journal that no writer has left, with what to do about it."""


class TakenError(Exception):
    """A place where something is that may not be replaced."""


@contextmanager
def staged(target: Path, replace: bool = True) -> Iterator[Path]:
    """Give a new folder to write into, which takes the place of `target` if the block ends well, and else is removed.

    An existing `target` is exchanged for it and removed; its parent exists. replace: False for a `target` that must not
    exist then. Raises `OSError` if the disk will not take it, and `TakenError` for a target that must not.
    """
    recover(target)
    remove_abandoned(target)
    staging, lock = _locked_folder(target)
    try:
        yield staging
        _open_up(staging)
        disk.sync_tree(staging)
        _move(staging, target, replace)
    finally:
        _remove(staging)
        os.close(lock)


@contextmanager
def merged(target: Path, replaced: Iterable[str] = ()) -> Iterator[Path]:
    """Give a new folder to write into, whose files take their places in the existing folder `target` if the block ends
    well; otherwise nothing changes.

    replaced: patterns of files that are removed from `target` unless they are written anew; other files stay. It is
    hidden inside `target`, which may be a disk of its own or where somebody works, and the files are renamed one by
    one: a kill in that moment leaves a journal, and `target` without a program, so no artefact, never a mixture. Raises
    `OSError` if the disk will not take it.
    """
    recover(target)
    place = target / SAVE
    remove_abandoned(place)
    staging, lock = _locked_folder(place)
    try:
        yield staging
        _open_up(staging)
        disk.sync_tree(staging)
        with disk.locked(target):
            _merge(staging, target, {file.name for pattern in replaced for file in target.glob(pattern)})
    finally:
        if not _has_journal(staging):
            _remove(staging)
        os.close(lock)


def _merge(staging: Path, target: Path, replaced: set[str]) -> None:
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


def recover(target: Path) -> None:
    """Finish what writers to `target` that were killed had begun to rename; leave to living ones what is theirs.

    Raises `OSError` where it cannot be finished, a `JournalError` for a journal that is damaged.
    """
    for staging in _hidden(target / SAVE):
        if not _has_journal(staging):
            continue
        lock = disk.lock(target, wait=False)
        if lock is None:
            continue
        try:
            _recover_merge(staging, target)
        finally:
            os.close(lock)
    if not os.path.lexists(target):
        for old in [path for path in _hidden(target) if path.name.endswith(OLD)]:
            _recover_move(old, target)


def _recover_merge(staging: Path, target: Path) -> None:
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
    _remove(staging)


def _are_names(names: object) -> bool:
    """Return True for a list of names of files in a folder, each once, and no more than an artefact may have."""
    if not isinstance(names, list) or len(names) > 2 * MOST_SHARDS:
        return False
    return all(map(is_plain_name, names)) and len(set(names)) == len(names)


def _recover_move(old: Path, target: Path) -> None:
    """Put the new folder into its empty place, which is on the disk when the old one was moved; or the old one."""
    new = old.with_name(old.name.removesuffix(OLD))
    lock = None
    if new.is_dir():
        lock = disk.lock(new, wait=False)
        if lock is None:
            return
    try:
        if lock is not None:
            disk.rename_new(new, target)
        else:
            disk.rename_new(old, target)
        disk.sync_folder(target.parent)
    except FileExistsError:
        return
    finally:
        if lock is not None:
            os.close(lock)
    _remove(old)


def _has_journal(folder: Path) -> bool:
    """Return True if a hidden folder has a journal, or a disk that fails will not say."""
    try:
        os.lstat(folder / JOURNAL)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def writer_at_work(target: Path) -> bool:
    """Return True while somebody is renaming files of `target`, or was killed while doing so."""
    if not os.path.lexists(target):
        return any(path.name.endswith(OLD) for path in _hidden(target))
    return any(_has_journal(path) for path in _hidden(target / SAVE))


def remove_abandoned(target: Path) -> None:
    """Remove what killed writers to `target` left beside it; what a living one writes stays, and so does what
    `recover` could not finish."""
    for folder in _hidden(target):
        unfinished = folder.name.endswith(OLD) and not target.exists()
        if unfinished or _has_journal(folder):
            continue
        with suppress(OSError):
            lock = disk.lock(folder, wait=False)
            if lock is not None:
                _remove(folder)
                os.close(lock)


def hidden_prefix(target: Path) -> str:
    """Return how the names begin of what is written for `target` and not in its place yet."""
    return f".{target.name}.tintc-"


def _hidden(target: Path) -> list[Path]:
    """Return the hidden folders beside `target`, of living and killed writers."""
    try:
        return sorted(path for path in target.parent.iterdir() if path.name.startswith(hidden_prefix(target)))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _locked_folder(target: Path) -> tuple[Path, int]:
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
            _remove(folder)
            raise


def _remove(folder: Path) -> None:
    """Remove a folder, the files that make it a model first, so that a half-removed one does not look like one."""
    for name in (PROGRAM_FILE, CONFIG_FILE):
        with suppress(OSError):
            (folder / name).unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _move(staging: Path, target: Path, replace: bool) -> None:
    """Rename, or exchange with what is there; `staging` then holds the old folder, which the caller removes.

    Where the disk fails at the end, everything is renamed back.
    """
    if not replace or not target.exists():
        try:
            disk.rename_new(staging, target)
        except FileExistsError:
            if not replace:
                raise TakenError from None
            _move(staging, target, replace)  # somebody has made it since
            return
        _sync_or(target.parent, lambda: os.rename(target, staging))
    elif disk.exchange(staging, target):
        _sync_or(target.parent, lambda: disk.exchange(staging, target))
    else:
        old = staging.with_name(staging.name + OLD)
        os.rename(target, old)
        try:
            disk.sync_folder(target.parent)
            os.rename(staging, target)
        except OSError:
            os.rename(old, target)
            raise
        disk.sync_folder(target.parent)
        _remove(old)


def _sync_or(folder: Path, undo: Callable[[], object]) -> None:
    """Wait until a folder's names are on the disk; undo what was renamed, and raise `OSError`, if they will not be."""
    try:
        disk.sync_folder(folder)
    except OSError:
        undo()
        raise


def _open_up(folder: Path) -> None:
    """Give a folder's files permissions by the umask; temporary files are their owner's alone."""
    for path in (folder, *folder.rglob("*")):
        disk.open_up(path)
