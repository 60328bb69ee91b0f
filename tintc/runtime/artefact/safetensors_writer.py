"""Safetensors files written tensor by tensor: what is in memory at a time is one tensor.

The files are those that `save_pretrained` writes: ``model.safetensors``, or shards and an index, the tensors of a file
by alignment and name.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from accelerate.utils import convert_file_size_to_int
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from tintc.errors import OptionError

NAMES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.int64: "I64"}
PATTERN = "model{suffix}.safetensors"
INDEX = "model.safetensors.index.json"
MAX_SHARD_SIZE = "5GB"
PIECE = 1 << 22
"""Numbers that are converted and written at a time."""


class Writes(Protocol):
    """What bytes can be written to."""

    def write(self, data: Any, /) -> Any:
        """Write bytes."""


@dataclass(frozen=True)
class LazyTensor:
    """A tensor to be written: `build` gives it in any dtype and layout."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    build: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def parse_size(text: str | int) -> int:
    """Return the bytes of ``5GB``, ``500 MB``, ``2GiB`` or a number of bytes.

    Raises `OptionError` for anything else, and for less than a kilobyte, which is a number whose unit was forgotten.
    """
    written = str(text).strip().upper()  # accelerate takes a small b for bits
    try:
        size = _size(written)
    except (ValueError, OverflowError) as error:
        raise OptionError(f"The size {text!r} is not understood; write it as 5GB, 500MB or 2GiB.") from error
    if size < 1000:
        raise OptionError(f"The size {text!r} is {size} bytes; write it as 5GB, 500MB or 2GiB.")
    return size


def _size(written: str) -> int:
    if written.isdecimal():
        return int(written)
    return convert_file_size_to_int(written)


def write_files(
    folder: Path, tensors: Mapping[str, LazyTensor], max_shard_size: int, after_each: Callable[[], None]
) -> dict[str, str]:
    """Write the tensors to one file, or to shards of at most `max_shard_size` bytes (a larger tensor has one to itself)
    and an index; return the sha256 of each. `after_each` is called whenever a tensor has been written."""
    split = split_state_dict_into_shards_factory(
        dict(tensors),  # it only asks for sizes
        get_storage_size=lambda planned: planned.nbytes,
        filename_pattern=PATTERN,
        max_shard_size=max_shard_size,
    )
    hashed = {}
    for file, names in split.filename_to_tensors.items():
        with (folder / file).open("wb") as stream:
            hashing = _Hashing(stream)
            write_file(hashing, {name: tensors[name] for name in names}, after_each)
        hashed[file] = hashing.digest.hexdigest()
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / INDEX).write_text(text, encoding="utf-8")
    return hashed


class _Hashing:
    """Writes to a stream, and hashes what is written."""

    def __init__(self, stream: BinaryIO):
        self.stream = stream
        self.digest = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> None:
        """Write bytes."""
        self.stream.write(data)
        self.digest.update(data)


def write_file(
    stream: Writes,
    tensors: Mapping[str, LazyTensor],
    after_each: Callable[[], None],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one safetensors file: the length of its header, the header, the tensors' bytes. metadata: of the header."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    end = 0
    for name, planned in ordered:
        begin = end
        end += planned.nbytes
        header[name] = {"dtype": NAMES[planned.dtype], "shape": list(planned.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for _, planned in ordered:
        tensor = planned.build().detach()
        assert tuple(tensor.shape) == planned.shape, "a template gives another shape than it says"
        for piece in _pieces(tensor):
            data = piece.to("cpu", planned.dtype).contiguous()
            stream.write(data.view(-1).view(torch.uint8).numpy().data)
        del tensor
        after_each()


def _pieces(tensor: Tensor) -> Iterable[Tensor]:
    """Return parts of a tensor along its first dimension, which together are its numbers in order."""
    if tensor.numel() <= PIECE:
        return (tensor.reshape(-1),)
    return (part.reshape(-1) for part in tensor.split(max(1, PIECE * tensor.shape[0] // tensor.numel())))
