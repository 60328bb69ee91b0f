"""Which functions of a model's code are mixers, and what stands for them while its graph is exported.

transformers marks functions for which libraries have kernels by `use_kernel_func_from_hub_with_fallback(NAME, ...)`;
NAME says what they compute, whatever a file calls its own. Others are registered as they are, or by their place.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

from torch import nn

from tintc.errors import OptionError
from tintc.frontend.mixers.kinds import KINDS

Function = Callable[..., Any]
REGISTERED: dict[str | Function, Function] = {}
"""What stands for a function, by the function itself, its NAME or its place."""


def register(function: Function | str, kind: str | Function, arguments: Mapping[str, str] | None = None) -> None:
    """Let a function that a model calls be read as a mixer of tokens.

    function: a global of the module that defines one of the model's classes; or a name, of a function that transformers
    marks as one that libraries have kernels for, or its place, ``package.module.function``. kind: what it computes, one
    of gated_delta_rule, kda, state_space, selective_scan and convolution; or a function that takes the same arguments
    and returns the same, made of `tintc.mixers.recurrence`, `tintc.mixers.convolution` and operations of PyTorch.
    arguments: names of keywords of the function, with those of the kind for the same. Raises `OptionError` for another
    kind. A second registration of a function replaces the first.
    """
    replacement: Any = kind
    if isinstance(kind, str):
        replacement = KINDS.get(kind)
    if not callable(replacement):
        raise OptionError(f"The kind of mixer {kind!r} is unknown; choose one of {', '.join(KINDS)}, or a function.")
    REGISTERED[function] = _renamed(replacement, dict(arguments or {}))


def _renamed(function: Function, arguments: Mapping[str, str]) -> Function:
    """Return the function, with keywords under other names."""

    @functools.wraps(function)
    def renamed(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **{arguments.get(key, key): value for key, value in kwargs.items()})

    return renamed


for _name, _kind in (
    ("causal_conv1d_fn", "convolution"),
    ("chunk_gated_delta_rule", "gated_delta_rule"),
    ("chunk_kda", "kda"),
    ("mamba_chunk_scan_combined", "state_space"),
    ("selective_scan_fn", "selective_scan"),
):
    register(_name, _kind, {"query": "q", "key": "k", "value": "v", "hidden_states": "x"})


@contextmanager
def mixers_as_nodes(model: nn.Module) -> Iterator[None]:
    """Let registered functions, where the model's modules find them, be what stands for them."""
    kept: list[tuple[ModuleType, str, Any]] = []
    try:
        for module in _code_of(model):
            for name, value in list(vars(module).items()):
                replacement = _replacement(value)
                if replacement is not None:
                    kept.append((module, name, value))
                    setattr(module, name, replacement)
        yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)


def _code_of(model: nn.Module) -> list[ModuleType]:
    """Return the Python modules that define the classes of the model's parts, torch's own aside."""
    names = {cls.__module__: None for module in model.modules() for cls in type(module).__mro__}
    return [sys.modules[name] for name in names if name in sys.modules and name.partition(".")[0] != "torch"]


def _replacement(value: object) -> Function | None:
    if not isinstance(value, FunctionType):
        return None
    for key in (value, f"{value.__module__}.{value.__qualname__}", _kernel_name(value)):
        if key in REGISTERED:
            return REGISTERED[key]
    return None


def _kernel_name(function: Any) -> str:
    """Return NAME of a function that transformers marks; empty for any other.

    The mark is a function around it that knows NAME under the word `func_name`.
    """
    while isinstance(function, FunctionType):
        inside = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        if {"func_name", "torch_function"} <= inside.keys():
            return str(inside["func_name"].cell_contents)
        function = getattr(function, "__wrapped__", None)
    return ""
