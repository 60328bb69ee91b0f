"""`sim.warm_up`: everything that is done once for passes of some sizes, done before the first of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tintc.errors import OptionError
from tintc.runtime.adaptation.decoding_graph import DecodingGraph
from tintc.runtime.adaptation.prefill import prefill
from tintc.runtime.execution.fused.pass_graph import Bucket, PassGraph
from tintc.runtime.execution.rates import GivenRates
from tintc.runtime.execution.run import execute
from tintc.runtime.model.generation import check_kept, check_longest
from tintc.runtime.model.precision import in_its_own_dtype
from tintc.runtime.model.unsupported import where_it_can_run


class WarmUpMixin:
    """The part of `TintForCausalLM` that prepares for sizes."""

    @torch.no_grad()
    @where_it_can_run
    @in_its_own_dtype
    def warm_up(
        self: Any,
        batch: int,
        length: int,
        train: int | None = None,
        *,
        padded: bool = False,
        return_before: bool = False,
        logits_to_keep: int = 0,
        inner_lr: GivenRates = None,
        new_tokens: int = 0,
    ) -> None:
        """Capture a CUDA graph of passes of at most so many texts, of at most so many tokens, and run it once.

        Passes without gradients, captures and edits that are not much smaller are then replayed: one launch for each
        instead of thousands. train: train tokens lie within so many first ones (default: as many as there are without
        a train mask). padded: attention_mask is given; return_before, logits_to_keep: as they will be in a forward
        pass, the latter of texts of exactly that length. inner_lr: rates that will be given, their numbers aside: a
        number, or a mapping with the same layers. new_tokens: also capture decoding, of at most so many tokens after
        such prompts. Where nothing can be captured, without a GPU or with `graphs.enabled` off, all this is run once.

        Raises `OptionError` for sizes that are none, and `InputError` for those that memory, or the simulator, does not
        take.
        """
        if train is None:
            train = int(length * self.config.train_fraction) if _is_count(length) else 0
        for name, value, least in (("batch", batch, 1), ("length", length, 1), ("train", train, 0)):
            if not _is_count(value) or value < least:
                raise OptionError(f"{name} is {value!r}; pass the most that there will be, at least {least}.")
        if train > length:
            raise OptionError(f"train is {train}, more than the {length} tokens of a text; pass at most that.")
        if not _is_count(new_tokens) or new_tokens < 0:
            raise OptionError(f"new_tokens is {new_tokens!r}; pass the most tokens that will be generated, 0 for none.")
        check_kept(logits_to_keep)
        check_longest(length + new_tokens, self.layout.max_length)
        ids = torch.full((batch, length), self._plain_id(), device=self.device)
        mask = torch.zeros_like(ids)
        mask[:, :train] = 1
        outputs = ("logits",)
        if return_before:
            outputs = ("logits_before", "logits")
        bucket = Bucket(batch, length, train, outputs, padded, logits_to_keep, self.update)
        rates = self.resolve_rates(inner_lr, batch)
        inputs = self.resolve(ids, mask)
        executor = self.choose_executor()
        if executor == "fused" and self.graphs.can_record(self):
            self.graphs.keep(PassGraph(self, bucket, rates))
        else:
            execute(self, inputs, rates, outputs, executor)
        if new_tokens:
            self._warm_up_decoding(ids, mask, executor, length + new_tokens)

    def _plain_id(self: Any) -> int:
        """Return a token id that stands for nothing but itself."""
        special = set(self.config.placeholders)
        return next(token for token in range(self.config.vocab_size) if token not in special)

    def _warm_up_decoding(self: Any, ids: Tensor, mask: Tensor, executor: str, longest: int) -> None:
        """Capture the step after prompts like these, or run it once."""
        if executor == "literal":
            return
        _, cache = prefill(self, self.resolve(ids, mask), None, 1)
        if self.graphs.can_record(self):
            self.graphs.keep(DecodingGraph(self, cache.state, cache, longest))
        else:
            self(ids[:, :1], past_key_values=cache)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
