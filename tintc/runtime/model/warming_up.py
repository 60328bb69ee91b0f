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
        such prompts. Graphs serve the thread that warms up; others run without.
        Where nothing can be captured, without a GPU or with `graphs.enabled` off, all this is run once.

        Raises `OptionError` for sizes that are none, and `InputError` for those that memory, or the simulator, does not
        take.
        """
        check_count("batch", batch, 1)
        check_count("length", length, 1)
        check_count("new_tokens", new_tokens, 0)
        if train is None:
            train = int(length * self.config.train_fraction)
        check_count("train", train, 0)
        if train > length:
            raise OptionError(f"train is {train}, more than the {length} tokens of a text; pass at most that.")
        check_kept(logits_to_keep)
        check_longest(length + new_tokens, self.layout.max_length)
        ids = self._plain_ids(batch).expand(batch, length)
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
            if not any(graph.same(bucket, rates) for graph in self.graphs.of_kind(self, PassGraph)):
                self.graphs.keep(PassGraph(self, bucket, rates))
        else:
            execute(self, inputs, rates, outputs, executor)
        if new_tokens:
            self._warm_up_decoding(ids, mask, executor, length + new_tokens)

    def _plain_ids(self: Any, batch: int) -> Tensor:
        """Return token ids ``[batch, 1]`` that stand for nothing but themselves, one and another in turn: equal texts
        side by side would be adapted to once."""
        special = set(self.config.placeholders)
        plain = [token for token in range(self.config.vocab_size) if token not in special][:2]
        return torch.tensor([[plain[row % len(plain)]] for row in range(batch)], device=self.device)

    def _warm_up_decoding(self: Any, ids: Tensor, mask: Tensor, executor: str, longest: int) -> None:
        """Capture the step after prompts like these, or run it once."""
        if executor == "literal":
            return
        _, cache = prefill(self, self.resolve(ids, mask), None, 1)
        if self.graphs.can_record(self) and cache.state is not None:
            self.graphs.keep(DecodingGraph(self, cache.state, cache, longest))
        else:
            self(ids[:, :1], past_key_values=cache)


def check_count(name: str, value: object, least: int) -> None:
    """Raise `OptionError` unless it is a number of texts or tokens, and not too small."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise OptionError(f"{name} is {value!r}; pass the most that there will be, at least {least}.")
