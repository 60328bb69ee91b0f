"""`TintForCausalLM`: a simulator as a transformers model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from transformers import Cache
from transformers.utils.generic import can_return_tuple

from tintc.errors import ArtefactError, OptionError
from tintc.ir.core import Program
from tintc.ir.inputs import check_ids
from tintc.ir.layout import Layout
from tintc.ir.text import parse_program
from tintc.lowering.emission.emit import specs
from tintc.lowering.passes.plan_layout import layout_of
from tintc.runtime.artefact.checks import explained_loading, unreported
from tintc.runtime.artefact.config import TintConfig
from tintc.runtime.execution.fused.graphs import Graphs
from tintc.runtime.execution.fused.plan import ExecutionPlan
from tintc.runtime.execution.rates import GivenRates
from tintc.runtime.model.activations import ActivationAccess
from tintc.runtime.model.adapted_state import AdaptedState
from tintc.runtime.model.describe import described, described_in_html
from tintc.runtime.model.devices import names_several
from tintc.runtime.model.finite import warn_of_logits
from tintc.runtime.model.from_folder import Source
from tintc.runtime.model.generation import TintGenerationMixin, check_kept
from tintc.runtime.model.output import OnDemand, TintOutput
from tintc.runtime.model.placing import PlacingMixin
from tintc.runtime.model.precision import in_its_own_dtype
from tintc.runtime.model.registration import register_model
from tintc.runtime.model.running import RunningMixin
from tintc.runtime.model.saving import SavedModel
from tintc.runtime.model.streaming import StreamingMixin
from tintc.runtime.model.structure import check_executor
from tintc.runtime.model.training import labels_loss
from tintc.runtime.model.unsupported import (
    UnsupportedFeatures,
    check_cache,
    length_of,
    refuse_arguments,
    where_it_can_run,
)
from tintc.runtime.model.warming_up import WarmUpMixin

NOT_COMPILED = (
    "a simulator is a program of its own, which its executors run: torch.compile leaves it as it is (without "
    "fullgraph), and torch.export cannot take it; sim.adapt(ids).export(OUT) writes the updated auxiliary, which it can"
)
"""Read in the messages of torch.compile(fullgraph=True) and torch.export(strict=True), which ask no one before."""


class TintForCausalLM(
    ActivationAccess,
    UnsupportedFeatures,
    RunningMixin,
    SavedModel,
    TintGenerationMixin,
    StreamingMixin,
    WarmUpMixin,
    PlacingMixin,
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

        def to(self, *args: Any, **kwargs: Any) -> Self: ...  # pyright: ignore[reportIncompatibleVariableOverride]

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
        refuse_arguments(others, length_of(input_ids), cached)
        ids = check_ids(input_ids)
        past = check_cache(past_key_values)
        cache = None
        fields: dict[str, Any]
        if cached:
            self._refuse_points(output_hidden_states, output_attentions)
            options = {"train_mask": train_mask, "loss_mask": loss_mask, "inner_lr": inner_lr, "max_batch": max_batch}
            options |= {"attention_mask": attention_mask, "position_ids": position_ids, "return_before": return_before}
            fields, cache = self._continue_from(ids, past, state, use_cache, logits_to_keep, options)
        else:
            inputs = self.resolve(ids, train_mask, loss_mask, attention_mask, position_ids)
            asked = OnDemand.of(self.config, output_hidden_states, output_attentions)
            fields = self._whole_pass(inputs, inner_lr, max_batch, return_before, logits_to_keep, asked)
        loss = labels_loss(fields["logits"], labels, shift_labels, num_items_in_batch, logits_to_keep)
        warn_of_logits(self, fields["logits"])
        return TintOutput(loss=loss, past_key_values=cache, **fields)


register_model(TintForCausalLM)
