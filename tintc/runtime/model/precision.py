"""A simulator computes in its own dtype, whatever autocast is on around it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

from tintc.errors import OptionError

logger = logging.getLogger("tintc")
SHORT = (
    "this simulator computes in %s, which keeps two or three digits: its gradients and its update are rounded to that, "
    "and the update can point elsewhere. Load it with dtype='float32' (--dtype float32) to compute in float32; compile "
    "makes float32 unless told otherwise"
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}

Given = ParamSpec("Given")
Result = TypeVar("Result")


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return the torch dtype of a dtype or its name; raise `OptionError` for any but float32, bfloat16, float64."""
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise OptionError(f"The dtype {name!r} is not supported; choose one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def in_its_own_dtype(method: Callable[Given, Result]) -> Callable[Given, Result]:
    """Return the method for calls that autocast does not reach: finite differences need the simulator's precision."""

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
