"""Decoders outside transformers: any module that makes logits of token ids.

What transformers reads in a configuration is found here by running the module: how many token ids there are, how long a
text may be, and whether its forward leaves padding out.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tintc.errors import ModelError, OptionError
from tintc.frontend.graph.calling import (
    called_on_ids,
    logits_of,
    longest_sequence,
    needed_besides,
    needed_positions,
    text_config,
)
from tintc.frontend.graph.trace_model import LONGEST
from tintc.frontend.source.kinds import held_model

HONOURED = "left out by its forward, by attention_mask"
LEFT_OUT = "left out by the simulator; its forward knows of none"
"""What becomes of padding in a text, as provenance says it."""
PADDING = "padding"
"""Key of the provenance's entry that says so."""
PROBE_LENGTH = 6
"""Tokens of the text on which padding is tried."""
TRIED = 1e-4
"""Largest relative difference of logits of a text that is padded and alone, for a forward that leaves padding out."""


def count_ids(model: nn.Module, name: str, vocab_size: int | None) -> int:
    """Return V, the number of token ids, which is that of the logits at a token.

    vocab_size: what the caller says it is (None: not said). Raises `ModelError` for a module that cannot be run on ids
    or gives something else than logits ``[B, T, V]``, and `OptionError` if they are not so many.
    """
    needed = needed_besides(model)
    if needed:
        raise ModelError(
            f"{name} cannot be run on token ids alone: its forward also needs {' and '.join(needed)}; give these "
            "defaults, or pass a module that fills them in."
        )
    try:
        logits = run_on_ids(model, torch.zeros(2, 3, dtype=torch.long))
    except ModelError as error:
        raise ModelError(f"{name} gives no logits: {error}.") from error
    except Exception as error:  # whatever a stranger's forward raises
        held = held_model(model)
        if held is not None:
            place, decoder = held
            raise ModelError(
                f"{name} is a torch module that holds a transformers model, {type(decoder).__name__}, in its attribute "
                f"{place}; pass that (get_submodule({place!r}))."
            ) from error
        raise ModelError(
            f"{name} cannot be run on token ids [2, 3] ({_told(error)}); pass a module that maps ids [B, T] to logits "
            "[B, T, V]."
        ) from error
    shape = list(logits.shape)
    if logits.dim() == 3 and shape[:2] == [2, 1]:
        raise ModelError(
            f"{name} gives logits of the last token alone, {shape} for ids [2, 3]; make its forward return those of "
            "every token."
        )
    if logits.dim() != 3 or shape[:2] != [2, 3] or not logits.is_floating_point():
        raise ModelError(f"{name} gives {shape} for ids [2, 3]; pass a module that gives logits [B, T, V].")
    if vocab_size not in (None, shape[2]):
        raise OptionError(f"The vocab_size is {vocab_size}, and {name} gives logits of {shape[2]} ids; pass that.")
    return shape[2]


def find_length(model: nn.Module, name: str, wanted: int | None) -> int:
    """Return the longest text that a simulator is to serve: as wanted, or what the module's configuration says, or what
    it can be run on, at most `LONGEST` tokens.

    Raises `OptionError` if it cannot be run on as many as are wanted.
    """
    if wanted is not None:
        problem = _too_long(model, wanted)
        if wanted < 2 or problem:
            raise OptionError(
                f"The maximal length is {wanted}, and {name} cannot be run on as many tokens ({problem or 'too few'}); "
                "pass a max_length that it takes."
            )
        return wanted
    said = longest_sequence(text_config(model)) or longest_sequence(model) or LONGEST
    longest = min(said, LONGEST)
    if not _too_long(model, longest):
        return longest
    runs, fails = 2, longest
    while fails - runs > 1:
        middle = (runs + fails) // 2
        if _too_long(model, middle):
            fails = middle
        else:
            runs = middle
    return runs


def padding_of(model: nn.Module) -> str:
    """Return what becomes of padding: `HONOURED` if the forward leaves it out on either side, else `LEFT_OUT`."""
    if "attention_mask" not in inspect.signature(model.forward).parameters or needed_positions(model):
        return LEFT_OUT
    ids = (torch.arange(PROBE_LENGTH) % 2).expand(2, -1).to(_device(model))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    mask[1, -2:] = 0
    try:
        with _evaluating(model):
            padded = logits_of(model(ids, attention_mask=mask))
            alone = [run_on_ids(model, row[real.bool()][None])[0] for row, real in zip(ids, mask, strict=True)]
    except Exception:  # a mask of another shape or meaning
        return LEFT_OUT
    rows = zip(padded, mask, alone, strict=True)
    if all(float((row[real.bool()] - right).norm()) <= TRIED * float(right.norm()) for row, real, right in rows):
        return HONOURED
    return LEFT_OUT


def run_on_ids(model: nn.Module, ids: Tensor) -> Tensor:
    """Return the module's own logits ``[B, T, V]`` for token ids ``[B, T]``."""
    with _evaluating(model), called_on_ids(model):
        return model(ids.to(_device(model)))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _too_long(model: nn.Module, length: int) -> str:
    """Return why the module cannot be run on a text of that length; empty if it can."""
    try:
        run_on_ids(model, torch.zeros(1, length, dtype=torch.long))
    except Exception as error:  # an index out of range, an assertion, shapes that do not fit
        return _told(error)
    return ""


def _told(error: Exception) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}"


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
