"""The structural tensors of a folder, and the digest by which the compiler's own are known."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor


def stored_structure(folder: str | Path) -> dict[str, Tensor]:
    """Return the structural tensors in a folder's safetensors files, memory-mapped; none if there is no such file."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            names = [name for name in opened.keys() if name.startswith("structure.")]  # noqa: SIM118 - not a dict
            tensors.update((name, opened.get_tensor(name)) for name in names)
    return tensors


def structure_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the sha256 over names, shapes, dtypes and bytes of all ``structure.`` tensors, in order of their names."""
    return tensors_digest(item for item in tensors if item[0].startswith("structure."))


def tensors_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the sha256 over names, shapes, dtypes and bytes of tensors, in order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(data.shape)} {data.dtype}\n".encode())
        digest.update(data.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
