"""`write_state`: a state as one safetensors file (see `state_file`), whose bytes depend on the state alone."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tintc.bounded import open_regular
from tintc.errors import ArtefactError, first_line
from tintc.ir.simulator.shared.linear_common import main_part
from tintc.runtime.adaptation.fingerprint import fingerprint
from tintc.runtime.adaptation.state import AdaptedWeights
from tintc.runtime.artefact.one_file import check_replaceable, staged_file
from tintc.runtime.artefact.safetensors_writer import LazyTensor, write_file
from tintc.runtime.artefact.structure_file import tensors_digest

FORMAT, VERSION = "tintc-state", 1
DIGEST = "sha256"
"""The entry of the metadata with the digest of all tensors."""


def name_of(dtype: torch.dtype) -> str:
    """Return a dtype's name, as in ``float32``."""
    return str(dtype).removeprefix("torch.")


def write_state(state: AdaptedWeights, path: str | os.PathLike[str], force: bool = False) -> None:
    """Write it in one step. Raises `ArtefactError` if the disk will not take it, or something is there that is no
    state; with `force` other files are replaced too, but no folders, links and devices."""
    state.check_current()
    target = Path(path).absolute()
    check_replaceable(target, lambda file: force or is_state(file), "state")
    tensors, pending = _tensors(state)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "simulator": fingerprint(state.sim),
        "dtype": name_of(state.sim.dtype),
        "source": str(state.sim.config.provenance.get("source", "")),
        "examples": str(state.examples),
        "pending": json.dumps(pending, sort_keys=True),
        DIGEST: tensors_digest(tensors.items()),
    }
    planned = {name: LazyTensor(tuple(one.shape), one.dtype, partial(_given, one)) for name, one in tensors.items()}
    try:
        with staged_file(target) as stream:
            write_file(stream, planned, lambda: None, metadata)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise ArtefactError(f"The state cannot be written to {path}: {reason}.") from error


def _given(tensor: Tensor) -> Tensor:
    return tensor


def is_state(file: Path) -> bool:
    """Return True for a regular file that says that it is a state."""
    try:
        os.close(open_regular(file))
        with safe_open(file, framework="pt") as opened:
            return (opened.metadata() or {}).get("format") == FORMAT
    except (OSError, SafetensorError):
        return False


def _tensors(state: AdaptedWeights) -> tuple[dict[str, Tensor], dict[str, list[tuple[str, int]]]]:
    """Return the tensors to save, and for every layer with pending updates each one's input's name and bias's share."""
    tensors: dict[str, Tensor] = {}
    pending: dict[str, list[tuple[str, int]]] = {}
    for value, w in state.weights.items():
        layer = state.sim.continuation.updated[value]
        for k, update in enumerate(w.pending):
            tensors[f"{layer}.dy.{k}"] = update.dy * update.rate
            tensors[f"inputs.{update.source.name}"] = update.x
            if update.experts is not None:
                tensors[f"experts.{update.source.name}"] = update.experts
            pending.setdefault(layer, []).append((update.source.name, update.bias))
        if not w.pending:
            parts = {main_part(value.type): w.weight, "bias": w.bias}
            tensors |= {f"{layer}.{part}": tensor for part, tensor in parts.items() if tensor is not None}
    return tensors, pending
