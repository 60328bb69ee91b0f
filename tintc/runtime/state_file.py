"""A state as one safetensors file: updated weights, or what a pending update is made of, by layer.

``<layer>.weight`` (or ``.gain``) and ``<layer>.bias`` with the examples first; for a pending update ``<layer>.dy.<k>``
``[E, t, dout]``, the learning rate in it, and ``inputs.<value>`` ``[E, t, din]``, which layers of one input share. The
metadata say which simulator it belongs to.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tintc.errors import ArtefactError
from tintc.ir.core import Value
from tintc.ir.simulator.fused_base import FusedWeights, Pending
from tintc.runtime.artefact import first_line, text_digest
from tintc.runtime.fused.continuation import base_weights
from tintc.runtime.state import AdaptedState

if TYPE_CHECKING:
    from tintc.runtime.model import TintForCausalLM

FORMAT, VERSION = "tintc-state", 1
SAMPLED = 4096
"""Numbers of each tensor that its simulator is known by."""


def fingerprint(sim: TintForCausalLM) -> str:
    """sha256 over the program and numbers from every tensor of the auxiliary: two models of one shape differ."""
    digest = hashlib.sha256(text_digest(sim.config.program or "").encode())
    for kind in (sim.tables, sim.prefixes):
        for name, parameter in kind.named_parameters():
            flat = parameter.detach().flatten()
            step = max(1, flat.numel() // SAMPLED)
            digest.update(name.encode() + flat[::step].cpu().float().numpy().tobytes())
    return digest.hexdigest()


def write_state(state: AdaptedState, path: str | os.PathLike[str]) -> None:
    """Write it in one step; `ArtefactError` if the disk will not take it."""
    tensors, pending = _tensors(state)
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "simulator": fingerprint(state.sim),
        "source": str(state.sim.config.provenance.get("source", "")),
        "examples": str(state.examples),
        "pending": json.dumps(pending),
    }
    target = Path(path).absolute()
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.tintc-", dir=target.parent)
        os.close(handle)
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)
        os.replace(temporary, target)
    except (OSError, SafetensorError) as error:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ArtefactError(f"The state cannot be written to {path}: {reason}.") from error


def _tensors(state: AdaptedState) -> tuple[dict[str, Tensor], dict[str, list[tuple[str, int]]]]:
    """What is written, and of each layer with pending updates their inputs' names and the bias's share."""
    tensors: dict[str, Tensor] = {}
    pending: dict[str, list[tuple[str, int]]] = {}
    for value, w in state.weights.items():
        layer = state.sim.continuation.updated[value]
        for k, update in enumerate(w.pending):
            tensors[f"{layer}.dy.{k}"] = update.dy * update.rate
            tensors[f"inputs.{update.source.name}"] = update.x
            pending.setdefault(layer, []).append((update.source.name, update.bias))
        if not w.pending:
            parts = {"gain" if value.type.kind == "norm" else "weight": w.weight, "bias": w.bias}
            tensors |= {f"{layer}.{part}": tensor for part, tensor in parts.items() if tensor is not None}
    return tensors, pending


def read_state(path: str | os.PathLike[str], sim: TintForCausalLM) -> AdaptedState:
    """The state in that file, on the simulator's device and in its dtype."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check(path, metadata, sim)
            tensors = {name: file.get_tensor(name).to(sim.device, sim.dtype) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise ArtefactError(f"There is no state at {path}; check the path.") from error
    except (OSError, SafetensorError) as error:
        raise ArtefactError(f"{path} cannot be read as a state: {first_line(error)}.") from error
    pending: dict[str, list[tuple[str, int]]] = json.loads(metadata["pending"])
    sources = {operand.name: operand for op in sim.program.ops for operand in op.operands}
    stored, weights = base_weights(sim), {}
    try:
        for value, layer in sim.continuation.updated.items():
            updates = _updates(pending.get(layer, []), layer, tensors, sources)
            weights[value] = replace(stored[value], pending=updates) if updates else _whole(value, layer, tensors)
    except KeyError as error:
        raise ArtefactError(f"{path} is damaged: it has no {error.args[0]}. Adapt again.") from error
    return AdaptedState(sim, weights, int(metadata["examples"]))


def _check(path: Any, metadata: dict[str, str], sim: TintForCausalLM) -> None:
    if metadata.get("format") != FORMAT:
        raise ArtefactError(f"{path} is not the state of a simulator; sim.adapt(...).save(path) makes one.")
    if int(metadata.get("version", "0")) > VERSION:
        raise ArtefactError(f"{path} was written by a newer tintc; update tintc.")
    if metadata.get("simulator") != fingerprint(sim):
        raise ArtefactError(
            f"{path} belongs to another simulator, of {metadata.get('source') or 'an unknown model'}; load that one, "
            "or adapt this one."
        )


def _updates(
    entries: list[tuple[str, int]], layer: str, tensors: dict[str, Tensor], sources: dict[str, Value]
) -> tuple[Pending, ...]:
    return tuple(
        Pending(tensors[f"{layer}.dy.{k}"], tensors[f"inputs.{name}"], sources[name], bias)
        for k, (name, bias) in enumerate(entries)
    )


def _whole(value: Value, layer: str, tensors: dict[str, Tensor]) -> FusedWeights:
    """Weights that are written out; a part that the layer should have and the file has not is a `KeyError`."""
    kind, parts = value.type, value.type.parts
    if kind.kind == "linear":
        weight = tensors[f"{layer}.weight"]
    else:
        weight = tensors[f"{layer}.gain"] if {"gain", "vector"} & set(parts) else None
    bias = tensors[f"{layer}.bias"] if any(part.startswith("bias") for part in parts) else None
    return FusedWeights(weight, bias)
