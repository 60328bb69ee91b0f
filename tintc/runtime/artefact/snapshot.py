"""`Snapshot`: an artefact's files, opened together and looked at together, whatever is renamed meanwhile.

A writer exchanges whole folders, or renames files one by one under a journal (`tintc.runtime.artefact.staging`). So a
reader opens everything, and then looks whether each name still stands for the file that is open and no journal lies
there: if so it has one writer's files and keeps them, else it opens them anew.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tintc.bounded import UnfitFileError, is_plain_name, leaves, open_regular, parse_json, read_all
from tintc.errors import ArtefactError
from tintc.runtime.artefact.journal import JournalError
from tintc.runtime.artefact.names import (
    INDEX_FILE,
    MOST_SHARDS,
    PROGRAM_FILE,
    TEMPLATES,
    TEXTS,
    WEIGHTS_FILE,
    is_tokenizers,
    most_bytes,
)
from tintc.runtime.artefact.staging import recover, writer_at_work

PATIENCE = 10.0
"""Seconds to wait for a writer that is renaming files, before a reader gives up."""
Stamp = dict[str, tuple[int, int, int]]
"""Inode, size and time of change of files, by name."""


class _ChangedError(Exception):
    """Files were renamed while they were opened."""


class Snapshot:
    """Open files of a folder, by name. Close it, or use it in a ``with``."""

    def __init__(self, folder: Path, files: dict[str, int], weight_map: dict[str, str] | None):
        """Keep open files. weight_map: the shard of every tensor, where there is an index."""
        self.folder = folder
        self.files = files
        self.weight_map = weight_map

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; tensors that were mapped stay."""
        while self.files:
            os.close(self.files.popitem()[1])

    def size(self, name: str) -> int:
        """Return how many bytes a file has."""
        return os.fstat(self.files[name]).st_size

    def stamp(self) -> Stamp:
        """Return what tells these files from others that bear their names later."""
        status = {name: os.fstat(descriptor) for name, descriptor in self.files.items()}
        return {name: (one.st_ino, one.st_size, one.st_mtime_ns) for name, one in status.items()}

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, None if there is none; raise `ArtefactError` for one that is too long."""
        if name not in self.files:
            return None
        with self.explained(name):
            return read_all(self.files[name], most_bytes(name))

    def text(self, name: str) -> str | None:
        """Return a file's text, None if there is none; raise `ArtefactError` if it is too long or not UTF-8."""
        data = self.read(name)
        if data is None:
            return None
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise damaged(self.folder / name, "it is not UTF-8") from error

    def json(self, name: str) -> Any:
        """Return what a JSON file says, None if there is none; raise `ArtefactError` if it cannot be read."""
        data = self.read(name)
        if data is None:
            return None
        with self.explained(name):
            return parse_json(data)

    @property
    def weights(self) -> list[str]:
        """Return the names of the files of tensors."""
        if self.weight_map is not None:
            return sorted(set(self.weight_map.values()))
        return [name for name in (WEIGHTS_FILE,) if name in self.files]

    @property
    def tokenizer_files(self) -> list[str]:
        """Return the names of a tokenizer's files."""
        return sorted(name for name in self.files if is_tokenizers(name))

    @contextmanager
    def explained(self, name: str) -> Iterator[None]:
        """Raise `ArtefactError` with the file's name for what the block finds unfit."""
        try:
            yield
        except OSError as error:
            raise damaged(self.folder / name, _reason(error)) from error


def damaged(file: object, why: str) -> ArtefactError:
    """Return the error for a file that cannot be read, with the reason as the end of a sentence."""
    return ArtefactError(f"{file} is damaged: {why}. Compile the model again.")


def _reason(error: OSError) -> str:
    if isinstance(error, UnfitFileError):
        return str(error)
    return error.strerror or str(error)


def open_snapshot(folder: Path) -> Snapshot:
    """Return the files of a local folder as they are at one moment.

    A save that was interrupted is finished first. Raises `ArtefactError` for a file that is not regular or leads out of
    the folder, for a shard index that names others, and for a writer that does not come to an end.
    """
    deadline = time.monotonic() + PATIENCE
    pause = 0.001
    while True:
        try:
            recover(folder)
            return _open(folder)
        except JournalError as error:
            raise ArtefactError(f"{folder} cannot be read: {error}.") from error
        except (_ChangedError, FileNotFoundError) as error:
            if time.monotonic() > deadline:
                raise ArtefactError(
                    f"{folder} is being written to and cannot be read; load it when that is done."
                ) from error
            if isinstance(error, FileNotFoundError) and not writer_at_work(folder) and not folder.is_dir():
                raise ArtefactError(f"There is no folder {folder}; check the path.") from error
        except OSError as error:
            raise ArtefactError(f"{folder} cannot be read: {error.strerror or error}.") from error
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


def _open(folder: Path) -> Snapshot:
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    files: dict[str, int] = {}
    try:
        entries = set(os.listdir(directory))
        names = [name for name in entries if name in TEXTS or is_tokenizers(name)]
        if TEMPLATES in entries and (folder / TEMPLATES).is_dir():
            names += [f"{TEMPLATES}/{name}" for name in os.listdir(folder / TEMPLATES) if name.endswith(".jinja")]
        # An exchanged folder loses its program first: whoever opens that last has missed nothing.
        for name in sorted(names, key=lambda name: name == PROGRAM_FILE):
            _add(files, folder, directory, name)
        weight_map = None
        if WEIGHTS_FILE in entries:
            _add(files, folder, directory, WEIGHTS_FILE)
        elif INDEX_FILE in files:
            weight_map = _weight_map(folder, files[INDEX_FILE])
            for shard in sorted(set(weight_map.values())):
                if shard not in entries:
                    _check_unchanged(folder, directory, files)  # another writer may have come between
                    raise damaged(folder / INDEX_FILE, f"it names the file {shard!r}, which is not there")
                _add(files, folder, directory, shard)
        _check_unchanged(folder, directory, files)
        return Snapshot(folder, files, weight_map)
    except BaseException:
        for descriptor in files.values():
            os.close(descriptor)
        raise
    finally:
        os.close(directory)


def _add(files: dict[str, int], folder: Path, directory: int, name: str) -> None:
    """Open a file of the folder; raise `ArtefactError` if it leads elsewhere, or is no file."""
    if os.path.islink(folder / name):
        if leaves(folder, name):
            raise ArtefactError(f"{folder / name} is a link to a file outside of the folder, which is not followed.")
        if not os.path.exists(folder / name):
            raise ArtefactError(f"{folder / name} is a link to nothing.")
    try:
        files[name] = open_regular(name, directory)
    except UnfitFileError as error:
        raise ArtefactError(f"{folder / name} is not read: {error}.") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ArtefactError(f"{folder / name} cannot be opened: {error.strerror or error}.") from error


def _weight_map(folder: Path, descriptor: int) -> dict[str, str]:
    """Return the shard of every tensor; raise `ArtefactError` for an index that says anything else."""
    file = folder / INDEX_FILE
    try:
        index = parse_json(read_all(descriptor, most_bytes(INDEX_FILE)))
    except OSError as error:
        raise damaged(file, _reason(error)) from error
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise damaged(file, "it has no weight_map")
    for shard in shards.values():
        if not is_plain_name(shard) or not shard.endswith(".safetensors"):
            raise damaged(file, f"it names {str(shard)[:80]!r}, which is no safetensors file in the folder")
    if len(set(shards.values())) > MOST_SHARDS:
        raise damaged(file, f"it names over {MOST_SHARDS} files")
    return shards


def _check_unchanged(folder: Path, directory: int, files: dict[str, int]) -> None:
    """Raise `_ChangedError` unless every name stands for the file that is open, and nobody is renaming any."""
    if writer_at_work(folder):
        raise _ChangedError
    for name, descriptor in files.items():
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(name, dir_fd=directory), os.fstat(descriptor)):
                continue
        raise _ChangedError
    if PROGRAM_FILE not in files and _is_other(folder, directory):
        raise _ChangedError


def _is_other(folder: Path, directory: int) -> bool:
    """Return True if another folder stands at the path than the one that is open."""
    try:
        return not os.path.samestat(os.stat(folder), os.fstat(directory))
    except FileNotFoundError:
        return True
