"""`staged`: a folder that appears whole or not at all, whatever happens while it is written; `merged`: files that take
their places in a folder together.

They are written under a hidden name beside their place (`hidden_folders`), and renamed when they are whole and on the
disk; what was there before is removed when the new names are on the disk too. Files that are renamed one by one have a
`journal`. Whoever comes next finishes what a writer that was killed had begun to rename (`recover`), and the next one
that writes to the same place removes what else it left.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

from tintc.runtime.artefact import disk
from tintc.runtime.artefact.hidden_folders import OLD, SAVE, hidden_folders, locked_folder, remove
from tintc.runtime.artefact.journal import has_journal, merge, recover_merge


class TakenError(Exception):
    """A place where something is that may not be replaced."""


@contextmanager
def staged(target: Path, replace: bool = True) -> Generator[Path]:
    """Give a new folder to write into, which takes the place of `target` if the block ends well, and else is removed.

    An existing `target` is exchanged for it and removed; its parent exists. replace: False for a `target` that must not
    exist then. Raises `OSError` if the disk will not take it, and `TakenError` for a target that must not.
    """
    recover(target)
    remove_abandoned(target)
    staging, lock = locked_folder(target)
    try:
        yield staging
        disk.open_up_tree(staging)
        disk.sync_tree(staging)
        _move(staging, target, replace)
    finally:
        remove(staging)
        os.close(lock)


@contextmanager
def merged(target: Path, replaced: Iterable[str] = ()) -> Generator[Path]:
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
    staging, lock = locked_folder(place)
    try:
        yield staging
        disk.open_up_tree(staging)
        disk.sync_tree(staging)
        with disk.locked(target):
            merge(staging, target, {file.name for pattern in replaced for file in target.glob(pattern)})
    finally:
        if not has_journal(staging):
            remove(staging)
        os.close(lock)


def recover(target: Path) -> None:
    """Finish what writers to `target` that were killed had begun to rename; leave to living ones what is theirs.

    Raises `OSError` where it cannot be finished, a `JournalError` for a journal that is damaged.
    """
    for staging in hidden_folders(target / SAVE):
        if not has_journal(staging):
            continue
        lock = disk.lock(target, wait=False)
        if lock is None:
            continue
        try:
            recover_merge(staging, target)
        finally:
            os.close(lock)
    if not os.path.lexists(target):
        for old in [path for path in hidden_folders(target) if path.name.endswith(OLD)]:
            _recover_move(old, target)


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
    remove(old)


def writer_at_work(target: Path) -> bool:
    """Return True while somebody is renaming files of `target`, or was killed while doing so."""
    if not os.path.lexists(target):
        return any(path.name.endswith(OLD) for path in hidden_folders(target))
    return any(has_journal(path) for path in hidden_folders(target / SAVE))


def remove_abandoned(target: Path) -> None:
    """Remove what killed writers to `target` left beside it; what a living one writes stays, and so does what
    `recover` could not finish."""
    for folder in hidden_folders(target):
        unfinished = folder.name.endswith(OLD) and not target.exists()
        if unfinished or has_journal(folder):
            continue
        with suppress(OSError):
            lock = disk.lock(folder, wait=False)
            if lock is not None:
                remove(folder)
                os.close(lock)


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
        remove(old)


def _sync_or(folder: Path, undo: Callable[[], object]) -> None:
    """Wait until a folder's names are on the disk; undo what was renamed, and raise `OSError`, if they will not be."""
    try:
        disk.sync_folder(folder)
    except OSError:
        undo()
        raise
