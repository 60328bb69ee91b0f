"""The device that a simulator is loaded onto; layers that are to lie on several are moved there afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tintc.errors import OptionError

AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")


def as_device(device: torch.device | str | None) -> torch.device:
    """Return a device that exists; raise `OptionError` otherwise."""
    try:
        wanted = torch.device(device or "cpu")
    except RuntimeError as error:
        raise OptionError(f"The device {device!r} is unknown; choose cpu or cuda.") from error
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise OptionError("No CUDA GPU can be used here; choose the device cpu, or install a CUDA build of torch.")
    if wanted.type == "cuda" and wanted.index is not None and wanted.index >= torch.cuda.device_count():
        raise OptionError(f"There is no GPU {wanted.index} here; the last is cuda:{torch.cuda.device_count() - 1}.")
    return wanted


def one_device(device_map: Any) -> dict[str, torch.device] | None:
    """Return the `device_map` of transformers that puts everything on the one device that is meant; None for None, and
    where several are meant.

    What transformers distributes by itself (``auto`` and the like) goes to the GPU, if there is one. Raises
    `OptionError` for devices that are not there.
    """
    if device_map is None:
        return None
    if isinstance(device_map, str) and device_map in AUTOMATIC:
        device_map = "cpu"
        if torch.cuda.is_available():
            device_map = "cuda"
    if names_several(device_map):
        return None
    device = str(device_map)
    if isinstance(device_map, Mapping):
        device = str(next(iter(device_map.values()), "cpu"))
    return {"": as_device(named(device))}


def names_several(device_map: Any) -> bool:
    """Return whether a `device_map` puts modules on different devices."""
    return isinstance(device_map, Mapping) and len(set(map(str, device_map.values()))) > 1


def check_devices(device_map: Any) -> None:
    """Raise `OptionError` for a device of several that is not there."""
    if names_several(device_map):
        for device in device_map.values():
            as_device(named(device))


def named(device: Any) -> str:
    """Return a device's name; a number is a GPU's."""
    if str(device).isdigit():
        return f"cuda:{device}"
    return str(device)
