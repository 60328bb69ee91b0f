"""A state as one safetensors file: updated weights, or what a pending update is made of, by layer.

``<layer>.weight`` (or ``.gain``) and ``<layer>.bias`` with the examples first; for a pending update ``<layer>.dy.<k>``
``[E, t, dout]``, the learning rate in it, and ``inputs.<value>`` ``[E, t, din]``, which layers of one input share; of a
mixture's layers also ``experts.<value>`` ``[E, t]``, the expert of every vector, of which some may share an input. The
metadata say which simulator it belongs to.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tintc.bounded import check_path, open_regular, parse_json
from tintc.errors import ArtefactError, first_line
from tintc.ir.core import Value
from tintc.ir.finite import is_finite
from tintc.ir.simulator.interface.fused_base import FusedWeights, Pending
from tintc.ir.simulator.shared.linear_common import bias_dims
from tintc.runtime.adaptation.continuation import AdaptiveSimulator, base_weights
from tintc.runtime.adaptation.fingerprint import WeightsSnapshot, fingerprint
from tintc.runtime.adaptation.state import AdaptedWeights
from tintc.runtime.adaptation.state_writer import DIGEST, FORMAT, VERSION, name_of
from tintc.runtime.artefact.structure_file import tensors_digest
from tintc.runtime.artefact.tensor_files import path_of


class _DamageError(Exception):
    """Damage of a file, as the end of a sentence."""


TYPES = ("F64", "F32", "BF16")
"""Types of a state's tensors, but for those that name experts."""


def read_state(path: str | os.PathLike[str], sim: AdaptiveSimulator) -> AdaptedWeights:
    """Return the state in that file, on the simulator's device and in its dtype."""
    check_path(path, ArtefactError)
    if Path(path).is_dir():
        raise ArtefactError(f"{path} is a folder; pass a file that sim.adapt(...).save(path) has written.")
    try:
        metadata, stored = _opened(path, sim)
        tensors = {name: _read(tensor, sim) for name, tensor in stored.items()}
        _check_finite(path, tensors)
        state = _state(metadata, tensors, sim)
        if metadata.get(DIGEST) not in (None, tensors_digest(stored.items())):
            raise _DamageError("its numbers are not those that were written")
        return state
    except FileNotFoundError as error:
        raise ArtefactError(f"There is no state at {path}; check the path.") from error
    except (OSError, SafetensorError) as error:
        raise ArtefactError(
            f"{path} cannot be read as a state: {first_line(error)}. Pass a file that sim.adapt(...).save(path) has "
            "written, or adapt again."
        ) from error
    except _DamageError as error:
        raise ArtefactError(f"{path} is damaged: {error}. Adapt again.") from error


def _opened(path: str | os.PathLike[str], sim: AdaptiveSimulator) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return a file's metadata and its tensors, mapped; raise `ArtefactError` if it is no state of the simulator, and
    `_DamageError` for tensors of types that no state has."""
    descriptor = open_regular(path)
    try:
        with safe_open(path_of(descriptor, Path(path)), framework="pt") as file:
            metadata = file.metadata() or {}
            _check(path, metadata, sim)
            for name in file.keys():  # noqa: SIM118 - not a dict
                dtype = file.get_slice(name).get_dtype()
                if dtype not in TYPES and not (name.startswith("experts.") and dtype == "I64"):
                    raise _DamageError(f"{name} is of the type {dtype}")
            return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    finally:
        os.close(descriptor)


def _read(tensor: Tensor, sim: AdaptiveSimulator) -> Tensor:
    """Return a tensor on the simulator's device, in its dtype unless it holds integers."""
    if tensor.is_floating_point():
        return tensor.to(sim.device, sim.dtype)
    return tensor.to(sim.device)


def _check_finite(path: Any, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise ArtefactError(
                f"{path} has NaN or infinite values in {name}; adapt again, with a smaller learning rate."
            )


def _state(metadata: dict[str, str], tensors: dict[str, Tensor], sim: AdaptiveSimulator) -> AdaptedWeights:
    examples, pending = _described(metadata, sim)
    snapshot = WeightsSnapshot.of(sim)
    stored = base_weights(sim)
    weights: dict[Value, FusedWeights] = {}
    for value, layer in sim.continuation.updated.items():
        read = _Layer(layer, value, stored[value], examples, tensors)
        if layer in pending:
            weights[value] = read.updates(pending[layer])
        else:
            weights[value] = read.whole()
    if examples > 1 and weights and not any(_per_example(value, w) for value, w in weights.items()):
        raise _DamageError(f"it has the weights of one example, not of {examples}")
    return AdaptedWeights(sim, weights, examples, snapshot)


def _per_example(value: Value, w: FusedWeights) -> bool:
    """Return whether each example has weights of its own here."""
    sides = ((w.weight, len(value.type.dims)), (w.bias, bias_dims(value.type)))
    return bool(w.pending) or any(tensor is not None and tensor.dim() > dims for tensor, dims in sides)


def _check(path: Any, metadata: dict[str, str], sim: AdaptiveSimulator) -> None:
    if metadata.get("format") != FORMAT:
        raise ArtefactError(f"{path} is not the state of a simulator; sim.adapt(...).save(path) makes one.")
    if _number(metadata, "version") > VERSION:
        raise ArtefactError(f"{path} was written by a newer tintc; update tintc.")
    if metadata.get("simulator") == fingerprint(sim):
        return
    saved, dtype = metadata.get("dtype"), name_of(sim.dtype)
    if saved not in (None, dtype):
        raise ArtefactError(
            f"{path} was saved in {saved} and this simulator is in {dtype}; load the simulator with dtype={saved!r}."
        )
    raise ArtefactError(
        f"{path} belongs to another simulator, of {metadata.get('source') or 'an unknown model'}; load that one, or "
        "adapt this one."
    )


def _described(metadata: dict[str, str], sim: AdaptiveSimulator) -> tuple[int, dict[str, list[tuple[Value, int]]]]:
    """Return the number of examples, and for each layer with pending updates their inputs and the bias's share."""
    examples = _number(metadata, "examples")
    if examples < 1:
        raise _DamageError(f"it has {examples} examples")
    sources = {operand.name: operand for op in sim.program.ops for operand in op.operands}
    layers = set(sim.continuation.updated.values())
    try:
        entries = parse_json(metadata["pending"].encode()).items()
        pending = {layer: [(sources[name], int(bias)) for name, bias in updates] for layer, updates in entries}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise _DamageError("what it says of pending updates cannot be read") from error
    if not layers.issuperset(pending) or not all(pending.values()):
        raise _DamageError("it has pending updates of layers that the simulator does not update")
    return examples, pending


def _number(metadata: dict[str, str], name: str) -> int:
    text = metadata.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise _DamageError(f"its {name} is {text!r}, no number")
    return int(text)


@dataclass(frozen=True)
class _Layer:
    """One layer of a file; stored: its weights without any update, whose shapes the file must have."""

    name: str
    value: Value
    stored: FusedWeights
    examples: int
    tensors: dict[str, Tensor]

    def updates(self, entries: list[tuple[Value, int]]) -> FusedWeights:
        """Return the stored weights with pending updates."""
        assert self.stored.weight is not None
        dout, din = self.stored.weight.shape[-2:]
        pending = []
        for k, (source, bias) in enumerate(entries):
            x = self._tensor(f"inputs.{source.name}", (self.examples, -1, din))
            length = x.shape[1]
            experts = None
            if self.value.type.kind == "experts":
                experts = self._experts(f"experts.{source.name}", length)
                length = experts.shape[1]
            dy = self._tensor(f"{self.name}.dy.{k}", (self.examples, length, dout))
            pending.append(Pending(dy, x, source, bias, experts=experts))
        return replace(self.stored, pending=tuple(pending))

    def _experts(self, name: str, inputs: int) -> Tensor:
        """Return the expert of every vector ``[examples, t]``, where t is a multiple of the number of inputs."""
        experts = self._tensor(name, (self.examples, -1))
        count = self.value.type.dims[0]
        if not inputs or not experts.shape[1] or experts.shape[1] % inputs:
            raise _DamageError(f"{name} has shape {list(experts.shape)}, for {inputs} inputs")
        if experts.dtype != torch.long or int(experts.min()) < 0 or int(experts.max()) >= count:
            raise _DamageError(f"{name} does not name experts from 0 to {count - 1}")
        return experts

    def whole(self) -> FusedWeights:
        """Return weights that are written out, each example's or what all of them share."""
        kind = self.value.type
        parts = kind.parts
        weight = None
        bias = None
        if kind.kind != "norm":
            weight = self._part("weight", self.stored.weight)
        elif {"gain", "vector"} & set(parts):
            weight = self._part("gain", self.stored.weight)
        if any(part.startswith("bias") for part in parts):
            bias = self._part("bias", self.stored.bias)
        return FusedWeights(weight, bias)

    def _part(self, part: str, stored: Tensor | None) -> Tensor:
        assert stored is not None
        return self._tensor(f"{self.name}.{part}", (self.examples, *stored.shape), tuple(stored.shape))

    def _tensor(self, name: str, *shapes: tuple[int, ...]) -> Tensor:
        """Return the tensor if it has one of these shapes, in which -1 stands for any number."""
        if name not in self.tensors:
            raise _DamageError(f"it has no {name}")
        tensor = self.tensors[name]
        for shape in shapes:
            if tensor.dim() == len(shape) and all(n in (-1, m) for n, m in zip(shape, tensor.shape, strict=True)):
                return tensor
        raise _DamageError(f"{name} has shape {list(tensor.shape)}")
