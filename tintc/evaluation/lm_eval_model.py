"""A simulator as a model of lm-evaluation-harness, under the name ``tint``.

    tintc lm-eval --model tint --model_args pretrained=OUT,inner_lr=1e-4 --tasks TASK

Importing this module registers it; only this module needs `lm_eval` (the extra ``eval``).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.models.utils_hf import stop_sequences_criteria
from torch import Tensor
from tqdm import tqdm

from tintc.errors import ArtefactError, InputError, OptionError
from tintc.evaluation import lm_eval_options as options
from tintc.evaluation.lm_eval_scoring import Scored, log_likelihoods
from tintc.evaluation.processes import joined
from tintc.runtime.adaptation.prefill import SHORTEST
from tintc.runtime.load import load
from tintc.runtime.model.causal_lm import TintForCausalLM

logger = logging.getLogger("tintc")
NEW_TOKENS = 256
"""Of a task that does not say how many; lm_eval's own."""


class TintLM(TemplateLM):
    """A compiled simulator that trains on what the harness gives as context.

    pretrained: a simulator's folder, a hub id, or one that is loaded; train_fraction: of the texts of rolling
    requests, the part that is trained on (None: the stored one); inner_lr: instead of the stored rates; batch_size:
    texts that are run together, of about the same length; max_length: texts that are longer lose their first tokens
    (None: as long as the simulator takes); add_bos_token: whether texts begin with the tokenizer's special
    tokens (None, as True: yes). A text that begins with the BOS token already never gets another.

    - `loglikelihood` trains on the whole context and scores the continuation after the update. With a context of fewer
      than two tokens there is no update.
    - `loglikelihood_rolling` scores every token of a text once, in windows as lm_eval cuts them: the first
      `train_fraction` of a window's input, which is what is trained on, before the update, and the rest after it. So
      no token is scored by weights that have seen it, and perplexities compare with those of other models.
    - `generate_until` trains on the whole context, as far as it fits, and goes on with the updated weights. A context
      of fewer than two tokens is filled up to two with the prefix token, and there is no update.

    Under `accelerate launch` every process has a part of the requests, and the first one all results.
    """

    def __init__(
        self,
        pretrained: str | os.PathLike[str] | TintForCausalLM | None = None,
        train_fraction: float | str | None = None,
        inner_lr: float | str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        max_length: int | str | None = None,
        add_bos_token: bool | None = None,
        executor: str = "auto",
        device: str | None = None,
        dtype: str | None = None,
        **unknown: Any,
    ):
        super().__init__()
        if unknown:
            raise OptionError(f"The model argument {next(iter(unknown))!r} is unknown to tint; leave it out.")
        if pretrained is None:
            raise OptionError("Say which simulator: --model_args pretrained=OUT.")
        if isinstance(pretrained, TintForCausalLM):
            self.sim, self.processes = pretrained, joined(pretrained.device.type)
        else:
            self.processes = joined(device or "cpu")
            device = self.processes.device or device
            self.sim = load(pretrained, executor=executor, device=device, dtype=dtype)
        self._rank, self._world_size = self.processes.index, self.processes.count
        self.tokenizer = self.sim.tokenizer
        if self.tokenizer is None:
            raise ArtefactError(f"{pretrained} has no tokenizer, which lm_eval needs; compile a folder that has one.")
        if train_fraction is None:
            train_fraction = self.sim.config.train_fraction
        self.train_fraction = options.fraction(train_fraction)
        self.inner_lr = None
        if inner_lr is not None:
            self.inner_lr = options.rate(inner_lr)
        self.batch_size = options.batch(batch_size, max_batch_size)
        self.max_length = self.sim.layout.max_length
        if max_length is not None:
            self.max_length = min(options.length(max_length), self.max_length)
        self.add_bos_token = add_bos_token
        self._device = self.sim.device

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """Return the token that stands for an empty context."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return token
        raise InputError("The tokenizer has neither a first nor a last token to stand for an empty context.")

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        special = add_special_tokens
        if special is None:
            special = self.add_bos_token
            if special is not False:
                special = not has_bos_prefix(string, self.tokenizer.bos_token)
        return self.tokenizer.encode(string, add_special_tokens=special)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **others: Any
    ) -> list[tuple[float, bool]]:
        texts = [self._text(context, continuation) for _, context, continuation in requests]
        answers = self._scored(texts, disable_tqdm)
        for (request, *_), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", request, answer)
        return answers

    def _text(self, context: Sequence[int], continuation: Sequence[int]) -> Scored:
        """Return context and continuation, cut on the left to what is taken; the last token is only predicted."""
        if len(continuation) > self.max_length:
            raise InputError(
                f"A continuation has {len(continuation)} tokens; this simulator was compiled for at most "
                f"{self.max_length}. Compile with a larger max length."
            )
        tokens = (*context, *continuation)[-(self.max_length + 1) :]
        if len(tokens) < len(context) + len(continuation):
            logger.warning("a context was cut on the left, to %d tokens", len(tokens) - len(continuation))
        start = len(tokens) - len(continuation)
        return Scored(tokens, start, start)

    def _scored(self, texts: Sequence[Scored], quiet: bool) -> list[tuple[float, bool]]:
        return log_likelihoods(self.sim, texts, self.inner_lr, self.batch_size, quiet)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        texts: list[list[Scored]] = [[*self._windows(request.args[0])] for request in requests]
        answers = iter(self._scored([window for windows in texts for window in windows], disable_tqdm))
        totals = [sum(next(answers)[0] for _ in windows) for windows in texts]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _windows(self, text: str) -> Iterator[Scored]:
        pairs = utils.get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
        for given, predicted in pairs:
            tokens = (*given, predicted[-1])
            yield Scored(tokens, int(self.train_fraction * len(given)), len(tokens) - len(predicted))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return continuations; contexts that are to be continued in the same way are run together."""
        asked: list[Any] = [request.args for request in requests]  # a context and how it is continued
        alike: dict[str, list[int]] = {}
        for index, (_, how) in enumerate(asked):
            alike.setdefault(json.dumps(how, sort_keys=True, default=str), []).append(index)
        tokens = [self.tok_encode(context) for context, _ in asked]
        written: dict[int, str] = {}
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Running generate_until requests") as progress:
            for indices in alike.values():
                indices.sort(key=lambda index: -len(tokens[index]))
                for start in range(0, len(indices), self.batch_size):
                    part = indices[start : start + self.batch_size]
                    answers = self._written([tokens[index] for index in part], asked[part[0]][1])
                    for index, answer in zip(part, answers, strict=True):
                        written[index] = answer
                        self.cache_hook.add_partial("generate_until", asked[index], answer)
                        progress.update(1)
        return [written[index] for index in range(len(requests))]

    def _written(self, contexts: list[list[int]], arguments: dict[str, Any]) -> list[str]:
        """Return what follows contexts, after training on all of each that fits, up to the first string that stops."""
        how: dict[str, Any] = {**normalize_gen_kwargs(arguments, NEW_TOKENS)}
        count = how.pop("max_gen_toks")
        until = handle_stop_sequences(how.pop("until", None), eos=self.tokenizer.eos_token)
        if not how["do_sample"]:
            how = {name: value for name, value in how.items() if name not in ("temperature", "top_p", "top_k")}
        if count > self.max_length - SHORTEST:
            raise InputError(
                f"{count} new tokens leave no room for a context; this simulator was compiled for at most "
                f"{self.max_length}. Pass --gen_kwargs max_gen_toks=N, or compile with a larger max length."
            )
        prompts = self._prompts([context[-(self.max_length - count) :] for context in contexts])
        length = prompts["input_ids"].shape[1]
        stop = stop_sequences_criteria(self.tokenizer, until, length, len(contexts))
        ends = {"stopping_criteria": stop, "pad_token_id": self.tokenizer.eos_token_id}
        tokens = self.sim.generate(**prompts, inner_lr=self.inner_lr, max_new_tokens=count, **ends, **how)
        texts = self.tokenizer.batch_decode(tokens[:, length:], skip_special_tokens=True)
        return [postprocess_generated_text(text, until, None) for text in texts]

    def _prompts(self, contexts: list[list[int]]) -> dict[str, Tensor]:
        """Return contexts as a batch, padded on the left; those that are too short to be trained on are filled up."""
        rows = [torch.tensor([self.prefix_token_id] * (SHORTEST - len(context)) + context) for context in contexts]
        trained = torch.tensor([[len(context) >= SHORTEST] for context in contexts])
        ids, valid = (
            torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_side="left")
            for tensors in (rows, [torch.ones_like(row) for row in rows])
        )
        batch = {"input_ids": ids, "attention_mask": valid, "train_mask": valid * trained}
        return {name: tensor.to(self.sim.device) for name, tensor in batch.items()}

    def all_gather(self, tensor: Tensor) -> Tensor:
        return torch.cat([torch.atleast_1d(part) for part in self.processes.gathered([tensor])])

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        objects = self.processes.gathered([obj])
        if self._rank != dst:
            return None
        return objects

    def barrier(self) -> None:
        self.processes.wait()


register_model("tint")(TintLM)  # as a decorator its type would be lost
