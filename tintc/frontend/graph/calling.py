"""How a model is called on token ids alone, whatever else its forward takes and in whatever form it gives logits.

A *wrapper* is a transformers model of text and something else, such as images, with a decoder of text inside. Its text
path is that decoder on token ids, with whatever the wrapper makes of the decoder's output.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tintc.errors import ModelError

POSITIONS = ("position_ids", "positions")
"""Names of arguments that hold a token's place in its text."""
LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_target_positions")
"""Names of a configuration's entries that say how many positions a model has."""
OTHER_LENGTHS = ("block_size", "context_length", "max_seq_length", "seq_len")
"""The same where transformers has no part in it."""


def longest_sequence(config: Any) -> int | None:
    """Return the number of positions a configuration names, under any of its names; None if it names none."""
    for key in (*LENGTHS, *OTHER_LENGTHS):
        value = getattr(config, key, None)
        if isinstance(config, dict):
            value = config.get(key)
        if isinstance(value, int) and value > 0:
            return value
    return None


def text_config(model: nn.Module) -> Any:
    """Return the configuration of a model's text part: its own, or None, where it is no model of transformers'."""
    config = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        return config.get_text_config()  # pyright: ignore[reportOptionalMemberAccess]
    return config


def text_decoder(model: nn.Module) -> nn.Module | None:
    """Return the decoder of text inside a wrapper; None for a model that is no wrapper."""
    if not isinstance(model, PreTrainedModel) or text_config(model) is model.config:
        return None
    decoder = model.get_decoder()
    if decoder in (None, model, model.base_model) or "input_ids" not in inspect.signature(decoder.forward).parameters:
        return None
    return decoder


@contextmanager
def called_on_ids(model: nn.Module) -> Iterator[None]:
    """Let ``model(ids)`` return logits ``[B, T, V]`` from token ids ``[B, T]`` alone, without a cache.

    The decoder of a wrapper then gets the ids, with neither embeddings nor masks nor positions of the wrapper's.
    """
    own = _on_ids(model)
    decoder = text_decoder(model)

    def forward(input_ids: Tensor) -> Tensor:
        if decoder is None:
            return logits_of(own(input_ids))
        of_decoder = _on_ids(decoder)
        with replaced(decoder, lambda *_, return_dict=None, **__: of_decoder(input_ids, return_dict)):
            return logits_of(own(input_ids))

    with replaced(model, forward):
        yield


def ids_argument(model: nn.Module) -> str:
    """Return the name of the argument that takes token ids: `input_ids`, or the first of another name."""
    parameters = inspect.signature(model.forward).parameters
    if "input_ids" in parameters or not parameters:
        return "input_ids"
    return next(iter(parameters))


def needed_positions(model: nn.Module) -> str | None:
    """Return the name of the argument by which a forward must be told positions; None if it counts by itself."""
    return next((name for name in _needed(model) if name in POSITIONS), None)


def needed_besides(model: nn.Module) -> list[str]:
    """Return the arguments besides ids and positions that a forward has no defaults for."""
    return [name for name in _needed(model) if name not in (ids_argument(model), needed_positions(model))]


def _needed(model: nn.Module) -> list[str]:
    """Return the arguments that a forward has no defaults for."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return [one.name for one in parameters if one.default is inspect.Parameter.empty and one.kind not in several]


def logits_of(output: Any) -> Tensor:
    """Return the logits in what a model gives: the tensor itself, a tuple's first, or the attribute `logits`.

    Raises `ModelError` if there are none.
    """
    if isinstance(output, tuple) and output and not hasattr(output, "logits"):
        output = output[0]
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        raise ModelError(
            f"what it gives is a {type(output).__name__}, and not a tensor, a tuple that begins with one, or an object "
            "with logits"
        )
    return logits


def _on_ids(model: nn.Module) -> Callable[..., Any]:
    """Return the model's forward as it is now, as a function of token ids.

    It runs without a cache, and is told positions if it must be: ``[T]``, or ``[B, T]`` where those do not do.
    """
    original = model.forward
    parameters = inspect.signature(original).parameters
    ids_name = ids_argument(model)
    positions_name = needed_positions(model)
    fixed: dict[str, Any] = {}
    if "use_cache" in parameters:
        fixed["use_cache"] = False

    def forward(input_ids: Tensor, return_dict: bool | None = None) -> Any:
        arguments = fixed | {ids_name: input_ids}
        if return_dict is not None and "return_dict" in parameters:
            arguments["return_dict"] = return_dict
        if positions_name is None:
            return original(**arguments)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        try:
            return original(**arguments, **{positions_name: positions})
        except (RuntimeError, IndexError, ValueError):
            return original(**arguments, **{positions_name: positions.expand(input_ids.shape)})

    return forward


@contextmanager
def replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Give a module another forward for a time. It may have one of its own, that is not its class's."""
    kept = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if kept is not None:
            module.forward = kept
