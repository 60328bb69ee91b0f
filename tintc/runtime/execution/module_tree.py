"""Placing modules and parameters in a tree under dotted names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tintc.errors import OptionError


class Container(nn.Module):
    """A node that only holds other modules and parameters; whoever calls it is told so."""

    def forward(self, *_: Any, **__: Any) -> Any:
        raise OptionError(
            "This part of a simulator only holds modules and tensors, which its executors read, so it is not called "
            "(prompts and prefixes of peft do that to embeddings); train sim.trainable('tables') or 'prefixes' instead."
        )


class FullPrecision(Container):
    """A container whose parameters stay in float32 or better when the model is cast to a shorter type."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = {name: parameter.data for name, parameter in self.named_parameters()}
        super()._apply(fn, recurse)
        for name, parameter in self.named_parameters():
            if parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = before[name].to(parameter.device, torch.float32)
        return self


@dataclass(frozen=True)
class Reference:
    """A tensor that another module of the tree owns, looked up whenever it is read: moving or replacing it is seen."""

    module: nn.Module
    name: str

    def tensor(self) -> Tensor:
        """Return the tensor as it is now."""
        return getattr(self.module, self.name)


def place_module(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` at the dotted `name`; if a container stands there, the module takes over its children."""
    parent, leaf = ensure_parent(root, name)
    existing = parent._modules.get(leaf)
    if existing is not None:
        for key, child in existing._modules.items():
            module.add_module(key, child)
    parent.add_module(leaf, module)


def place_parameter(root: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Register a parameter under a dotted name, with the modules above it."""
    parent, leaf = ensure_parent(root, name)
    parent.register_parameter(leaf, parameter)


def ensure_parent(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the node that holds the last component of `name`, added as needed, and that component."""
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, Container())
        root = root.get_submodule(part)
    return root, leaf


def owner(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that owns the parameter of this dotted name, and its own name for it."""
    path, _, leaf = name.rpartition(".")
    return root.get_submodule(path), leaf


def refer_to(root: nn.Module, name: str) -> Reference:
    """Return a reference to the parameter of this dotted name."""
    return Reference(*owner(root, name))
