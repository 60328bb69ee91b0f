"""`TintForCausalLM`: a simulator as a transformers model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from transformers import Cache
from transformers.utils.generic import ModelOutput, can_return_tuple

from tintc.errors import ArtefactError, InputError, OptionError
from tintc.ir.core import Program
from tintc.ir.inputs import Inputs, check_ids, matching, resolve_inputs
from tintc.ir.layout import Layout
from tintc.ir.text import parse_program
from tintc.lowering.emission.emit import specs
from tintc.lowering.passes.plan_layout import layout_of
from tintc.runtime.artefact.checks import explained_loading, unreported
from tintc.runtime.artefact.config import TintConfig
from tintc.runtime.execution.fused.graphs import Graphs
from tintc.runtime.execution.fused.plan import ExecutionPlan
from tintc.runtime.execution.rates import GivenRates, Rates, rates_of
from tintc.runtime.execution.run import check_inputs, execute
from tintc.runtime.model.activations import ActivationAccess, OnDemand
from tintc.runtime.model.adapted_state import AdaptedState
from tintc.runtime.model.auto_classes import register_model
from tintc.runtime.model.describe import described, described_in_html
from tintc.runtime.model.devices import names_several
from tintc.runtime.model.finite import warn_of_logits
from tintc.runtime.model.from_folder import Source
from tintc.runtime.model.generation import TintGenerationMixin, check_kept
from tintc.runtime.model.placing import PlacingMixin
from tintc.runtime.model.precision import in_its_own_dtype
from tintc.runtime.model.saving import SavedModel
from tintc.runtime.model.streaming import StreamingMixin
from tintc.runtime.model.structure import check_executor
from tintc.runtime.model.training import next_token_loss
from tintc.runtime.model.unsupported import (
    NoField,
    UnsupportedFeatures,
    check_cache,
    refuse_arguments,
    where_it_can_run,
)
from tintc.runtime.model.warming_up import WarmUpMixin

NOT_COMPILED = (
    "a simulator is a program of its own, which its executors run: torch.compile leaves it as it is (without "
    "fullgraph), and torch.export cannot take it; sim.adapt(ids).export(OUT) writes the updated auxiliary, which it can"
)
"""Read in the messages of torch.compile(fullgraph=True) and torch.export(strict=True), which ask no one before."""


@dataclass
class TintOutput(ModelOutput):
    """What a simulator returns.

    loss: mean next-token cross-entropy of `labels` under `logits`; logits ``[B, T, V]`` after the update;
    logits_before: of the unchanged auxiliary, None unless asked for. past_key_values: the cache, if one is used.
    hidden_states: after the update, as transformers has them, L + 1 tensors ``[B, T, D]``: embeddings, residual
    streams, and last what the head reads; attentions: L tensors ``[B, H, T, T]``; both also before the update. As a
    tuple it ends with those after the update, as transformers' outputs do.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    logits_before: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states_before: tuple[Tensor, ...] | None = None
    attentions_before: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None

    @property
    def last_hidden_state(self) -> Tensor:
        """Raise `NoField`."""
        raise NoField(
            "A simulator has no base model with a last_hidden_state (TRL's trainers ask for one); use transformers' "
            "Trainer with sim.trainable('prefixes'), or hidden_states[-1] of output_hidden_states=True."
        )


class TintForCausalLM(
    ActivationAccess, UnsupportedFeatures, SavedModel, TintGenerationMixin, StreamingMixin, WarmUpMixin, PlacingMixin
):
    """A TinT simulator: one forward pass runs, trains and re-runs the auxiliary model on the text it is given.

    The tree has ``tables`` (embeddings and head), ``prefixes`` (the auxiliary's weights), ``rates``, ``score_vectors``
    (what attention makes its scores with), ``structure`` (tensors that do not depend on the layer, registered once
    unless the program says that modules share less) and ``sites`` (one module per module of the program, without
    tensors of their own: hook these). Every tensor of the file is a parameter of it. Several threads may run one
    simulator: edits and captures are those of the caller's context.
    """

    config: TintConfig
    config_class = TintConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _keep_in_fp32_modules_strict = ["rates", "score_vectors"]  # noqa: RUF012 - read by transformers

    def __init__(self, config: TintConfig, program: Program | None = None, **unknown: Any):
        """Make the modules, their tensors still empty.

        program: what `config.program` says, if it has been parsed already; unknown: arguments of `from_pretrained` and
        `from_config` that nobody knows.
        """
        if unknown:
            raise OptionError(f"A simulator is not loaded with an argument {next(iter(unknown))!r}; leave it out.")
        super().__init__(config)
        if config.program is None:
            raise ArtefactError("The configuration comes without a program; load the folder with tintc.load instead.")
        self.program: Program = program or parse_program(config.program)
        self.layout: Layout = layout_of(self.program)
        self.update = "auto"
        self.plans: dict[Any, ExecutionPlan] = {}
        self.graphs = Graphs()
        self._build()
        self._start()
        self._keep_in_fp32_modules_strict = self._precise_kinds()
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, executor: str = "auto", **kwargs: Any
    ) -> Any:
        """Return a compiled simulator from a folder or the hub, as `transformers` loads models.

        executor: ``auto``, ``fused`` or ``literal``. Raises `ArtefactError` if the folder is not a simulator, is
        damaged, or lacks or has extra tensors (extra ones are left out if its program was edited); transformers' own
        keyword arguments pass through (`device_map`: of one device, or as `place_layers` takes it; `dtype`: float32,
        bfloat16 or float64), and what the configuration has may be given by name. With None for the folder, `config`
        and `state_dict` say all.
        """
        check_executor(executor)
        wants_info = kwargs.pop("output_loading_info", False)
        wanted = kwargs.get("device_map")
        with unreported(), explained_loading(pretrained_model_name_or_path):
            source = Source.of(pretrained_model_name_or_path, kwargs)
            loaded: Any = super().from_pretrained(None, *args, **kwargs, **source.arguments)
        sim, info = loaded
        sim.executor = executor
        source.finish(sim)
        if names_several(wanted):
            sim.place_layers(wanted)
        if wants_info:
            return sim, info
        return sim

    @classmethod
    def _from_config(cls, config: TintConfig, **kwargs: Any) -> Any:
        """Return a simulator of the configuration's program, with what the compiler emits and the rates.

        The auxiliary's tensors are zero, as no configuration holds them.
        """
        sim: Any = super()._from_config(config, **kwargs)
        if sim.device.type != "meta":
            known = specs(sim.program, lr=config.inner_lr)
            with torch.no_grad():
                for name, parameter in sim.named_parameters():
                    if name.startswith(("structure.", "rates.")):
                        parameter.copy_(known[name].build())
                    else:
                        parameter.zero_()
            sim.zero_absent_terms()
            sim.trust()
        return sim

    def __repr__(self) -> str:
        return described(self)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the stages of a pass, and the facts. `tintc report` writes a whole page."""
        return described_in_html(self)

    if TYPE_CHECKING:  # transformers wraps it, and type checkers take the first argument for `self`

        def to(self, *args: Any, **kwargs: Any) -> Self: ...

    @torch.compiler.disable(reason=NOT_COMPILED)
    @where_it_can_run
    @in_its_own_dtype
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        train_mask: Tensor | None = None,
        loss_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        inner_lr: GivenRates = None,
        return_before: bool = False,
        max_batch: int | str | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        state: AdaptedState | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: Tensor | int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **others: Any,
    ) -> TintOutput:
        """Train the auxiliary on the text's train tokens and predict with the result, all in this pass.

        input_ids ``[B, T]``; train_mask ``[B, T]``, or ``[N, B, T]`` for tokens of its own in each of the N steps
        (default: the first ``floor(train_fraction * length)`` tokens of each row; with fewer than two, no update),
        loss_mask ``[B, T]`` over target tokens, attention_mask ``[B, T]``
        (padding) or ``[B, T, T]``; masks of any dtype, non-zero is true. position_ids ``[B, T]`` (default: counting
        tokens that are not padding). labels ``[B, T]``: targets of `loss`, -100 is ignored. inner_lr: instead of the
        stored rates a number; ``[B]``, one per example; ``[N]``, one per step; or ``[N, B]``, ``[N, 1]``, ``[1, B]``:
        where B is N and more than 1, pass two dimensions. Or a mapping from the auxiliary's
        layers (-1: the final norm), and ``"default"``, to such rates; layers without one take the stored. max_batch:
        examples that run at a time, ``auto``: as many as memory takes; None: all, refused if memory
        will not take them. num_items_in_batch: what the labels' summed losses are divided by (default: their number).
        shift_labels ``[B, T]``: in place of labels, each at the position before it. output_hidden_states,
        output_attentions, return_dict: as in transformers. Raises `InputError` for ids out of range, texts too long and
        shapes that do not fit.

        use_cache: return in `past_key_values` what tokens after these need, the updated weights included; given that
        again, input_ids are the new tokens alone, and nothing is trained. state: predict with the weights that `adapt`
        has returned, and train nothing. logits_to_keep: give logits of that many last tokens (0: of all). Autocast
        changes nothing: load in the dtype to compute in. others: shift_labels, which `Trainer` would take for labels
        that every row has if it were named here; arguments of other models are refused unless None.
        """
        check_kept(logits_to_keep)
        shift_labels = others.pop("shift_labels", None)
        cached = bool(use_cache) or past_key_values is not None or state is not None
        length = 0
        if isinstance(input_ids, Tensor):
            length = input_ids.shape[-1]
        refuse_arguments(others, length, cached)
        ids = check_ids(input_ids)
        past = check_cache(past_key_values)
        more: dict[str, tuple[Tensor, ...]] = {}
        options = {"train_mask": train_mask, "loss_mask": loss_mask, "inner_lr": inner_lr, "max_batch": max_batch}
        if cached:
            self._refuse_points(output_hidden_states, output_attentions)
            options |= {"attention_mask": attention_mask, "position_ids": position_ids, "return_before": return_before}
            results, cache = self._continue_from(ids, past, state, use_cache, logits_to_keep, options)
        else:
            inputs = self.resolve(ids, train_mask, loss_mask, attention_mask, position_ids)
            if not self._captures and not self._edited:  # what these see is whole
                inputs = replace(inputs, kept=logits_to_keep)
            cache = None
            outputs = ("logits",)
            if return_before:
                outputs = ("logits_before", "logits")
            asked = OnDemand.of(self.config, output_hidden_states, output_attentions)
            values = self.execute(inputs, inner_lr, (*outputs, *asked.labels(self.program)), max_batch)
            more = asked.fields(self.program, values)
            results = {label: values[label][:, -logits_to_keep:] for label in outputs}
        loss = None
        shifted = shift_labels is not None
        if shifted:
            labels = shift_labels
        logits = results["logits"]
        if labels is not None:
            if logits_to_keep and isinstance(labels, Tensor) and labels.shape != logits.shape[:2]:
                raise InputError(
                    f"labels has shape {tuple(labels.shape)}; with logits_to_keep it must be that of the logits, "
                    f"{tuple(logits.shape[:2])}: pass the labels of the kept tokens, or leave logits_to_keep out."
                )
            targets = matching("labels", labels, tuple(logits.shape[:2]), logits.device)
            loss = next_token_loss(logits, targets, num_items_in_batch, shifted)
        warn_of_logits(self, logits)
        before = results.get("logits_before")
        return TintOutput(loss=loss, logits=logits, logits_before=before, past_key_values=cache, **more)

    def resolve(
        self,
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
        self, inputs: Inputs, inner_lr: GivenRates, outputs: tuple[str, ...], max_batch: int | str | None
    ) -> dict[str, Tensor]:
        """Return the named outputs, by the executor that may run; captures are filled.

        inner_lr: as in a forward pass; max_batch: examples that run at a time.
        """
        rates = self.resolve_rates(inner_lr, inputs.shape[0])
        results = execute(self, inputs, rates, self._with_points(outputs), self.choose_executor(), max_batch)
        self._fill_captures(results)
        return results

    def resolve_rates(self, inner_lr: GivenRates | Rates, batch: int) -> Rates | None:
        """Return rates for that many texts, in fp32 or better; None: as they are stored."""
        if inner_lr is None:
            return None
        dtype = torch.promote_types(self.dtype, torch.float32)
        return rates_of(inner_lr, self.program, batch, dtype, self.device)


register_model(TintForCausalLM)
