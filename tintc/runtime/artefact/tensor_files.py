"""The tensors of an artefact: their headers, checked before a number is read, and then the tensors, memory-mapped."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tintc.errors import ArtefactError, first_line
from tintc.ir.block_specs import TensorSpec
from tintc.runtime.artefact.names import INDEX_FILE
from tintc.runtime.artefact.snapshot import Snapshot, damaged

MOST_HEADER = 1 << 25
"""Bytes of the longest header of a safetensors file that is read: some hundred thousand tensors."""
DTYPES = ("F64", "F32", "BF16")
"""Types that a simulator's tensors are stored in."""


class TensorFiles:
    """Open files of tensors, by the names of their tensors."""

    def __init__(self, snapshot: Snapshot):
        """Read the headers. Raises `ArtefactError` for one that is damaged, or does not fit the shard index."""
        self.snapshot = snapshot
        self._of: dict[str, Any] = {}
        weights = snapshot.weights
        if not weights:
            raise ArtefactError(f"{snapshot.folder} has no weights (model.safetensors). Compile the model again.")
        for file in weights:
            self._open(file)
        wanted = snapshot.weight_map
        if wanted is not None and wanted.keys() != self._of.keys():
            name = sorted(wanted.keys() ^ self._of.keys())[0]
            why = f"what it says of the tensor {name[:80]!r} is not so"
            raise damaged(snapshot.folder / INDEX_FILE, why)

    def _open(self, file: str) -> None:
        path = self.snapshot.folder / file
        descriptor = self.snapshot.files[file]
        length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
        if length > min(MOST_HEADER, self.snapshot.size(file)):
            raise damaged(path, f"its header claims {length:,} bytes")
        try:
            opened = safe_open(path_of(descriptor, path), framework="pt")
            names = list(opened.keys())
        except (SafetensorError, OSError) as error:
            raise damaged(path, first_line(error)) from error
        for name in names:
            of_index = (self.snapshot.weight_map or {}).get(name, file)
            if name in self._of or of_index != file:
                raise damaged(path, f"it holds the tensor {name[:80]!r}, which stands in another file")
            dtype = opened.get_slice(name).get_dtype()
            if dtype not in DTYPES:
                raise damaged(path, f"its tensor {name[:80]!r} is of the type {dtype}, which no simulator has")
            self._of[name] = opened

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor, by its header."""
        return {name: tuple(file.get_slice(name).get_shape()) for name, file in self._of.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor, a view of its mapped file."""
        return {name: file.get_tensor(name) for name, file in self._of.items()}


def path_of(descriptor: int, path: Path) -> str:
    """Return a path to the file that is open, whatever stands at its own path by now."""
    open_file = f"/proc/self/fd/{descriptor}"
    if os.path.exists(open_file):
        return open_file
    return str(path)


def check_shapes(
    path: Any, stored: Mapping[str, tuple[int, ...]], wanted: Mapping[str, TensorSpec], edited: bool
) -> None:
    """Raise `ArtefactError` unless the files hold exactly the tensors that the program needs, of their shapes.

    A program whose text was edited after compiling may have no use for some of them any more.
    """
    unknown = stored.keys() - wanted.keys()
    if edited:
        unknown = set[str]()
    misshapen = [name for name in stored.keys() & wanted.keys() if stored[name] != wanted[name].shape]
    problems = []
    for names, what in (
        (wanted.keys() - stored.keys(), "lacks {}"),
        (unknown, "has {} it does not know"),
        (misshapen, "has {} of another shape"),
    ):
        if names:
            problems.append(f"{what.format(_counted(len(names)))} ({_some(names)})")
    if problems:
        raise ArtefactError(f"{path} does not fit its program: it {' and '.join(problems)}. Compile the model again.")


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join([*(name[:120] for name in ordered[:3]), *["..."] * (len(ordered) > 3)])


def _counted(count: int) -> str:
    if count == 1:
        return "1 tensor"
    return f"{count} tensors"
