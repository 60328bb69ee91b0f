"""Generation: what transformers' own `generate` needs of a simulator.

A prompt is read once: the simulator adapts to its train tokens, and every later forward pass takes the new tokens
alone, with the updated weights and what mixing tokens needs of those before: keys and values, or states. Literal
execution has no cache: there every token runs the whole text again, trained on the prompt's train tokens as before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, LogitsProcessorList

from tintc.errors import InputError, OptionError
from tintc.ir.inputs import check_ids, check_tensor
from tintc.runtime.adaptation.cache import TintCache
from tintc.runtime.adaptation.prefill import check_prompt
from tintc.runtime.adaptation.state import state_of
from tintc.runtime.model.adapting import TRAINING, AdaptingMixin
from tintc.runtime.model.finite import RefuseNaN
from tintc.runtime.model.learning import Learning, learning_of
from tintc.runtime.model.prompt_training import Training
from tintc.runtime.model.unsupported import ARGUMENTS, check_cache, refuse_options

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


def check_generation(given: Mapping[str, Any]) -> bool:
    """Return whether the weights that the arguments of `generate` go on with are adapted already.

    Raises `OptionError` or `InputError` for arguments that are not taken.
    """
    if given.get("assistant_model") is not None:
        raise OptionError(
            "An assistant's drafts know nothing of the update; leave out assistant_model, and pass "
            "prompt_lookup_num_tokens for drafts from the prompt."
        )
    past: Any = given.get("past_key_values")
    check_cache(past)
    for name in ARGUMENTS:
        if given.get(name) is not None:
            raise InputError(ARGUMENTS[name])
    return given.get("state") is not None or (past is not None and past.get_seq_length() > 0)


def check_prompts(prompt: Tensor | None, given: Mapping[str, Any]) -> tuple[int, int]:
    """Return (number, length) of the prompts, (1, 1) without any; raise `InputError` unless they and the masks among
    the arguments are tensors of numbers."""
    size = (1, 1)
    if prompt is not None:
        check_ids(prompt)
        size = (prompt.shape[0], prompt.shape[1])
    for name, mask in given.items():
        if name in MASKS and mask is not None:
            check_tensor(name, mask)
    return size


class TintGenerationMixin(AdaptingMixin, GenerationMixin):
    """The part of `TintForCausalLM` that generates."""

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
        adapted = check_generation(kwargs)
        if every is None and adapted and any(value is not None for value in asked.values()):
            raise OptionError("The weights are adapted already, so train_mask, loss_mask and inner_lr are left out.")
        prompt = inputs
        if prompt is None:
            prompt = kwargs.get("input_ids")
        rows, length = check_prompts(prompt, asked | kwargs)
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
