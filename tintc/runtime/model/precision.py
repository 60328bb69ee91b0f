"""A simulator computes in its own dtype, whatever autocast is on around it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

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
