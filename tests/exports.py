"""Exports shared by all tests of a process: `torch.export` is most of a compilation, and few models are compiled.

Two models share an export if nothing that tracing reads tells them apart: classes and their functions, configuration,
numbers and flags of every module, shapes and ties of tensors, and the data of tensors that are no parameters. Weights
are inputs of an exported graph, so that each model keeps its own. Code that tests write themselves is always traced.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, masking_utils

from tintc.frontend.graph import trace_model

Export = Callable[[nn.Module, Tensor], Any]
KEPT: dict[Hashable, Any] = {}
"""Exports by what they were traced from."""
SIMPLE = (bool, int, float, str, type(None))
UNREAD = ("_name_or_path", "architectures", "name_or_path", "_is_hf_initialized", "_use_kernels")
"""Entries of a configuration, and attributes of modules, that say where a model comes from."""
REPLACED = "find_packed_sequence_indices"
"""What `capture` itself replaces in transformers, by another function each time."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks")


EXPORT = trace_model._export


@contextmanager
def shared_exports() -> Iterator[None]:
    """Trace each kind of model once while this lasts."""
    with replaced(shared(EXPORT)):
        yield


@contextmanager
def fresh_exports() -> Iterator[None]:
    """Trace every model while this lasts."""
    with replaced(EXPORT):
        yield


@contextmanager
def replaced(export: Export) -> Iterator[None]:
    before = trace_model._export
    trace_model._export = export
    try:
        yield
    finally:
        trace_model._export = before


def shared(export: Export) -> Export:
    """Return `export` that traces a model only if none like it was traced before."""

    def look(model: nn.Module, ids: Tensor) -> Any:
        if not comes_with_transformers(model):
            return export(model, ids)
        key = key_of(model, ids)
        if key not in KEPT:
            KEPT[key] = without_weights(export(model, ids))
        return KEPT[key]

    return look


def comes_with_transformers(model: nn.Module) -> bool:
    if not isinstance(model, PreTrainedModel):
        return False
    return all(type(module).__module__.startswith(("transformers.", "torch.nn.")) for module in model.modules())


def without_weights(exported: Any) -> Any:
    """Return what `capture` reads of an export, without the weights of the model that was traced."""
    names = ("graph", "graph_module", "graph_signature", "constants")
    return SimpleNamespace(**{name: getattr(exported, name) for name in names})


def key_of(model: nn.Module, ids: Tensor) -> Hashable:
    """Return all that tracing reads of a model, and the code that it runs."""
    assert isinstance(model, PreTrainedModel)
    config: Any = model.config
    described = {name: value for name, value in config.to_dict().items() if name not in UNREAD}
    described["dtype"] = str(model.dtype)
    settings = (json.dumps(described, sort_keys=True, default=str), config._attn_implementation, ids.shape, ids.device)
    modules = tuple((name, *about(module)) for name, module in model.named_modules())
    return torch.get_default_dtype(), settings, modules, tensors(model), code(model)


def about(module: nn.Module) -> tuple[Hashable, ...]:
    """Return the module's class, hooks, and what it holds beside tensors and modules."""
    named = {key: value for key, value in vars(module).items() if key not in UNREAD}
    own = tuple((key, plain(value)) for key, value in named.items() if isinstance(value, SIMPLE) or callable(value))
    data = tuple((key, digest(value)) for key, value in vars(module).items() if isinstance(value, Tensor))
    hooks = tuple(tuple(getattr(module, name).values()) for name in HOOKS)
    return type(module), own, data, hooks


def plain(value: Any) -> Hashable:
    """Return what a function with arguments of its own is made of, for two alike are not equal."""
    if isinstance(value, partial):
        return value.func, value.args, tuple(sorted(value.keywords.items()))
    return value


def code(model: nn.Module) -> tuple[Hashable, ...]:
    """Return the functions of the model's classes, and those beside them: one that a test has patched is another.

    They are kept with the export, so that no other takes the place of one in memory.
    """
    classes = dict.fromkeys(one for module in model.modules() for one in type(module).__mro__)
    files = dict.fromkeys([masking_utils.__name__, *(type(module).__module__ for module in model.modules())])
    spaces = [*map(vars, classes), *(vars(sys.modules[name]) for name in files)]
    found = (item for space in spaces for item in space.items())
    return tuple(value for name, value in found if isinstance(value, FunctionType) and name != REPLACED)


def tensors(model: nn.Module) -> tuple[Hashable, ...]:
    """Return names and kinds of parameters and buffers, which of them are tied, and what buffers hold."""
    first: dict[Hashable, str] = {}
    found: list[Hashable] = []
    for name, tensor in model.named_parameters(remove_duplicate=False):
        kind = (tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad)
        ties = (first.setdefault(id(tensor), name), first.setdefault((tensor.data_ptr(), *kind), name))
        found.append((name, ties, *kind))
    for name, tensor in model.named_buffers(remove_duplicate=False):
        found.append((name, digest(tensor)))
    return tuple(found)


def digest(tensor: Tensor) -> Hashable:
    if tensor.is_meta:
        return tensor.shape, tensor.dtype
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return tensor.shape, tensor.dtype, tensor.device, hashlib.sha256(data).hexdigest()
