"""Placing modules and parameters in a tree under dotted names."""

from __future__ import annotations

from torch import nn


class Container(nn.Module):
    """A node that only holds other modules and parameters; it is never called."""


def place_module(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` at the dotted `name`; if a container stands there, the module takes over its children."""
    parent, leaf = descend(root, name)
    existing = parent._modules.get(leaf)
    if existing is not None:
        for key, child in existing._modules.items():
            module.add_module(key, child)
    parent.add_module(leaf, module)


def place_parameter(root: nn.Module, name: str, parameter: nn.Parameter) -> None:
    parent, leaf = descend(root, name)
    parent.register_parameter(leaf, parameter)


def descend(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The node that holds the last component of `name`, made as needed, and that component."""
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, Container())
        root = root.get_submodule(part)
    return root, leaf


def owner(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that owns the parameter of this dotted name, and its own name for it.

    Walks the registered modules directly, so that looking does not count as a user's access.
    """
    *path, leaf = name.split(".")
    for part in path:
        child = root._modules[part]
        assert child is not None
        root = child
    return root, leaf
