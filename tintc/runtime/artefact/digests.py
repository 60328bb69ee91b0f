"""``digests.json``: sizes and sha256 of an artefact's files, written with them and compared when they are read.

Always compared are the sizes, all bytes of small files and samples of large ones, which costs milliseconds. All bytes
of all files are hashed where somebody asks for it (`tintc.load(path, check_files=True)`, ``tintc verify --files``). The
model card is not among them: people write on it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tintc.bounded import is_cached, leaves, open_regular
from tintc.errors import ArtefactError
from tintc.runtime.artefact.names import CARD_FILE, DIGESTS_FILE, PROGRAM_FILE
from tintc.runtime.artefact.schema import check_manifest
from tintc.runtime.artefact.snapshot import Snapshot

SMALL = 1 << 20
"""Bytes up to which a file is its own sample."""
SAMPLES = 64
SAMPLE = 1 << 12
"""Bytes of each sample."""
PIECE = 1 << 20
logger = logging.getLogger("tintc")


def _positions(size: int) -> Iterable[int]:
    """Return where the samples of a file begin; the first is its first bytes and the last its last."""
    if size <= SMALL:
        return range(0, size, SAMPLE)
    return (index * (size - SAMPLE) // (SAMPLES - 1) for index in range(SAMPLES))


def sample_digest(descriptor: int) -> str:
    """Return the sha256 over samples of a file."""
    digest = hashlib.sha256()
    for position in _positions(os.fstat(descriptor).st_size):
        digest.update(os.pread(descriptor, SAMPLE, position))
    return digest.hexdigest()


def full_digest(descriptor: int) -> str:
    """Return the sha256 over all bytes of a file."""
    digest = hashlib.sha256()
    position = 0
    while piece := os.pread(descriptor, PIECE, position):
        digest.update(piece)
        position += len(piece)
    return digest.hexdigest()


def write_digests(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Write the digests of all files in a folder but its card. known: sha256 of files, by name, where their writer has
    hashed them."""
    files: dict[str, Any] = {}
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    for name in names:
        if name in (CARD_FILE, DIGESTS_FILE):
            continue
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            whole = (known or {}).get(name) or full_digest(descriptor)
            files[name] = {"size": size, "sha256": whole, "sample": sample_digest(descriptor)}
        finally:
            os.close(descriptor)
    (folder / DIGESTS_FILE).write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")


def read_digests(snapshot: Snapshot) -> Mapping[str, Mapping[str, Any]] | None:
    """Return the digests in a folder, None if it has none; raise `ArtefactError` if they are damaged."""
    manifest = snapshot.json(DIGESTS_FILE)
    if manifest is None:
        return None
    return check_manifest(snapshot.folder / DIGESTS_FILE, manifest)


def changed_files(snapshot: Snapshot, full: bool = False) -> list[str]:
    """Return the names of files that are not as they were written, by their sizes and samples, or by all their bytes.

    Of a folder without digests, which every writer leaves, that file alone: no more is known.
    """
    digests = read_digests(snapshot)
    if digests is None:
        return [DIGESTS_FILE]
    changed = []
    for name, wanted in digests.items():
        if name not in snapshot.files:
            continue  # of no use to a simulator, or missing: whoever needs it says so
        descriptor = snapshot.files[name]
        same = snapshot.size(name) == wanted["size"] and sample_digest(descriptor) == wanted["sample"]
        if same and full:
            same = full_digest(descriptor) == wanted["sha256"]
        if not same:
            changed.append(name)
    unknown = [name for name in (PROGRAM_FILE, *snapshot.weights) if name in snapshot.files and name not in digests]
    return sorted({*changed, *unknown})


def digests_of(snapshot: Snapshot) -> Mapping[str, Mapping[str, Any]]:
    """Return the digests of a folder's files, by name; raise `ArtefactError` if it has none."""
    digests = read_digests(snapshot)
    if digests is None:
        raise ArtefactError(
            f"{snapshot.folder} has no {DIGESTS_FILE}, so its files cannot be checked; compile the model again, or "
            "save the simulator anew."
        )
    return digests


def altered(snapshot: Snapshot) -> list[str]:
    """Return the names of files of which any byte is not as it was written, or that are missing.

    Raises `ArtefactError` for a folder without digests.
    """
    digests = digests_of(snapshot)
    unread = [name for name in digests if name not in snapshot.files]
    if is_cached(snapshot.folder):
        unread = [name for name in unread if (snapshot.folder / name).exists()]
    wrong = [name for name in unread if not _is_as_written(snapshot.folder, name, digests[name])]
    return sorted({*changed_files(snapshot, full=True), *wrong})


def _is_as_written(folder: Path, name: str, wanted: Mapping[str, Any]) -> bool:
    """Return True if a file that no simulator needs, such as the roles of its heads, is there and has the digest."""
    if not (folder / name).is_file() or leaves(folder, name):
        return False
    descriptor = open_regular(folder / name)
    try:
        return os.fstat(descriptor).st_size == wanted["size"] and full_digest(descriptor) == wanted["sha256"]
    finally:
        os.close(descriptor)


def refuse_changed(snapshot: Snapshot) -> None:
    """Raise `ArtefactError` unless every byte of every file is as it was written."""
    changed = altered(snapshot)
    if changed:
        raise ArtefactError(
            f"{snapshot.folder} is not as it was written: {', '.join(changed)}. Compile the model again."
        )


def say_edited(path: Any, changed: Sequence[str], program_edited: bool) -> None:
    """Warn, in one sentence, of a simulator whose files are not as they were written."""
    if sentence := edited_sentence(path, changed, program_edited):
        logger.warning(sentence)


def edited_sentence(path: Any, changed: Sequence[str], program_edited: bool) -> str:
    """Return what is to be said of changed files, empty if there are none."""
    files = list(changed)
    if program_edited and PROGRAM_FILE not in files:
        files.insert(0, PROGRAM_FILE)
    if not files:
        return ""
    if files == [DIGESTS_FILE]:
        return (
            f"{path} has no {DIGESTS_FILE}, so whether it was edited, or damaged, after it was compiled is not known. "
            "It runs as it is now; compile the model again, or save the simulator anew"
        )
    return (
        f"{path} was edited, or damaged, after it was compiled: {', '.join(files)}. It runs as it is now; 'tintc "
        "verify --files' compares every byte"
    )
