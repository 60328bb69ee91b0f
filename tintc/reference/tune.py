"""`tune`: fine-tuning written out, on a captured graph, with the approximations one asks for.

    logits before  <- the model
    N times:          loss over the train tokens; gradients; p <- p - lr * gradient, of the parameters that descend
    logits after   <- the model with the new parameters

Every text of a batch is trained and run on its own: a simulator keeps updated weights per example.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from tintc.errors import InputError, OptionError
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.source.kinds import is_registered
from tintc.frontend.source.load import load_auxiliary
from tintc.frontend.source.modules import find_length
from tintc.ir.inputs import check_ids
from tintc.keywords import known_keywords
from tintc.option_facts import LOSSES, steps
from tintc.reference.approximations import Approximations
from tintc.reference.optimisers import Steps
from tintc.reference.padded import mixes_by_state, padding_vectors
from tintc.reference.tuning import Tensors, Text, TunedRow, Tuning


@dataclass(frozen=True)
class Tuned:
    """What `tune` found, by the names that a simulator's output has.

    logits_before, logits: ``[B, T, V]``, of the model and of what it was tuned to (`before` and `after` are their old
    names); gradients: for every step, the gradient of its summed loss (in a plain step, the update
    over minus the learning rate) of each parameter that descends, by its name in the model, ``[B, *shape]``; rows of a
    tensor that do not descend are zero; losses ``[N, B]``: the summed loss in which each step begins.
    """

    logits_before: Tensor
    logits: Tensor
    gradients: tuple[Tensors, ...]
    losses: Tensor

    @property
    def before(self) -> Tensor:
        """Return `logits_before`; warn."""
        return self._renamed("before", "logits_before")

    @property
    def after(self) -> Tensor:
        """Return `logits`; warn."""
        return self._renamed("after", "logits")

    def _renamed(self, old: str, new: str) -> Tensor:
        warnings.warn(f"Tuned.{old} is called {new} now, as in a simulator's output.", DeprecationWarning, stacklevel=3)
        return getattr(self, new)


@known_keywords
def tune(
    model: nn.Module | CapturedGraph | str | os.PathLike[str],
    input_ids: Tensor,
    train_mask: Tensor | None = None,
    *,
    loss_mask: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    inner_lr: float = 1e-4,
    n_steps: int = 1,
    n_update_layers: int | None = None,
    loss: str = "ce",
    semantics: str = "exact",
    approximations: Approximations | None = None,
    dtype: torch.dtype = torch.float64,
    optimizer: str = "sgd",
    normalize: str | None = None,
    momentum: float | None = None,
    decay: float = 0.0,
) -> Tuned:
    """Fine-tune a decoder on the train tokens of each text, and predict with the result; the model stays as it was.

    model: a transformers model, its folder, GGUF file or hub id, a module that makes logits of token ids, or what
    `capture` made of one (whose short convolutions read padding as zeros); input_ids ``[B, T]``; train_mask ``[B, T]``
    or, for different tokens in each step, ``[N, B, T]``, non-zero is true (None: the first half of the tokens of each
    text that are not padding, as a simulator takes unless told otherwise); loss_mask ``[B, T]`` over target tokens;
    attention_mask ``[B, T]`` (padding, which is not trained on either) or ``[B, T, T]`` (who may see whom, besides
    causality); position_ids ``[B, T]``, less than T (None: counting tokens that are not padding); n_update_layers: top
    layers that descend (None: all, and embeddings and head too where `approximations` name no groups); loss ``ce``,
    ``quad`` or ``mse`` (Remark H.2), summed over
    tokens; semantics: ``exact`` counts position i if tokens i and i + 1 are train tokens, ``paper-code`` if i + 1 is;
    approximations None: those of a simulator with these semantics; optimizer, normalize, momentum, decay: as for
    `tintc.compile`. With fewer than two train tokens nothing is trained.

    Raises `OptionError` and `InputError` for what does not fit, `UnsupportedModelError` if an approximation needs to
    know the graph's parts and they are not recognised.
    """
    _check(loss, n_steps, inner_lr)
    steps = Steps(optimizer, normalize, momentum, decay).checked()
    check_ids(input_ids)
    own, graph = _captured(model)
    if approximations is None:
        approximations = Approximations.of(semantics)
    valid, sees, positions = _placed(input_ids, attention_mask, position_ids)
    if train_mask is None:
        train_mask = first_half(valid)
    train = _masks(train_mask, valid, n_steps)
    loss_positions = _loss_positions(train, loss_mask, input_ids, semantics)
    tuning = Tuning(graph, approximations, n_update_layers, loss, dtype, steps)
    if own is not None and not bool(valid.all()) and mixes_by_state(graph):
        tuning.padding = padding_vectors(own, graph, tuning.recognised(), input_ids.shape[1])
    rows: list[TunedRow] = []
    for index, ids in enumerate(input_ids.to(graph.input_ids.meta["val"].device)):
        given = (train[:, index], loss_positions[:, index], valid[index], sees[index], positions[index])
        rows.append(tuning.run(Text(ids, *given), inner_lr))
    return _batched(rows)


def _captured(model: nn.Module | CapturedGraph | str | os.PathLike[str]) -> tuple[nn.Module | None, CapturedGraph]:
    """Return the model, None of a captured one, and its graph."""
    if isinstance(model, CapturedGraph):
        return None, model
    if isinstance(model, nn.Module):
        return model, capture(model, _length(model))
    loaded = load_auxiliary(model, with_tokenizer=False).model
    return loaded, capture(loaded)


def _batched(rows: Sequence[TunedRow]) -> Tuned:
    """Return what was tuned on each text, as one."""
    gradients = tuple(
        {name: torch.stack([row.gradients[n][name] for row in rows]) for name in step}
        for n, step in enumerate(rows[0].gradients)
    )
    before = torch.stack([row.before for row in rows])
    after = torch.stack([row.after for row in rows])
    return Tuned(before, after, gradients, torch.stack([row.losses for row in rows], 1))


def _length(model: nn.Module) -> int | None:
    """Return the longest text that a module outside transformers takes; None for others, whose configuration says."""
    if is_registered(model):
        return None
    return find_length(model, type(model).__name__, None)


def _check(loss: str, n_steps: Any, inner_lr: Any) -> None:
    if loss not in LOSSES:
        raise OptionError(f"The loss {loss!r} is unknown; choose one of {', '.join(LOSSES)}.")
    objection = steps(n_steps)
    if objection is not None:
        raise OptionError(f"The option n_steps is {n_steps}; {objection}.")
    if isinstance(inner_lr, Tensor) and inner_lr.numel() == 1:
        inner_lr = float(inner_lr)
    if not isinstance(inner_lr, Real):
        raise OptionError(
            f"inner_lr is {inner_lr!r}; tune takes one number, for every step and text: call it once for each rate."
        )
    if not (math.isfinite(inner_lr) and float(inner_lr) >= 0):
        raise OptionError(f"The learning rate is {inner_lr}; it must be a finite number, zero or more.")


def _placed(
    ids: Tensor, mask: Tensor | None, positions: Tensor | None
) -> tuple[Tensor, Sequence[Tensor | None], Sequence[Tensor | None]]:
    """Return the tokens that are not padding, masks and positions.

    ``[B, T]`` bool, and for each text who sees whom ``[T, T]`` and positions ``[T]``, None where the graph's own hold.
    """
    valid = torch.ones(ids.shape, dtype=torch.bool)
    if positions is not None and positions.shape != ids.shape:
        raise InputError(f"position_ids has shape {tuple(positions.shape)}; it must have that of input_ids.")
    sees = mask
    if mask is not None and mask.shape == ids.shape:
        valid = mask != 0
        sees = valid[:, None, :].expand(*ids.shape, ids.shape[1])
        if positions is None:
            positions = (valid.long().cumsum(1) - 1).clamp(min=0)
    elif mask is not None and mask.shape != (*ids.shape, ids.shape[-1]):
        raise InputError(
            f"attention_mask has shape {tuple(mask.shape)}; it must be that of input_ids, or "
            f"{(*ids.shape, ids.shape[-1])}."
        )
    own_sees: Sequence[Tensor | None] = [None] * len(ids)
    own_positions: Sequence[Tensor | None] = own_sees
    if sees is not None:
        own_sees = list(sees != 0)
    if positions is not None:
        own_positions = list(positions)
    return valid, own_sees, own_positions


def first_half(valid: Tensor) -> Tensor:
    """Return the first half, rounded down, of every text's tokens that are not padding: ``[B, T]`` bool of the same."""
    return valid & (valid.long().cumsum(-1) <= valid.sum(-1, keepdim=True) // 2)


def _masks(mask: Tensor, valid: Tensor, n_steps: int) -> Tensor:
    """Return the train mask as ``[N, B, T]`` bool, without padding; rows of fewer than two train tokens are emptied."""
    if valid.dim() != 2 or mask.shape not in (valid.shape, (n_steps, *valid.shape)):
        raise InputError(
            f"input_ids {tuple(valid.shape)} and train_mask {tuple(mask.shape)} do not fit; pass [B, T] and [B, T], or "
            f"[{n_steps}, B, T]."
        )
    train = (mask != 0).expand(n_steps, *valid.shape) & valid
    return train & (train.sum(-1, keepdim=True) >= 2)


def _loss_positions(train: Tensor, loss_mask: Tensor | None, ids: Tensor, semantics: str) -> Tensor:
    """Return the positions whose loss counts, ``[N, B, T]``; the last one never does, for want of a target."""
    target = train
    if loss_mask is not None:
        target = train & (loss_mask != 0).expand_as(ids)
    positions = torch.zeros_like(train)
    positions[..., :-1] = target[..., 1:]
    if semantics != "paper-code":
        positions[..., :-1] &= train[..., :-1]
    return positions
