"""The compiler, from a Hugging Face decoder to a running simulator: one call per stage."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tintc.errors import InputError
from tintc.frontend.agreement import check_agreement
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.importer import import_graph
from tintc.frontend.source.load import TOKENIZER_PROBLEM, AuxiliarySource, load_auxiliary
from tintc.frontend.source.sample import sample
from tintc.ir.core import Program
from tintc.ir.text import print_program
from tintc.lowering.emission.emit import emit, specs, stored_dtype
from tintc.lowering.options import DEFAULT_DESCEND, DEFAULT_FD_STEP, Options
from tintc.lowering.passes.allocate_slots import allocate_slots
from tintc.lowering.passes.assign_layers import assign_roles
from tintc.lowering.passes.canonicalise import canonicalise
from tintc.lowering.passes.differentiate import differentiate
from tintc.lowering.passes.eliminate_common import eliminate_common
from tintc.lowering.passes.plan_layout import plan_layout
from tintc.lowering.passes.softmax_heads import TOKENS, check_precise, soften
from tintc.lowering.passes.unroll_steps import unroll_steps
from tintc.progress import progress as shown_stages
from tintc.runtime.artefact.beside import text_digest
from tintc.runtime.artefact.checks import of_program, options_digest
from tintc.runtime.artefact.config import TintConfig
from tintc.runtime.artefact.folder import as_dtype, check_output, load, structure_digest
from tintc.runtime.artefact.safetensors_writer import MAX_SHARD_SIZE, Planned, parse_size
from tintc.runtime.artefact.streaming import write_streamed
from tintc.runtime.model.causal_lm import TintForCausalLM
from tintc.runtime.model.precision import warn_if_short

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger("tintc")


def compile(
    model_or_path: PreTrainedModel | str | os.PathLike[str],
    n_steps: int = 1,
    n_update_layers: int | None = None,
    inner_lr: float = 1e-4,
    loss: str = "ce",
    descend: str = DEFAULT_DESCEND,
    semantics: str = "exact",
    stack: int | None = None,
    shards: int | None = None,
    head_width: int | None = None,
    heads: int | None = None,
    max_length: int | None = None,
    fd_step: float | None = None,
    fd_scheme: str | None = None,
    reuse: str = "layer",
    dtype: torch.dtype | str | None = None,
    linear_attention: str = "linear",
    calibration: str | Tensor | None = None,
    output: str | os.PathLike[str] | None = None,
    max_shard_size: str | int = MAX_SHARD_SIZE,
    force: bool = False,
    progress: bool = False,
) -> TintForCausalLM:
    """Compile a decoder into a TinT simulator.

    model_or_path: a transformers model, a local folder, a hub id or a GGUF file. n_steps: simulated gradient steps;
    n_update_layers: top layers that are updated (None: all); inner_lr: learning rate of gradients summed over train
    tokens; loss ``ce``, ``quad`` or ``mse``; descend: the groups of parameters that are updated, with commas between
    (``values``, ``out``, ``ffn``, ``norm-bias``, ``norm-gain``); semantics ``exact`` or ``paper-code`` (the authors'
    implementation); stack, shards: weight rows per prefix and parts of a row (None: the cheapest); head_width, heads:
    width and number of the simulator's heads (None: the least that will do); max_length: longest text in tokens (None:
    the model's, at most 2048); fd_step: step of the finite differences (None: 1e-3); fd_scheme: how it is chosen,
    ``fixed`` or ``token`` (None: token in ``exact``); reuse: which modules share structural tensors, ``layer`` (those
    of all layers, so that they are stored once) or ``none``; dtype: what it
    stores and computes in (None: float32, or float64 where the model is; bfloat16 rounds the update);
    linear_attention: ``linear``, or ``softmax``: every linear head as two softmax heads and a sink; calibration: a text
    or token ids ``[T]`` from which the constants of softmax heads are taken (None: a built-in text).

    output: a folder to write the simulator to, tensor by tensor and in one atomic step, instead of building it in
    memory; what is returned is loaded from it and lies in its mapped files. max_shard_size: of the files there; force:
    replace what is there. progress: show the stages on standard error, as they begin.

    Raises `ModelError` if the model cannot be read, or computes something else than its graph was read as;
    `UnsupportedModelError` listing every operation no rule takes; `OptionError` for options out of range; and
    `ArtefactError` if the output cannot be written.
    """
    options = Options(
        n_steps=n_steps,
        n_update_layers=n_update_layers,
        inner_lr=inner_lr,
        loss=loss,
        descend=descend,
        semantics=semantics,
        stack=stack,
        shards=shards,
        head_width=head_width,
        heads=heads,
        max_length=max_length,
        fd_step=DEFAULT_FD_STEP if fd_step is None else fd_step,
        fd_scheme=fd_scheme,
        reuse=reuse,
        linear_attention=linear_attention,
    )
    with shown_stages() if progress else nullcontext():
        return _compile(model_or_path, options, dtype, calibration, output, max_shard_size, force)


def _compile(
    model_or_path: PreTrainedModel | str | os.PathLike[str],
    options: Options,
    dtype: torch.dtype | str | None,
    calibration: str | Tensor | None,
    output: str | os.PathLike[str] | None,
    max_shard_size: str | int,
    force: bool,
) -> TintForCausalLM:
    """All stages, the checks that need no model first."""
    kind, shard_size = as_dtype(dtype), parse_size(max_shard_size)
    options.check_calibration(calibration is not None)
    if output is not None:
        check_output(output, force)
    logger.info("loading the model")
    source = load_auxiliary(model_or_path, options.max_length)
    if problem := source.provenance.get(TOKENIZER_PROBLEM):
        logger.warning("The simulator gets no tokenizer, because the model's cannot be read: %s", problem)
    kind = kind or source.dtype
    if options.linear_attention == "softmax":
        check_precise(kind)
    auxiliary, program = to_modules(source, options, kind, calibration)
    if output is None:
        logger.info("emitting tensors")
        return assemble(program, auxiliary, source, options, kind)
    logger.info("writing %s", output)
    config, tensors = plan(program, auxiliary, source, options, kind)
    write_streamed(output, config, tensors, source.tokenizer, shard_size, force, source.weights.release)
    return load(output)


@dataclass(frozen=True)
class Auxiliary:
    """An imported decoder: its program, and the tensors that its parameters' sources name."""

    program: Program
    tensors: Mapping[str, Tensor]


def to_modules(
    source: AuxiliarySource, options: Options, dtype: torch.dtype, calibration: str | Tensor | None
) -> tuple[Auxiliary, Program]:
    """The stages from a model to a simulator program."""
    logger.info("capturing and importing its graph")
    auxiliary = import_auxiliary(source)
    tensors = source.weights.read_sparingly(auxiliary.tensors)
    logger.info("comparing its program with the model")
    with source.weights.sparing(source.model):
        check_agreement(source.provenance["source"], source.model, auxiliary.program, tensors, source.max_length)
    ids = calibration_ids(source, calibration) if options.linear_attention == "softmax" else None
    logger.info("lowering to simulator modules")
    program = lower(auxiliary.program, options, source.max_length)
    if ids is not None:
        logger.info("calibrating softmax heads")
        program = soften(program, tensors, options.inner_lr, dtype, ids)
    source.weights.release()
    return auxiliary, program


def import_auxiliary(source: AuxiliarySource) -> Auxiliary:
    """Capture, import, canonicalise and assign roles."""
    captured = capture(source.model, source.max_length, source.provenance["source"])
    program = import_graph(captured)
    program = canonicalise(program)
    return Auxiliary(assign_roles(program), captured.tensors)


def lower(auxiliary: Program, options: Options, max_length: int) -> Program:
    """Auxiliary program -> straight-line simulator program with layout and memory slots."""
    program = lower_to_modules(auxiliary, options)
    program = plan_layout(program, options, max_length)
    return allocate_slots(program)


def calibration_ids(source: AuxiliarySource, calibration: str | Tensor | None) -> Tensor:
    """Token ids ``[T]`` of the calibration text, as many as are used. Raises `InputError` for ids out of range."""
    length, vocab_size = min(TOKENS, source.max_length), source.model.config.get_text_config().vocab_size
    if not isinstance(calibration, Tensor):
        calibration = sample(source.tokenizer, vocab_size, length, calibration)
    ids = calibration.flatten()[:length]
    if len(ids) < 2 or not (int(ids.min()) >= 0 and int(ids.max()) < vocab_size):
        raise InputError(f"The calibration text needs at least two tokens, with ids from 0 to {vocab_size - 1}.")
    return ids


def lower_to_modules(auxiliary: Program, options: Options) -> Program:
    """Auxiliary program -> straight-line simulator program that has no layout yet."""
    program = differentiate(auxiliary, options)
    program = unroll_steps(program)
    return eliminate_common(program)


def assemble(
    program: Program, auxiliary: Auxiliary, source: AuxiliarySource, options: Options, dtype: torch.dtype
) -> TintForCausalLM:
    """Emit the tensors and build the model that holds them."""
    config = configure(program, source, options)
    config.auxiliary = print_program(auxiliary.program)
    with torch.device("meta"):
        sim = TintForCausalLM(config)
    state = dict(emit(program, auxiliary.tensors, options.inner_lr, dtype))
    config.digests["structure"] = structure_digest(state.items())
    sim.load_state_dict(state, strict=True, assign=True)
    sim.zero_absent_terms()
    config.dtype = dtype
    sim.trust()
    warn_if_short(dtype)
    sim.tokenizer = source.tokenizer
    return sim.eval()


def plan(
    program: Program, auxiliary: Auxiliary, source: AuxiliarySource, options: Options, dtype: torch.dtype
) -> tuple[TintConfig, dict[str, Planned]]:
    """What `assemble` builds, as a configuration and tensors that are yet to be computed."""
    config = configure(program, source, options)
    config.auxiliary, config.dtype = print_program(auxiliary.program), dtype
    found = specs(program, auxiliary.tensors, options.inner_lr).items()
    return config, {name: Planned(spec.shape, stored_dtype(name, dtype), spec.build) for name, spec in found}


def configure(program: Program, source: AuxiliarySource, options: Options) -> TintConfig:
    text = print_program(program)
    config = TintConfig(
        program=text,
        **of_program(program),
        inner_lr=options.inner_lr,
        loss=options.loss,
        descend=options.descend,
        fd_scheme=options.difference.scheme,
        fd_step=options.fd_step,
        linear_attention=options.linear_attention,
        provenance=source.provenance,
        bos_token_id=source.bos_token_id,
        eos_token_id=source.eos_token_id,
        pad_token_id=source.pad_token_id,
        architectures=["TintForCausalLM"],
    )
    config.digests = {"program": text_digest(text), "options": options_digest(config.to_dict())}
    return config
