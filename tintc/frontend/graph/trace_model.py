"""`capture`: a decoder as an FX graph, by `torch.export`.

Export is called with token ids alone, batch and length symbolic. What the graph then computes for positions and masks
is recognised by evaluating it (`CapturedGraph.evaluate`), so that both become inputs of the program.
"""

from __future__ import annotations

import io
import logging
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node
from torch.fx import config as fx_config
from transformers import masking_utils

from tintc.errors import ModelError, UnsupportedModelError
from tintc.frontend.graph.calling import called_on_ids, longest_sequence, text_config, text_decoder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.captured_experts import fill_in, opaque_experts
from tintc.frontend.graph.dense_experts import with_dense_experts
from tintc.frontend.graph.functionalize import NeedsRetracing, functionalize, is_inplace
from tintc.frontend.graph.multihead import batch_in_front
from tintc.frontend.graph.obstacle_words import EXPERTS, LOOPED_EXPERTS, TOKEN_LOOP
from tintc.frontend.graph.obstacles import obstacle_of_sizes
from tintc.frontend.mixers.ops import fill_in as fill_in_mixers
from tintc.frontend.mixers.registry import mixers_as_nodes
from tintc.frontend.source.adapters import adapter_parameters

LONGEST = 2048
"""Masks and rotary tables are checked up to this length unless a longer one is asked for."""
PROCESS_LOCK = threading.RLock()
"""Held while settings of the whole process are others: loggers, warnings, standard error, functions of transformers."""
TRACERS = ("torch.export", "torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")
"""Loggers that print what they were at when tracing fails."""


def capture(model: nn.Module, max_length: int | None = None, name: str | None = None) -> CapturedGraph:
    """Return the model's graph, logits from token ids; the model itself is left as it was.

    max_length: longest sequence the result must serve (None: the configuration's, at most 2048). Raises `ModelError` if
    `torch.export` cannot trace the model, an `UnsupportedModelError` where the kind of layer is known. One thread at a
    time captures; others wait.
    """
    name = name or type(model).__name__
    limit = max_length or min(longest_sequence(text_config(model)) or LONGEST, LONGEST)
    device = next(model.parameters()).device
    ids = torch.ones(2, max(2, min(7, limit)), dtype=torch.long, device=device)
    was_training = model.training
    with ExitStack() as stack:
        stack.enter_context(PROCESS_LOCK)
        for context in (torch.no_grad(), _without_packing(), without_cache(model), _preserved(model), _quiet()):
            stack.enter_context(context)
        stack.enter_context(_without_stacks())
        stack.enter_context(opaque_experts(model))
        stack.enter_context(mixers_as_nodes(model))
        try:
            model.eval()
            exported = _export(model, ids)
        except Exception as error:
            raise _refusal(model, name, ids, error) from error
        finally:
            model.train(was_training)
        fill_in(model, exported.graph, name)
        fill_in_mixers(exported.graph)
        return with_dense_experts(_describe(model, exported, name, limit))


def _export(model: nn.Module, ids: Tensor) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    with called_on_ids(model), batch_in_front(model):
        exported = torch.export.export(model, (ids,), strict=False, dynamic_shapes=shapes)
    if not any(map(is_inplace, exported.graph.nodes)):
        return exported
    try:
        exported.graph_module.graph = functionalize(exported.graph)
    except NeedsRetracing:
        return exported.run_decompositions({})
    return exported


def _describe(model: nn.Module, exported: torch.export.ExportedProgram, name: str, limit: int) -> CapturedGraph:
    tensors, aliases = _canonical(model)
    names: dict[Node, str] = {}
    placeholders = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    input_ids: Node | None = None
    for spec in exported.graph_signature.input_specs:
        node = placeholders[getattr(spec.arg, "name", "")]
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target is not None:
            names[node] = aliases[spec.target]
        elif spec.kind is InputKind.CONSTANT_TENSOR and spec.target is not None:
            names[node] = f"constant.captured.{spec.target}"
            tensors[names[node]] = cast(Tensor, exported.constants[spec.target])
        elif input_ids is None:
            input_ids = node
    (output,) = [node for node in exported.graph.nodes if node.op == "output"]
    kinds = [spec.kind for spec in exported.graph_signature.output_specs]
    logits = output.args[0][kinds.index(OutputKind.USER_OUTPUT)]  # behind what the model writes into its own buffers
    assert input_ids is not None
    trained = frozenset(aliases[key] for key, _ in model.named_parameters(remove_duplicate=False))
    adapters = frozenset(aliases[key] for key in adapter_parameters(model))
    return CapturedGraph(
        name, exported.graph_module, input_ids, logits, tensors, names, aliases, trained, limit, adapters=adapters
    )


def _canonical(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors under one name each, and for every name that one; tied tensors share their storage."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    first: dict[Any, str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for key, tensor in named:
        identity = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) if tensor.numel() else key
        aliases[key] = first.setdefault(identity, key)
        tensors.setdefault(aliases[key], tensor.detach())
    return tensors, aliases


@contextmanager
def _without_packing() -> Iterator[None]:
    """Leave out transformers' detection of packed sequences, which reads data and changes nothing here."""
    original = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda *args, **kwargs: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = original


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Run without key/value cache: some models take `use_cache` from their configuration alone."""
    parts = [model, text_decoder(model)]
    configs = [text_config(model), *(getattr(part, "config", None) for part in parts)]
    configs = [config for config in configs if getattr(config, "use_cache", None) is not None]
    kept = [config.use_cache for config in configs]
    for config in configs:
        config.use_cache = False
    try:
        yield
    finally:
        for config, value in zip(configs, kept, strict=True):
            config.use_cache = value


@contextmanager
def _preserved(model: nn.Module) -> Iterator[None]:
    """Put back buffers and tensor attributes that tracing replaces by fake tensors (phi3's longrope)."""
    kept = [(module, dict(module._buffers), _tensor_attributes(module)) for module in model.modules()]
    try:
        yield
    finally:
        for module, buffers, attributes in kept:
            module._buffers.update(buffers)
            module.__dict__.update(attributes)


def _tensor_attributes(module: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in vars(module).items() if isinstance(value, Tensor)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop the warnings of torch's tracer, which are about its internals, and the graph that it prints if it fails."""
    loggers = [logging.getLogger(name) for name in TRACERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _without_stacks() -> Iterator[None]:
    """Have tracing record no stack of calls for every node, which nothing reads and takes a fifth of the time. Torch
    2.11 has no such switch."""
    if not hasattr(fx_config, NO_STACKS):
        yield
        return
    kept = getattr(fx_config, NO_STACKS)
    setattr(fx_config, NO_STACKS, True)
    try:
        yield
    finally:
        setattr(fx_config, NO_STACKS, kept)


NO_STACKS = "do_not_emit_stack_traces"
"""Name of torch's switch."""


LENGTH_CHANGES = "Constraints violated"
"""Beginning of torch's message about a model whose graph is another for another batch size or length."""


DEPENDS_ON_TOKENS = "Could not guard on data-dependent"
"""Beginning of torch's message about sizes that depend on what the tokens are."""
ADVICE = {
    LOOPED_EXPERTS: "it reads experts that transformers' interface for experts computes, and dense products with all",
}
"""What is supported in the place of an obstacle."""


def _own_failure(model: nn.Module, ids: Tensor) -> str:
    """Return why the model itself does not run on token ids, without being traced; empty if it does."""
    try:
        with called_on_ids(model):
            model(ids)
    except Exception as error:
        return f"it does not run on token ids alone ({type(error).__name__}: {_first_line(error)})"
    return ""


def _first_line(error: Exception) -> str:
    message = str(error).strip() or "no message"
    return message.splitlines()[0].rstrip(".")


def _refusal(model: nn.Module, name: str, ids: Tensor, error: Exception) -> ModelError:
    """Return what to raise for a model that has no graph: in words where torch's own would not help."""
    failure = _own_failure(model, ids)
    first = _first_line(error)
    if failure:
        first = failure
    elif any("grouped_mm" in frame.name for frame in traceback.extract_tb(error.__traceback__)):
        return UnsupportedModelError(name, (), (EXPERTS,))
    elif first.startswith(LENGTH_CHANGES):
        advice = "which operations it runs depends on the length of the text, and a simulator has one graph for all"
        return UnsupportedModelError(name, (), (TOKEN_LOOP,), advice)
    elif first.startswith(DEPENDS_ON_TOKENS):
        obstacle = obstacle_of_sizes(model)
        return UnsupportedModelError(name, (), (obstacle,), ADVICE.get(obstacle, ""))
    else:
        first = f"torch.export fails with {type(error).__name__}: {first}"
    return ModelError(f"{name} cannot be captured, choose another model or configuration: {first}.")
