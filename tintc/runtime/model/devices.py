"""The device that a simulator is loaded onto: one, as all of a program runs on one."""

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
    return wanted


def one_device(device_map: Any) -> dict[str, torch.device] | None:
    """Return the `device_map` of transformers that puts everything on the one device that is meant; None for None.

    What transformers distributes by itself (``auto`` and the like) goes to the GPU, if there is one. Raises
    `OptionError` for a map that names several devices, and for devices that are not there.
    """
    if device_map is None:
        return None
    if isinstance(device_map, str) and device_map in AUTOMATIC:
        device_map = "cpu"
        if torch.cuda.is_available():
            device_map = "cuda"
    devices = {str(device_map)}
    if isinstance(device_map, Mapping):
        devices = set(map(str, device_map.values()))
    if len(devices) != 1:
        raise OptionError(
            f"The device map names {', '.join(sorted(devices))}; a simulator runs on one device, so pass "
            "device_map='cuda' or device_map='cpu'."
        )
    device = devices.pop()
    if device.isdigit():
        device = f"cuda:{device}"
    return {"": as_device(device)}
