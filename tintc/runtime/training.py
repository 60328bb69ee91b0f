"""Training a simulator from outside: the loss of its labels, and which of its parameters an optimiser is given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from tintc.errors import OptionError
from tintc.ir.functions import at_least_fp32
from tintc.runtime.structural import StructuralModel

KINDS = ("tables", "prefixes", "rates", "rotary", "structure")
"""Kinds of parameters, which are the first parts of their names."""


def next_token_loss(
    logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None, shifted: bool = False
) -> Tensor:
    """Mean cross-entropy of every label under the logits of the position before it; -100 is ignored.

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


class TrainableModel(StructuralModel):
    """The part of `TintForCausalLM` that training it from outside needs."""

    accepts_loss_kwargs = True
    """Read by `Trainer`: `forward` takes `num_items_in_batch`."""

    def trainable(self, *kinds: str) -> Self:
        """Have parameters of these kinds trained, and no others: the rest require no gradients.

        kinds: of ``tables`` (embeddings and head), ``prefixes`` (the auxiliary's weights), ``rates``, ``rotary``
        (frequencies) and ``structure``; none given: all, as a simulator begins. Without ``structure``, structural
        tensors that are the compiler's own are not held, and are no part of what `parameters`, `buffers`, `modules` and
        the like walk over; so `auto` trains fused. `state_dict` and `save_pretrained` are complete all the same, and
        ``sim.structure`` still gives the modules. Raises `OptionError` for kinds that are unknown.
        """
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise OptionError(f"The kind of parameters {unknown[0]!r} is unknown; choose of {', '.join(KINDS)}.")
        chosen = kinds or KINDS
        self.set_apart("structure" not in chosen)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.partition(".")[0] in chosen)
        return self

    def set_apart(self, apart: bool) -> None:
        """Whether walking over the model passes its structural tensors by: those that are the compiler's own are then
        not held, those that are not require no gradients."""
        self._apart = apart
        if apart and self._held and self._is_own():
            self._drop()
        if self._held:
            for tensor in self._structural_tensors():
                tensor.requires_grad_(not apart)

    def _structural_tensors(self) -> Iterator[Tensor]:
        return (tensor for name, tensor in self._held_tensors() if name in self._structural)

    def why_literal(self) -> str | None:
        """With ``auto``, also that somebody who has seen structural tensors may wait for their gradients."""
        reason = super().why_literal()
        if reason is not None or self.executor != "auto" or not (self._held and self._seen and torch.is_grad_enabled()):
            return reason
        if not any(tensor.requires_grad for tensor in self._structural_tensors()):
            return None
        return (
            "its structural tensors require gradients, which fused execution does not give them; "
            "sim.trainable('prefixes', 'rates') leaves them out, and torch.no_grad() needs none"
        )

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Complete, whatever is trained."""
        held = self._held
        found = super().state_dict(*args, **kwargs)
        if self._apart and not held:
            self._drop()
        return found

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        found = super().load_state_dict(*args, **kwargs)
        self.set_apart(self._apart)
        return found
