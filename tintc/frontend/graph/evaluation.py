"""The value of a single node of an exported graph, in the graph's own dtypes or with every float widened.

The captured graph casts down to fp32 inside norms, softmax and rotary tables. `execute` with a dtype drops those casts:
every floating dtype a node asks for is replaced, and every floating result is brought to that dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_aggregate, map_arg

CHECKS = frozenset({"_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range_for_size"})
"""Nodes that only check, and have no users."""


def opname(node: Node) -> str:
    """Return the operation's short name: ``add`` for ``aten.add.Tensor``, ``getitem`` for ``operator.getitem``."""
    if node.op != "call_function":
        return node.op
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        return schema.name.split("::")[-1]
    return getattr(node.target, "__name__", str(node.target))


def execute(node: Node, lookup: Callable[[Node], Any], dtype: torch.dtype | None) -> Any:
    """Return the node's value; `lookup` gives the values of its inputs.

    dtype: what every float becomes; None keeps the graph's own casts. ``detach`` is an identity here: export writes it
    around constants, and the reference differentiates through the graph.
    """
    if dtype is not None and opname(node) == "type_as":
        return lookup(node.args[0])  # pyright: ignore[reportArgumentType]
    args: Any = map_arg(node.args, lookup)
    kwargs: Any = map_arg(node.kwargs, lookup)
    name = opname(node)
    if name in CHECKS:
        return None
    if name in ("detach", "detach_", "alias", "lift_fresh_copy"):
        return args[0]
    if name in ("view", "_unsafe_view"):
        return args[0].reshape(args[1])  # other kernels, other strides: what was a view there need not be one here
    if name == "copy" and isinstance(args[1], Tensor):
        return args[1].to(args[0].dtype).expand_as(args[0])  # PyTorch has no derivative of `copy`
    assert callable(node.target)
    if dtype is None:
        return node.target(*args, **kwargs)
    result = node.target(*_with_dtype(args, dtype), **_with_dtype(kwargs, dtype))
    return map_aggregate(result, lambda value: widened(value, dtype))


def _with_dtype(arguments: Any, dtype: torch.dtype) -> Any:
    def replace(value: Any) -> Any:
        if isinstance(value, torch.dtype) and value.is_floating_point:
            return dtype
        if isinstance(value, torch.dtype) and value.is_complex:
            return dtype.to_complex()
        return value

    return map_aggregate(arguments, replace)


def widened(value: Any, dtype: torch.dtype) -> Any:
    """Return a tensor of floats in that dtype, one of complex numbers in the one made of it, anything else as it is."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != dtype:
        return value.to(dtype)
    if isinstance(value, Tensor) and value.is_complex():
        return value.to(dtype.to_complex())
    return value
