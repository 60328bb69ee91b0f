"""Keeping what was learnt: `adapt`, and forward passes that go on from a state or a cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from tintc.errors import OptionError
from tintc.ir.core import Program
from tintc.runtime.adaptation.adapt import adapt
from tintc.runtime.adaptation.cache import TintCache
from tintc.runtime.adaptation.continuation import Continuation, continuation_of
from tintc.runtime.adaptation.prefill import predict, prefill
from tintc.runtime.adaptation.state import AdaptedWeights, state_of
from tintc.runtime.execution.rates import GivenRates
from tintc.runtime.model.adapted_state import AdaptedState
from tintc.runtime.model.finite import warn_of_weights
from tintc.runtime.model.precision import in_its_own_dtype
from tintc.runtime.model.unsupported import where_it_can_run

TRAINING = ("train_mask", "loss_mask", "inner_lr", "max_batch")
"""What a forward pass takes that says how to train."""


class AdaptingMixin:
    """The part of `TintForCausalLM` that keeps updated weights, and predicts with them."""

    program: Program
    _continuation: Continuation | None = None

    @property
    def continuation(self) -> Continuation:
        """Return the ops that predict from the updated weights."""
        if self._continuation is None:
            self._continuation = continuation_of(self.program)
        return self._continuation

    @torch.no_grad()
    @where_it_can_run
    @in_its_own_dtype
    def adapt(
        self: Any,
        input_ids: Tensor,
        train_mask: Tensor | None = None,
        loss_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inner_lr: GivenRates = None,
        state: AdaptedState | None = None,
    ) -> AdaptedState:
        """Train on the text's train tokens, as a forward pass does with the same arguments, and keep the weights.

        state: what was learnt before, to go on from in place of the stored weights: of one text for each row of the
        batch, or of fewer that rows share evenly. It stays as it is. Both executors do; what continues a text from the
        state is fused. Raises `InputError` also for a text of fewer than two tokens, and `OptionError` inside the block
        of a capture or an edit, and for a state that is not this simulator's, or no longer.
        """
        if self._captures or self._edited:
            raise OptionError(
                "adapt runs only the part of the text that is trained on, where captures and edits, which are of whole "
                "passes, have no place; call it outside their blocks."
            )
        inputs = self.resolve(input_ids, train_mask, loss_mask, attention_mask, position_ids)
        before = None
        if state is not None:
            before = state_of(state, self)
        rates = self.resolve_rates(inner_lr, inputs.shape[0])
        weights = adapt(self, inputs, rates, self.choose_executor(), before)
        warn_of_weights(self, weights.weights.values())
        return AdaptedState.of_weights(weights)

    def _continue_from(
        self: Any,
        input_ids: Tensor,
        cache: TintCache | None,
        state: AdaptedWeights | None,
        use_cache: bool | None,
        keep: int,
        options: Mapping[str, Any],
    ) -> tuple[dict[str, Tensor], Cache | None]:
        """Run a forward pass with a cache or a state; options: its masks, positions and how to train."""
        if options["return_before"] or options["max_batch"] is not None:
            raise OptionError("return_before and max_batch cannot be combined with a cache or a state; leave them out.")
        if state is not None:
            state = state_of(state, self)
        if cache is not None and cache.state is not None:
            kept = cache.state.of(self)
            if state is not None and state is not kept:
                raise OptionError("The cache was made with other weights than the state's; pass one of them alone.")
            state = kept
        elif self.choose_executor() == "literal":
            advice = "pass use_cache=False"
            if state is not None:
                advice = "choose the executor auto or fused"
            raise OptionError(f"Literal execution has neither a cache nor a state to go on from; {advice}.")
        if state is None:
            masks = [options[name] for name in ("train_mask", "loss_mask", "attention_mask", "position_ids")]
            if isinstance(masks[2], Tensor) and masks[2].dim() == 3:
                raise OptionError("With a cache, attention_mask says what is padding: pass it as [batch, length].")
            inputs = self.resolve(input_ids, *masks)
            logits, cache = prefill(self, inputs, self.resolve_rates(options["inner_lr"], inputs.shape[0]), keep)
            return {"logits": logits}, cache
        if any(options[name] is not None for name in TRAINING):
            raise OptionError("The weights are adapted already, so train_mask, loss_mask and inner_lr are left out.")
        if use_cache and cache is None:
            cache = TintCache(self.continuation.carrying)
        logits = predict(self, input_ids, options["attention_mask"], options["position_ids"], state, cache, keep)
        if cache is not None:
            cache.state = state
        return {"logits": logits}, cache
