"""Running a simulator's program: what it is run on, at which rates, by which executor, and what comes out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tintc.ir.inputs import Inputs, resolve_inputs
from tintc.runtime.execution.rates import GivenRates, Rates, rates_of
from tintc.runtime.execution.run import check_inputs, execute
from tintc.runtime.model.output import OnDemand


class RunningMixin:
    """The part of `TintForCausalLM` that runs the program."""

    def resolve(
        self: Any,
        input_ids: Tensor,
        train_mask: Tensor | None = None,
        loss_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Inputs:
        """Return what a text is run on, checked: the arguments of a forward pass with their defaults filled in."""
        inputs = resolve_inputs(
            input_ids,
            train_mask,
            loss_mask,
            attention_mask,
            position_ids,
            train_fraction=self.config.train_fraction,
            semantics=self.config.semantics,
            n_steps=self.program.attributes["n_steps"],
        )
        check_inputs(self, inputs)
        return inputs

    def execute(
        self: Any, inputs: Inputs, inner_lr: GivenRates, outputs: tuple[str, ...], max_batch: int | str | None
    ) -> dict[str, Tensor]:
        """Return the named outputs, by the executor that may run; captures are filled.

        inner_lr: as in a forward pass; max_batch: examples that run at a time.
        """
        rates = self.resolve_rates(inner_lr, inputs.shape[0])
        results = execute(self, inputs, rates, self._with_points(outputs), self.choose_executor(), max_batch)
        self._fill_captures(results)
        return results

    def resolve_rates(self: Any, inner_lr: GivenRates | Rates, batch: int) -> Rates | None:
        """Return rates for that many texts, in fp32 or better; None: as they are stored."""
        if inner_lr is None:
            return None
        dtype = torch.promote_types(self.dtype, torch.float32)
        return rates_of(inner_lr, self.program, batch, dtype, self.device)

    def _whole_pass(
        self: Any,
        inputs: Inputs,
        inner_lr: GivenRates,
        max_batch: int | str | None,
        return_before: bool,
        keep: int,
        asked: OnDemand,
    ) -> dict[str, Any]:
        """Return fields of `TintOutput` of a pass over whole texts: logits of the last `keep` tokens (0: of all), and
        what else is asked for."""
        if not self._captures and not self._edited:  # what these see is whole
            inputs = replace(inputs, kept=keep)
        outputs = ("logits",)
        if return_before:
            outputs = ("logits_before", "logits")
        values = self.execute(inputs, inner_lr, (*outputs, *asked.labels(self.program)), max_batch)
        return {label: values[label][:, -keep:] for label in outputs} | asked.fields(self.program, values)
