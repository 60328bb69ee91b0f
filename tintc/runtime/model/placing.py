"""Layers of one simulator on several devices, for auxiliaries that are larger than one card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import infer_auto_device_map
from accelerate.utils import check_device_map, get_balanced_memory
from torch import nn

from tintc.errors import OptionError
from tintc.runtime.execution.fused.placed import devices_of
from tintc.runtime.model.devices import as_device, named

LAYERS = "prefixes"
"""The module whose parts may lie on different devices."""


class PlacingMixin:
    """The part of `TintForCausalLM` that lies on several devices."""

    def place_layers(
        self: Any, device_map: Mapping[str, Any] | None = None, max_memory: Mapping[Any, Any] | None = None
    ) -> list[torch.device]:
        """Move layers to the devices that a map names, and return the devices; runs go from one to the next.

        device_map: devices by names of modules, as transformers and accelerate have them, such as ``{"": 0,
        "prefixes.model.layers.1": 1}``, the longest name that fits a module first; only parts of ``prefixes``, the
        auxiliary's layers, may be elsewhere than all the rest. None: accelerate spreads the layers over the GPUs there
        are, evenly or as `max_memory` says. Only fused execution runs over several devices, and without graphs.

        Raises `OptionError` for devices that are not there, for a map that leaves something out, and if accelerate's
        plan does not fit.
        """
        if device_map is None:
            device_map = _planned(self, max_memory)
        devices = {name: as_device(named(device)) for name, device in device_map.items()}
        try:
            modules = {name: self.get_submodule(name) for name in sorted(devices, key=_depth)}
            check_device_map(self, dict(device_map))
        except (ValueError, AttributeError) as error:
            raise OptionError(f"The device map does not fit the simulator: {error}") from error
        _check_rest(self, devices)
        for name, module in modules.items():
            nn.Module.to(module, devices[name])
        self.placed = self.on_several_devices()
        self.graphs.clear()
        return devices_of(self)


def _depth(name: str) -> int:
    return len(name.split(".")) if name else 0


def _planned(sim: Any, max_memory: Mapping[Any, Any] | None) -> dict[str, Any]:
    """Return accelerate's map of the layers, all else on the first GPU."""
    layers: nn.Module = getattr(sim, LAYERS)
    memory: Any = max_memory
    if memory is None:
        memory = get_balanced_memory(layers)
    planned = infer_auto_device_map(layers, max_memory=memory)
    if any(device in ("cpu", "disk") for device in planned.values()):
        raise OptionError(
            "The layers do not fit on the GPUs there are; compile with dtype='bfloat16', or use more GPUs."
        )
    first = next(iter(planned.values()))
    return {"": first} | {f"{LAYERS}.{name}".rstrip("."): device for name, device in planned.items()}


def _check_rest(sim: nn.Module, devices: Mapping[str, torch.device]) -> None:
    """Raise `OptionError` unless everything but the layers is to be on one device."""
    rest: dict[torch.device, str] = {}
    for name, _ in sim.named_parameters():
        if not name.startswith(f"{LAYERS}."):
            fitting = [key for key in devices if not key or name == key or name.startswith(f"{key}.")]
            rest.setdefault(devices[max(fitting, key=len)], name)
    if len(rest) > 1:
        shown = " and ".join(f"{name} on {device}" for device, name in rest.items())
        raise OptionError(f"The device map has {shown}; only parts of {LAYERS} may lie elsewhere than all the rest.")
