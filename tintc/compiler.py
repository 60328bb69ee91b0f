"""The compiler, from a Hugging Face decoder to a running simulator: one call per stage."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

import torch
from torch import Tensor, nn

from tintc.errors import InputError, OptionError
from tintc.frontend.agreement import check_agreement
from tintc.frontend.exact_agreement import check_graph
from tintc.frontend.source.load import AuxiliarySource
from tintc.frontend.source.modules import PADDING
from tintc.frontend.source.provenance import ADAPTER_FATES, ADAPTERS, TOKENIZER_PROBLEM
from tintc.frontend.source.sample import sample
from tintc.frontend.source.wrappers import TEXT_PATH
from tintc.ir.auxiliary import Recurrence
from tintc.ir.core import Program
from tintc.lowering.passes.calibrate_softmax_heads import TOKENS, calibrate_softmax_heads, check_precise
from tintc.option_arguments import takes_options
from tintc.options import Options
from tintc.progress import progress as shown_stages
from tintc.runtime.artefact.folder_writer import check_output
from tintc.runtime.artefact.safetensors_writer import MAX_SHARD_SIZE, parse_size
from tintc.runtime.artefact.streaming import write_streamed
from tintc.runtime.load import load
from tintc.runtime.model.causal_lm import TintForCausalLM
from tintc.runtime.model.precision import as_dtype
from tintc.stages import Auxiliary, assemble, import_auxiliary, load_source, lower, streamed_tensors

logger = logging.getLogger("tintc")


@takes_options
def compile(
    model_or_path: nn.Module | str | os.PathLike[str],
    options: Options,
    calibration: str | Tensor | None = None,
    output: str | os.PathLike[str] | None = None,
    max_shard_size: str | int = MAX_SHARD_SIZE,
    force: bool = False,
    progress: bool = False,
    vocab_size: int | None = None,
    trust_remote_code: bool = False,
) -> TintForCausalLM:
    """Compile a decoder into a TinT simulator.

    model_or_path: a transformers model, a local folder, a hub id or a GGUF file; or any module that maps token ids
    ``[B, T]`` to logits ``[B, T, V]``, a tensor, the first of a tuple or an attribute `logits`. Of a model of images
    and text the decoder of text is compiled. The options are keywords, or one `tintc.options.Options`:

    {options}

    calibration: a text or token ids ``[T]`` from which the constants of softmax heads are taken (None: a built-in
    text). output: a folder to write the simulator to, tensor by tensor and in one atomic step, instead of building it
    in memory; what is returned is loaded from it and lies in its mapped files. max_shard_size: of the files there;
    force: replace what is there. progress: show the stages on standard error, as they begin. vocab_size: V, which is
    read off the model unless it is given. trust_remote_code: run Python code that comes with the model.

    Raises `ModelError` if the model cannot be read, or computes something else than its graph was read as;
    `UnsupportedModelError` listing every operation no rule takes; `OptionError` for options out of range; and
    `ArtefactError` if the output cannot be written.
    """
    shard_size = parse_size(max_shard_size)
    check_request(options, calibration, output, force)
    with shown_stages(progress):
        logger.info("loading the model")
        source = load_source(model_or_path, options, vocab_size=vocab_size, trust_remote_code=trust_remote_code)
        dtype = dtype_of(options, source)
        check_adapters(options, source)
        logger.info("capturing and importing its graph")
        auxiliary = import_auxiliary(source, options)
        warn_of_constants(auxiliary.program, options)
        logger.info("comparing its program with the model")
        auxiliary = agreeing(auxiliary, source)
        logger.info("lowering to simulator modules")
        program = lower(auxiliary.program, options, source.max_length)
        if options.linear_attention == "softmax":
            logger.info("calibrating softmax heads")
            tensors = source.weights.read_sparingly(auxiliary.tensors)
            ids = calibration_ids(source, calibration)
            program = calibrate_softmax_heads(program, tensors, options.inner_lr, dtype, ids)
        source.weights.release()
        if output is None:
            logger.info("emitting tensors")
            return assemble(program, auxiliary, source, options, dtype)
        logger.info("writing %s", output)
        config, planned = streamed_tensors(program, auxiliary, source, options, dtype)
        write_streamed(output, config, planned, source.tokenizer, shard_size, force, source.weights.release)
        return load(output)


def check_request(
    options: Options, calibration: str | Tensor | None, output: str | os.PathLike[str] | None, force: bool
) -> None:
    """Raise what can be raised before the long work: `OptionError` for a calibration text of which nothing would be
    made, `ArtefactError` for a folder that cannot be written."""
    if calibration is not None and options.linear_attention != "softmax":
        raise OptionError(
            "A calibration text is for softmax heads (--linear-attention softmax); choose them, or leave the text out."
        )
    if output is not None:
        check_output(output, force)


def dtype_of(options: Options, source: AuxiliarySource) -> torch.dtype:
    """Return the dtype that the simulator stores and computes in; raise `OptionError` if softmax heads need another."""
    if problem := source.provenance.get(TOKENIZER_PROBLEM):
        logger.warning("The simulator gets no tokenizer, because the model's cannot be read: %s", problem)
    if part := source.provenance.get(TEXT_PATH):
        logger.warning("What is compiled is %s.", part)
    if padding := source.provenance.get(PADDING):
        said = (source.provenance["source"], source.vocab_size, source.max_length, padding)
        logger.warning("%s is run as a module on token ids: %d ids, texts of up to %d tokens, padding %s.", *said)
    dtype = as_dtype(options.dtype) or source.dtype
    if options.linear_attention == "softmax":
        check_precise(dtype)
        warn_of_coarse_heads(dtype)
    return dtype


def warn_of_coarse_heads(dtype: torch.dtype) -> None:
    """Log that softmax heads round a trained model's update away, unless they are in fp64."""
    if dtype != torch.float64:
        logger.warning(
            "Softmax heads in float32 leave an error of the size of the update in trained models; float64 is precise "
            "enough (--dtype float64)."
        )


def check_adapters(options: Options, source: AuxiliarySource) -> None:
    """Raise `OptionError` if adapters shall descend and the model has none that are layers of their own."""
    if "lora" in options.groups and source.provenance.get(ADAPTERS) != ADAPTER_FATES[True]:
        raise OptionError(
            "The group lora is of adapters that are kept as layers; pass a model with adapters of peft, and "
            "keep_adapters=True (--keep-adapters)."
        )


def warn_of_constants(program: Program, options: Options) -> None:
    """Log what even the full gradient holds constant."""
    if options.gradient == "full" and any(isinstance(op, Recurrence) for op in program.ops):
        logger.warning(
            "The full gradient of this model leaves out its recurrences' queries, keys and gates, which are constants."
        )


def agreeing(auxiliary: Auxiliary, source: AuxiliarySource) -> Auxiliary:
    """Return the auxiliary with that of its programs which computes what the model does; raise `ModelError` if none
    does."""
    name = source.provenance["source"]
    tensors = source.weights.read_sparingly(auxiliary.tensors)
    check_graph(name, auxiliary.graph, auxiliary.program, tensors)
    programs = (auxiliary.program, auxiliary.reading_biases)
    with source.weights.sparing(source.model):
        program = check_agreement(name, source.model, programs, tensors, source.max_length, source.placeholders)
    return replace(auxiliary, program=program)


def calibration_ids(source: AuxiliarySource, calibration: str | Tensor | None) -> Tensor:
    """Return token ids ``[T]`` of the calibration text, as many as are used.

    Raises `InputError` for ids out of range.
    """
    length = min(TOKENS, source.max_length)
    vocab_size = source.vocab_size
    if not isinstance(calibration, Tensor):
        calibration = sample(source.tokenizer, vocab_size, length, calibration, source.placeholders)
    ids = calibration.flatten()[:length]
    if len(ids) < 2 or not (int(ids.min()) >= 0 and int(ids.max()) < vocab_size):
        raise InputError(f"The calibration text needs at least two tokens, with ids from 0 to {vocab_size - 1}.")
    return ids
