"""A simulator computes in its own dtype, whatever autocast is on around it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

logger = logging.getLogger("tintc")
SHORT = (
    "this simulator computes in %s, which keeps two or three digits: its gradients and its update are rounded to that, "
    "and the update can point elsewhere. Load it with dtype='float32' (--dtype float32) to compute in float32; compile "
    "makes float32 unless told otherwise"
)

Given = ParamSpec("Given")
Result = TypeVar("Result")


def in_its_own_dtype(method: Callable[Given, Result]) -> Callable[Given, Result]:
    """A method of a simulator that autocast does not reach: finite differences need the precision the simulator has."""

    @wraps(method)
    def called(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        sim: Any = args[0]
        with torch.autocast(sim.device.type, enabled=False):
            return method(*args, **kwargs)

    return called


def warn_if_short(dtype: torch.dtype) -> None:
    """Log what a simulator of a type shorter than float32 loses."""
    if dtype.itemsize < torch.float32.itemsize:
        logger.warning(SHORT, str(dtype).removeprefix("torch."))
