"""`TintForCausalLM`: a simulator as a transformers model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.utils.generic import ModelOutput, can_return_tuple

from tintc.analysis.report import described
from tintc.errors import ArtefactError, InputError, OptionError
from tintc.ir import simulator as sim
from tintc.ir.core import Op, Program
from tintc.ir.inputs import Inputs, check_ids, matching, resolve_inputs
from tintc.ir.layout import Layout
from tintc.ir.structure import AttentionSpec, VocabularySpec
from tintc.ir.text import parse_program
from tintc.lowering.emission.emit import blocks_of, check_complete, specs
from tintc.lowering.emission.sharing import placement, sites
from tintc.lowering.passes.plan_layout import layout_of
from tintc.runtime.adaptation.state import AdaptedState
from tintc.runtime.artefact.beside import HUB_ARGUMENTS
from tintc.runtime.artefact.checks import (
    check_config,
    check_tensors,
    explained_loading,
    of_program,
    program_of,
    unreported,
)
from tintc.runtime.artefact.config import TintConfig
from tintc.runtime.artefact.folder import files_of, is_edited, read_auxiliary, structure_digest
from tintc.runtime.execution.fused.batches import run_fused
from tintc.runtime.execution.fused.plan import Plan
from tintc.runtime.execution.literal.attention import TintAttention
from tintc.runtime.execution.literal.blocks import PositionGate, Prefix, VocabularyMLP, build_block
from tintc.runtime.execution.literal.executor import Machine, SimModule
from tintc.runtime.execution.module_tree import Container, FullPrecision, owner, place_module, place_parameter, refer_to
from tintc.runtime.execution.rates import GivenRates, Rates, rates_of
from tintc.runtime.model.activations import Observed, OnDemand
from tintc.runtime.model.devices import one_device
from tintc.runtime.model.finite import check_weights, tell_of_logits
from tintc.runtime.model.generation import TintGenerationMixin, check_kept
from tintc.runtime.model.precision import in_its_own_dtype, warn_if_short
from tintc.runtime.model.saving import SavedModel
from tintc.runtime.model.structure import check_executor
from tintc.runtime.model.training import next_token_loss
from tintc.runtime.model.unsupported import (
    WRAPPED,
    NoField,
    Refusals,
    check_cache,
    check_own,
    refuse_arguments,
    refuse_float16,
    where_it_can_run,
)

NOT_COMPILED = "a simulator is a program of its own, which its executors run; torch.compile leaves it as it is"


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
        """Raises `NoField`."""
        raise NoField(
            "A simulator has no base model with a last_hidden_state (TRL's trainers ask for one); use transformers' "
            "Trainer with sim.trainable('prefixes'), or hidden_states[-1] of output_hidden_states=True."
        )


class TintForCausalLM(Observed, Refusals, SavedModel, TintGenerationMixin):
    """A TinT simulator: one forward pass runs, trains and re-runs the auxiliary model on the text it is given.

    The tree has ``tables`` (embeddings and head), ``prefixes`` (the auxiliary's weights), ``rates``, ``rotary``,
    ``structure`` (tensors that do not depend on the layer, registered once unless the program says that modules share
    less) and ``sites`` (one module per module of the program, without tensors of their own: hook these). Every tensor
    of the file is a parameter of it.
    """

    config: TintConfig
    config_class = TintConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _keep_in_fp32_modules_strict = ["rates", "rotary"]  # noqa: RUF012 - read by transformers

    def __init__(self, config: TintConfig, program: Program | None = None, **unknown: Any):
        """program: what `config.program` says, if it has been parsed already; unknown: what `from_pretrained` and
        `from_config` were given and nobody knows."""
        if unknown:
            raise OptionError(f"A simulator is not loaded with an argument {next(iter(unknown))!r}; leave it out.")
        super().__init__(config)
        if config.program is None:
            raise ArtefactError("The configuration comes without a program; load the folder with tintc.load instead.")
        self.program: Program = parse_program(config.program) if program is None else program
        self.layout: Layout = layout_of(self.program)
        self.update = "auto"
        self.plans: dict[Any, Plan] = {}
        self._build()
        self._refer_to_shared()
        self._observe()
        self._start()
        kinds = {"rates": self.rates, "rotary": self.rotary}
        precise = [name for name, kind in kinds.items() if any(True for _ in kind.parameters())]
        self._keep_in_fp32_modules_strict = precise  # transformers warns of kinds that are empty
        self.post_init()

    def _build(self) -> None:
        """Modules and empty parameters, from the program alone."""
        self.tables, self.prefixes = Container(), Container()
        self.rates, self.rotary = FullPrecision(), FullPrecision()
        self.structure, self.sites = Container(), Container()
        self._blocks = blocks_of(self.program)
        for name, placed in self._blocks.items():
            place_module(self, f"structure.{name}", build_block(placed.block.spec, self.layout))
        for gate in dict.fromkeys(placed.gate for placed in self._blocks.values() if placed.gate):
            place_module(self, f"structure.{gate}", PositionGate(self.layout.sim_seq_len))
        shapes = {name: spec.shape for name, spec in specs(self.program).items()}
        matrices = {f"structure.{name}" for placed in self._blocks.values() for name in placed.positions.values()}
        for name, shape in shapes.items():
            if name.startswith(("tables.", "rates.", "rotary.")) or name in matrices:
                place_parameter(self, name, nn.Parameter(torch.empty(shape)))
        for op in self.program.ops:
            if isinstance(op, sim.StoredWeights):
                stem = f"prefixes.{op.name}."
                parts = {part: shapes[stem + part] for part in ("weight", "gain", "bias") if stem + part in shapes}
                place_module(self.prefixes, op.name, Prefix(op.result.type, parts, op.tiles, self.layout))
        self._sites: dict[Op, str] = {**sites(self.program)}
        for op, placed in placement(self.program).items():
            names = {name: one.name for name, one in placed.items()}
            place_module(self.sites, self._sites[op], SimModule(op, names))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, executor: str = "auto", **kwargs: Any
    ) -> Any:
        """A compiled simulator from a folder or the hub, as `transformers` loads models.

        executor: ``auto``, ``fused`` or ``literal``. Raises `ArtefactError` if the folder is not a simulator, is
        damaged, or lacks or has extra tensors (extra ones are left out if its program was edited); transformers' own
        keyword arguments pass through (`device_map`: of one device; `dtype`: float32, bfloat16 or float64), and what
        the configuration has may be given by name. With None for the folder, `config` and `state_dict` say all.
        """
        check_executor(executor)
        path: Any = pretrained_model_name_or_path
        kwargs["device_map"] = one_device(kwargs.get("device_map"))
        config, given = kwargs.pop("config", None), kwargs.get("state_dict") or {}
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        text, program = program_of(path, config, given, hub)
        check_complete(program)
        config = config or TintConfig.from_pretrained(path, **hub)
        for name in kwargs.keys() & config.to_dict().keys() - {"dtype", "torch_dtype"}:
            setattr(config, name, kwargs.pop(name))
        check_config(path, config.to_dict(), program)
        config.complete(of_program(program))
        config.program = text
        if path is not None:
            config.auxiliary = read_auxiliary(path, **hub)
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs |= {"config": config, "program": program, "output_loading_info": True, "ignore_mismatched_sizes": True}
        with unreported(), explained_loading(path, kwargs.get("variant")):
            loaded: Any = super().from_pretrained(path, *args, **kwargs)
        sim, info = loaded
        check_tensors(path or "The state dict", info, edited=is_edited(text, config.digests))
        sim.zero_absent_terms()
        sim.executor = executor
        sim._tokenizer_source = None if path is None else (path, hub)
        if path is not None:
            sim.check_against(files_of(path, **hub))
            check_weights(path, sim.named_parameters())
        elif structure_digest(given.items()) == config.digests.get("structure"):
            sim.trust()
        warn_if_short(sim.dtype)
        return (sim, info) if wants_info else sim

    @classmethod
    def _from_config(cls, config: TintConfig, **kwargs: Any) -> Any:
        """A simulator of the configuration's program. What the compiler emits is there, and the rates; the auxiliary's
        tensors are zero, as no configuration holds them."""
        sim: Any = super()._from_config(config, **kwargs)
        if sim.device.type != "meta":
            known = specs(sim.program, lr=config.inner_lr)
            with torch.no_grad():
                for name, parameter in sim.named_parameters():
                    compiled = name.startswith(("structure.", "rates."))
                    parameter.copy_(known[name].build()) if compiled else parameter.zero_()
            sim.zero_absent_terms()
            sim.trust()
        return sim

    def __repr__(self) -> str:
        return described(self)

    def _refer_to_shared(self) -> None:
        """Tell the blocks where the tensors are that they read and do not own."""
        for name, placed in self._blocks.items():
            module, spec = self._module(f"structure.{name}"), placed.block.spec
            if isinstance(module, TintAttention) and isinstance(spec, AttentionSpec):
                shared = {f"p_{letter}": f"structure.{matrix}" for letter, matrix in placed.positions.items()}
                shared |= {key: f"rotary.{vector}" for key, vector in spec.vectors.items()}
            elif isinstance(module, VocabularyMLP) and isinstance(spec, VocabularySpec):
                shared = {"head": f"tables.{spec.head}"} | ({"bias": f"tables.{spec.bias}"} if spec.bias else {})
            else:
                continue
            module.references = {key: refer_to(self, tensor) for key, tensor in shared.items()}

    def zero_absent_terms(self) -> None:
        """Zero the terms of the definition that the construction leaves out, which no file and no state dict holds."""
        for name in self._blocks:
            self._init_weights(self._module(f"structure.{name}"))

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing is initialised at random: every tensor is compiled. Terms that are not stored are zero."""
        for name, buffer in list(module.named_buffers(recurse=False)):
            device = self.device if buffer.is_meta else buffer.device
            module.register_buffer(name, torch.zeros_like(buffer, dtype=self.dtype, device=device), persistent=False)

    def block(self, name: str) -> tuple[nn.Module, nn.Module | None]:
        """A structural block and its gate."""
        placed = self._blocks[name]
        module = self._module(f"structure.{placed.name}")
        return module, self._module(f"structure.{placed.gate}") if placed.gate else None

    def site(self, op: Op) -> SimModule | None:
        name = self._sites.get(op)
        module = None if name is None else self._module(f"sites.{name}")
        return module if isinstance(module, SimModule) else None

    def prefix(self, name: str) -> Prefix:
        module = self._module(f"prefixes.{name}")
        if not isinstance(module, Prefix):
            raise OptionError(WRAPPED.format(name=f"prefixes.{name}"))
        return module

    def rate(self, name: str) -> nn.Parameter:
        return self._parameter(f"rates.{name}")

    def rotary_table(self, name: str) -> nn.Parameter:
        return self._parameter(f"rotary.{name}")

    def table(self, name: str) -> nn.Parameter:
        return self._parameter(f"tables.{name}")

    def _parameter(self, name: str) -> nn.Parameter:
        module, leaf = owner(self, name)
        check_own(module, name)
        return getattr(module, leaf)

    def _module(self, name: str) -> nn.Module:
        module, leaf = owner(self, name)
        return getattr(module, leaf)

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
        shift_labels: Tensor | None = None,
        **unknown: Any,
    ) -> TintOutput:
        """Train the auxiliary on the text's train tokens and predict with the result, all in this pass.

        input_ids ``[B, T]``; train_mask ``[B, T]``, or ``[N, B, T]`` for tokens of its own in each of the N steps
        (default: the first ``floor(train_fraction * length)`` tokens of each row; with fewer than two, no update),
        loss_mask ``[B, T]`` over target tokens, attention_mask ``[B, T]``
        (padding) or ``[B, T, T]``; masks of any dtype, non-zero is true. position_ids ``[B, T]`` (default: counting
        tokens that are not padding). labels ``[B, T]``: targets of `loss`, -100 is ignored. inner_lr: instead of the
        stored rates a number; ``[B]``, one per example; ``[N]``, one per step; or ``[N, B]``, ``[N, 1]``, ``[1, B]``:
        one dimension is per example if its length is B, and per step otherwise. Or a mapping from the auxiliary's
        layers (-1: the final norm), and ``"default"``, to such rates; layers without one take the stored. max_batch:
        examples that fused execution runs at a time, ``auto``: as many as memory takes; None: all, refused if memory
        will not take them. num_items_in_batch: what the labels' summed losses are divided by (default: their number).
        shift_labels ``[B, T]``: in place of labels, each at the position before it. output_hidden_states,
        output_attentions, return_dict: as in transformers. Raises `InputError` for ids out of range, texts too long and
        shapes that do not fit.

        use_cache: return in `past_key_values` what tokens after these need, the updated weights included; given that
        again, input_ids are the new tokens alone, and nothing is trained. state: predict with the weights that `adapt`
        has returned, and train nothing. logits_to_keep: give logits of that many last tokens (0: of all). Autocast
        changes nothing: load in the dtype to compute in. unknown: other models' arguments, refused unless None.
        """
        check_kept(logits_to_keep)
        cached, length = bool(use_cache) or past_key_values is not None or state is not None, 0
        if isinstance(input_ids, Tensor):
            length = input_ids.shape[-1]
        refuse_arguments(unknown, length, cached)
        ids, past = check_ids(input_ids), check_cache(past_key_values)
        more: dict[str, tuple[Tensor, ...]] = {}
        given = {"train_mask": train_mask, "loss_mask": loss_mask, "inner_lr": inner_lr, "max_batch": max_batch}
        if cached:
            self._refuse_points(output_hidden_states, output_attentions)
            given |= {"attention_mask": attention_mask, "position_ids": position_ids, "return_before": return_before}
            found, cache = self._go_on(ids, past, state, use_cache, logits_to_keep, given)
        else:
            inputs = self._inputs(ids, train_mask, loss_mask, attention_mask, position_ids)
            outputs, cache = ("logits_before", "logits") if return_before else ("logits",), None
            asked = OnDemand.of(self.config, output_hidden_states, output_attentions)
            found = self._execute(inputs, inner_lr, (*outputs, *asked.labels(self.program)), max_batch)
            more = asked.fields(self.program, found)
            found = {label: found[label][:, -logits_to_keep:] for label in outputs}
        loss, shifted = None, shift_labels is not None
        labels = shift_labels if shifted else labels
        if labels is not None:
            logits = found["logits"]
            if logits_to_keep and isinstance(labels, Tensor) and labels.shape != logits.shape[:2]:
                raise InputError(
                    f"labels has shape {tuple(labels.shape)}; with logits_to_keep it must be that of the logits, "
                    f"{tuple(logits.shape[:2])}: pass the labels of the kept tokens, or leave logits_to_keep out."
                )
            targets = matching("labels", labels, tuple(logits.shape[:2]), logits.device)
            loss = next_token_loss(logits, targets, num_items_in_batch, shifted)
        tell_of_logits(self, found["logits"])
        before = found.get("logits_before")
        return TintOutput(loss=loss, logits=found["logits"], logits_before=before, past_key_values=cache, **more)

    def _inputs(
        self,
        input_ids: Tensor,
        train_mask: Tensor | None = None,
        loss_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Inputs:
        """What a text is run on, checked."""
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
        self._check(inputs)
        return inputs

    def _execute(
        self, inputs: Inputs, inner_lr: GivenRates, outputs: tuple[str, ...], max_batch: int | str | None
    ) -> dict[str, Tensor]:
        rate, wanted = self._rate_of(inner_lr, inputs.shape[0]), self._with_points(outputs)
        if self._choose_executor() == "literal":
            found = Machine(self, inputs, rate).run(wanted)
        else:
            found = run_fused(self, inputs, rate, wanted, max_batch)
        self._hand_out(found)
        return found

    def _check(self, inputs: Inputs, length: int = 0, ops: Iterable[Op] | None = None) -> None:
        """length: of the whole text, if these are only its last tokens; ops: those that will run, if not all."""
        refuse_float16(self.dtype)
        if torch.finfo(self.dtype).eps / 2 > self.program.attributes.get("softmax_unit", 1.0):
            raise OptionError(
                "The constants of this simulator's softmax heads are those of a longer floating type than "
                f"{str(self.dtype).removeprefix('torch.')}; load it as it was stored, or compile for this type."
            )
        length, limit = length or inputs.shape[1], self.layout.max_length
        if length > limit:
            raise InputError(
                f"The text has {length} tokens; this simulator was compiled for at most {limit}. Shorten it, or "
                "compile with a larger max length."
            )
        low, high = int(inputs.input_ids.min()), int(inputs.input_ids.max())
        if low < 0 or high >= self.config.vocab_size:
            bad = low if low < 0 else high
            raise InputError(f"Token id {bad} is out of range; the vocabulary has {self.config.vocab_size} entries.")
        for op in self.program.ops if ops is None else ops:
            if isinstance(op, sim.SimOp):
                op.check(inputs, self._parameter)

    def _rate_of(self, inner_lr: GivenRates | Rates, batch: int) -> Rates | None:
        """Rates for that many texts, in fp32 or better; None: as they are stored."""
        if inner_lr is None:
            return None
        dtype = self.dtype if self.dtype == torch.float64 else torch.float32
        return rates_of(inner_lr, self.program, batch, dtype, self.device)
