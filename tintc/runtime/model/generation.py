"""Generation: what transformers' own `generate` needs of a simulator, and `adapt`, which keeps what was learnt.

A prompt is read once: the simulator adapts to its train tokens, and every later forward pass takes the new tokens
alone, with the updated weights and what mixing tokens needs of those before: keys and values, or states. Literal
execution has no cache: there every token runs the whole text again, trained on the prompt's train tokens as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationMixin, LogitsProcessorList

from tintc.errors import InputError, OptionError
from tintc.ir.core import Program
from tintc.ir.inputs import check_ids, check_tensor
from tintc.runtime.adaptation.adapt import adapt
from tintc.runtime.adaptation.cache import TintCache
from tintc.runtime.adaptation.continuation import Continuation, continuation_of
from tintc.runtime.adaptation.prefill import check_prompt, predict, prefill
from tintc.runtime.adaptation.state import AdaptedWeights, state_of
from tintc.runtime.execution.rates import GivenRates
from tintc.runtime.model.adapted_state import AdaptedState
from tintc.runtime.model.finite import RefuseNaN, warn_of_weights
from tintc.runtime.model.learning import Learning, learning_of
from tintc.runtime.model.precision import in_its_own_dtype
from tintc.runtime.model.prompt_training import Training
from tintc.runtime.model.unsupported import ARGUMENTS, check_cache, refuse_options, where_it_can_run

TRAINING = ("train_mask", "loss_mask", "inner_lr", "max_batch")
"""What a forward pass takes that says how to train."""
MASKS = ("train_mask", "loss_mask", "attention_mask")


def check_kept(count: object) -> None:
    """Raise `OptionError` unless it says of how many last tokens logits are wanted."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        shown = repr(count)
        if isinstance(count, Tensor):
            shown = "a tensor"
        raise OptionError(f"logits_to_keep is {shown}; pass the number of last tokens, 0 for all.")


def check_longest(longest: int, limit: int) -> None:
    """Raise `InputError` if prompt and new tokens are more than the simulator takes."""
    if longest > limit:
        raise InputError(
            f"Prompt and new tokens together would be {longest}; this simulator was compiled for at most {limit}. Ask "
            "for fewer new tokens, shorten the prompt, or compile with a larger max length."
        )


class TintGenerationMixin(GenerationMixin):
    """The part of `TintForCausalLM` that generates."""

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

    @torch.no_grad()
    def generate(self: Any, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Generate as transformers does, after adapting to each prompt once.

        train_mask, loss_mask, inner_lr: as in a forward pass, for the prompts; state: go on with the weights that
        `adapt` has returned instead of adapting. Prompts of unequal length are padded on the left. learn_every: learn
        the whole prompt in chunks of so many tokens, and every so many tokens of what is written (None, the default:
        adapt to the prompt as a forward pass does, and learn no more); with ``return_dict_in_generate=True``, the
        result's ``past_key_values.state`` is what has been learnt. Raises `InputError` for prompts of fewer than two
        tokens without a state, and for texts that would become longer than the simulator was compiled for.
        """
        every = kwargs.pop("learn_every", None)
        asked = {name: kwargs.pop(name, None) for name in TRAINING}
        if asked.pop("max_batch") is not None:
            raise OptionError("Generation runs all prompts together; leave out max_batch and pass fewer prompts.")
        if kwargs.get("state") is not None:
            kwargs["state"] = state_of(kwargs["state"], self)
            kwargs["state"].check_current()
        if kwargs.get("assistant_model") is not None:
            raise OptionError(
                "An assistant's drafts know nothing of the update; leave out assistant_model, and pass "
                "prompt_lookup_num_tokens for drafts from the prompt."
            )
        past: Any = kwargs.get("past_key_values")
        check_cache(past)
        for name in ARGUMENTS:
            if kwargs.get(name) is not None:
                raise InputError(ARGUMENTS[name])
        adapted = kwargs.get("state") is not None or (past is not None and past.get_seq_length() > 0)
        if every is None and adapted and any(value is not None for value in asked.values()):
            raise OptionError("The weights are adapted already, so train_mask, loss_mask and inner_lr are left out.")
        prompt = inputs
        if prompt is None:
            prompt = kwargs.get("input_ids")
        rows = 1
        length = 1
        if prompt is not None:
            check_ids(prompt)
            rows, length = prompt.shape
        for name, mask in (asked | kwargs).items():
            if name in MASKS and mask is not None:
                check_tensor(name, mask)
        generation: Any = super()
        if every is not None:
            learning = learning_of(self, every, prompt, asked | kwargs)
            return generation.generate(inputs, *args, learning=learning, **kwargs)
        rates = self.resolve_rates(asked.pop("inner_lr"), rows)
        training = None
        if not adapted:
            training = Training(length, rates=rates, **asked)
        return generation.generate(inputs, *args, training=training, **kwargs)

    def prepare_inputs_for_generation(
        self: Any,
        input_ids: Tensor,
        training: Training | None = None,
        learning: Learning | None = None,
        is_first_iteration: bool = False,
        tokenizer: Any = None,
        assistant_tokenizer: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return arguments of the next forward pass. The tokenizers, which transformers hands on to here, are of use to
        `generate` alone."""
        generation: Any = super()
        if learning is not None:
            if learning.is_due(input_ids.shape[1]):
                learning.learn(input_ids, kwargs.get("attention_mask"), kwargs.get("position_ids"))
                if kwargs.get("past_key_values") is not None:
                    kwargs["past_key_values"].reset()
                kwargs["next_sequence_length"] = None
            kwargs["state"] = learning.weights
        arguments = generation.prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        past = kwargs.get("past_key_values")
        if training is None or (past is not None and past.get_seq_length() > 0):
            return arguments
        if not training.settled:
            self._fix_train_mask(training, arguments["input_ids"], arguments.get("attention_mask"))
        return arguments | training.arguments(*input_ids.shape)

    def _fix_train_mask(self: Any, training: Training, input_ids: Tensor, mask: Tensor | None) -> None:
        """Fix the train tokens, which are the prompt's whatever text is run; raises `InputError` if it is too short."""
        prompt = input_ids[:, : training.length]
        masks = training.arguments(*prompt.shape)
        if mask is not None:
            mask = mask[:, : training.length]
        inputs = self.resolve(prompt, masks.get("train_mask"), masks.get("loss_mask"), mask)
        check_prompt(inputs)
        training.train_mask = inputs.train
        training.settled = True

    def _get_logits_processor(self: Any, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        """Return transformers' own, after one that looks at the logits as they come."""
        generation: Any = super()
        return LogitsProcessorList([RefuseNaN(), *generation._get_logits_processor(*args, **kwargs)])

    def _prepare_cache_for_generation(
        self: Any,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """Put an empty cache of ours among the arguments, where one is used."""
        check_longest(generation_config.max_length, self.layout.max_length)
        refuse_options(generation_config)
        if generation_config.prompt_lookup_num_tokens is not None and any(self.continuation.carrying):
            raise OptionError(
                "Drafts are taken back where they are wrong, and this model has layers that carry a state from token "
                "to token, which cannot be; leave out prompt_lookup_num_tokens."
            )
        if model_kwargs.get("past_key_values") is None and self.choose_executor() == "literal":
            if generation_config.prompt_lookup_num_tokens is not None:
                raise OptionError(
                    "Drafts are checked with a cache, which literal execution does not have; leave out "
                    "prompt_lookup_num_tokens, or set sim.executor = 'auto'."
                )
            generation_config.use_cache = False
        if model_kwargs.get("learning") is not None:
            model_kwargs["learning"].start(generation_config, generation_mode, model_kwargs.get("attention_mask"))
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache:
            model_kwargs["past_key_values"] = TintCache(self.continuation.carrying)
