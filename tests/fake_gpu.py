"""A GPU that is not there: tensors with shapes and a device and no values, on which waiting for values is an error.

`FakeTensorMode` raises where Python asks for a value (`.item()`, `bool(tensor)`, `.tolist()`) and where a shape depends
on one (`nonzero`, `unique`). A copy from the host is seen here: a GPU's queue waits for it, and a captured graph has no
place for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tintc.ir.inputs import Inputs
from tintc.ir.simulator.kernels.choice import using
from tintc.runtime.model.causal_lm import TintForCausalLM

GPU = torch.device("cuda", 0)


class Waits(AssertionError):
    """The host would wait for the GPU, or the GPU for the host."""


class NoCopies(TorchDispatchMode):
    """Raises `Waits` where an operator has tensors of the host beside those of the GPU; numbers may be of the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim()]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.numel()]
        if len({leaf.device for leaf in (*read, *made)}) > 1:
            raise Waits(f"{func} reads a tensor of one device and makes one of another")
        return result


class NoHostMemory(NoCopies):
    """Raises `Waits` also where anything is made on the host, which a replayed graph would never make again."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if any(isinstance(leaf, Tensor) and leaf.device.type == "cpu" for leaf in tree_leaves(result)):
            raise Waits(f"{func} makes a tensor on the host")
        return result


class _Indexing(TorchFunctionMode):
    """Does by operators what ``tensor[...]`` does in C++, where a torch built without CUDA looks for the device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__:
            return _indexed(*args)
        if func is Tensor.__setitem__:
            target, index, value = args
            return torch.ops.aten.copy_(_indexed(target, index), value)
        if func is Tensor.copy_:
            return torch.ops.aten.copy_(*args)
        if func is Tensor.__invert__:
            return torch.bitwise_not(*args)
        return func(*args, **(kwargs or {}))


def _indexed(x: Tensor, index: Any) -> Tensor:
    """``x[index]`` for slices, numbers, None, an ellipsis and tensors of indices."""
    parts = list(index) if isinstance(index, tuple) else [index]
    consumed = sum(part is not None and part is not Ellipsis for part in parts)
    place = next((place for place, part in enumerate(parts) if part is Ellipsis), len(parts))
    parts[place : place + 1] = [slice(None)] * (x.dim() - consumed)
    axis = 0
    tensors: list[Tensor | None] = []
    for part in parts:
        if part is None:
            x = x.unsqueeze(axis)
        elif isinstance(part, slice):
            x = torch.ops.aten.slice(x, axis, part.start, part.stop, part.step or 1)
        elif isinstance(part, Tensor):
            tensors += [None] * (axis - len(tensors)) + [part]
        else:
            x = torch.ops.aten.select(x, axis, int(part))
            continue
        axis += 1
    return torch.ops.aten.index(x, tensors) if tensors else x


@contextmanager
def fake_gpu() -> Iterator[None]:
    """A block whose tensors are fake."""
    with torch._dynamo.config.patch(fake_tensor_cache_enabled=True):  # layers and steps repeat the same shapes
        mode = FakeTensorMode()
    with mode, _Indexing(), torch.no_grad(), using("torch"):
        yield


def on_fake_gpu(sim: TintForCausalLM) -> TintForCausalLM:
    """A simulator of the same program whose parameters are on a GPU that is not there; called in `fake_gpu`'s block."""
    with torch.device("meta"):
        other = TintForCausalLM(sim.config)
    like = dict(sim.named_parameters())
    for name, _ in list(other.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        tensor = torch.empty(like[name].shape, dtype=like[name].dtype, device=GPU)
        setattr(other.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
    other.executor = "fused"
    return other


def fake_inputs(inputs: Inputs) -> Inputs:
    """Inputs of the same shapes on a GPU that is not there, with what was known of their values."""
    fakes = {name: torch.empty(t.shape, dtype=t.dtype, device=GPU) for name, t in inputs.tensors().items()}
    return Inputs(**fakes, kept=inputs.kept).knowing(inputs.plain, inputs.only_padding)
