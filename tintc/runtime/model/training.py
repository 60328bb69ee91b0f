"""Training a simulator from outside: the loss of its labels, and the parameters that an optimiser gets."""

from __future__ import annotations

import warnings
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from tintc.errors import InputError, OptionError
from tintc.ir.functions import at_least_fp32
from tintc.ir.inputs import matching
from tintc.runtime.model.structure import StructuralModel

KINDS = ("tables", "prefixes", "rates", "score_vectors", "structure")
"""Kinds of parameters, which are the first parts of their names."""


def next_token_loss(
    logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None, shifted: bool = False
) -> Tensor:
    """Return the mean cross-entropy of every label under the logits of the position before it; -100 is ignored.

    logits ``[B, T, V]``, labels ``[B, T]``; shifted: whether each label stands at the position before it already.
    num_items_in_batch: what the sum is divided by in place of the number of labels; `Trainer` passes it where it
    accumulates gradients.
    """
    if not shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    scores, targets = at_least_fp32(logits.flatten(0, 1)), labels.flatten().long()
    if num_items_in_batch is None:
        return F.cross_entropy(scores, targets, ignore_index=-100)
    count = torch.as_tensor(num_items_in_batch, device=scores.device)
    return F.cross_entropy(scores, targets, ignore_index=-100, reduction="sum") / count


def labels_loss(
    logits: Tensor,
    labels: Tensor | None,
    shift_labels: Tensor | None,
    num_items_in_batch: Tensor | int | None,
    kept: int,
) -> Tensor | None:
    """Return the loss of a forward pass's labels, as `next_token_loss`; None without any.

    shift_labels: labels that stand at the position before theirs, which go before `labels`; kept: of how many last
    tokens the logits are (0: of all). Raises `InputError` for labels of another shape than the logits'.
    """
    shifted = shift_labels is not None
    if shifted:
        labels = shift_labels
    if labels is None:
        return None
    shape = tuple(logits.shape[:2])
    if kept and isinstance(labels, Tensor) and labels.shape != shape:
        raise InputError(
            f"labels has shape {tuple(labels.shape)}; with logits_to_keep it must be that of the logits, {shape}: pass "
            "the labels of the kept tokens, or leave logits_to_keep out."
        )
    targets = matching("labels", labels, shape, logits.device)
    return next_token_loss(logits, targets, num_items_in_batch, shifted)


class TrainableModel(StructuralModel):
    """The part of `TintForCausalLM` that training it from outside needs."""

    accepts_loss_kwargs = True
    """Read by `Trainer`: `forward` takes `num_items_in_batch`."""

    def trainable(self, *kinds: str) -> Self:
        """Have parameters of these kinds trained, and no others: the rest require no gradients.

        kinds: of ``tables`` (embeddings and head), ``prefixes`` (the auxiliary's weights), ``rates``, ``score_vectors``
        (rotary frequencies and the like) and ``structure``; none given: all. A simulator begins with all but
        ``structure``, whose gradients only literal execution gives. Raises `OptionError` for kinds that are unknown.
        """
        if "rotary" in kinds:
            warnings.warn("The kind 'rotary' is called 'score_vectors' now.", DeprecationWarning, stacklevel=2)
            kinds = tuple("score_vectors" if kind == "rotary" else kind for kind in kinds)
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise OptionError(f"The kind of parameters {unknown[0]!r} is unknown; choose of {', '.join(KINDS)}.")
        chosen = kinds or KINDS
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.partition(".")[0] in chosen)
        return self
