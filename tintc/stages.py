"""The stages of a compilation, from a model to a simulator: loading, importing, lowering, assembling."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tintc.errors import ModelError
from tintc.frontend.agreement import check_agreement
from tintc.frontend.alone import decoder_alone
from tintc.frontend.described import describe_model
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.importer import import_graph
from tintc.frontend.padding import reading_biases
from tintc.frontend.source.adapters import kept_adapters
from tintc.frontend.source.load import AuxiliarySource, load_auxiliary
from tintc.frontend.source.modules import PADDING
from tintc.frontend.source.provenance import ADAPTER_FATES, ADAPTERS
from tintc.frontend.source.trust import TRUSTED
from tintc.frontend.source.wrappers import TEXT_PATH
from tintc.ir.core import Program
from tintc.ir.text import print_program
from tintc.lowering.emission.emit import emit, specs, stored_dtype
from tintc.lowering.pipeline import AUXILIARY_PASSES, PASSES_BEFORE_LAYOUT, SIMULATOR_PASSES, run_passes
from tintc.options import Options
from tintc.runtime.artefact.beside import text_digest
from tintc.runtime.artefact.checks import of_program, options_digest
from tintc.runtime.artefact.config import TintConfig
from tintc.runtime.artefact.safetensors_writer import LazyTensor
from tintc.runtime.artefact.structure_file import structure_digest
from tintc.runtime.model.causal_lm import TintForCausalLM
from tintc.runtime.model.precision import warn_if_short


@dataclass(frozen=True)
class Auxiliary:
    """An imported decoder: its program, its tensors by the names that parameters have as source, and its graph.

    reading_biases: the program if padding reads as biases, of which the graph says nothing (None: it makes no
    difference).
    """

    program: Program
    tensors: Mapping[str, Tensor]
    graph: CapturedGraph
    reading_biases: Program | None = None


def load_source(
    model_or_path: nn.Module | str | os.PathLike[str],
    options: Options,
    values: bool = True,
    vocab_size: int | None = None,
    trust_remote_code: bool = False,
) -> AuxiliarySource:
    """Return the model that is to be compiled with these options; arguments and errors as of `load_auxiliary`."""
    return load_auxiliary(
        model_or_path,
        options.max_length,
        values,
        vocab_size,
        trust_remote_code,
        keep_adapters=options.keep_adapters,
        try_anyway=options.try_anyway,
    )


def import_auxiliary(source: AuxiliarySource, options: Options | None = None) -> Auxiliary:
    """Capture the model's graph, import it, and bring it into canonical form, with layers assigned."""
    graph = capture(source.model, source.max_length, source.provenance["source"])
    program = run_passes(AUXILIARY_PASSES, import_graph(graph), options or Options())
    return Auxiliary(program, graph.tensors, graph, reading_biases(graph, program))


def lower(auxiliary: Program, options: Options, max_length: int) -> Program:
    """Return the straight-line simulator program of an auxiliary, with layout and memory slots."""
    return run_passes(SIMULATOR_PASSES, auxiliary, replace(options, max_length=max_length))


def lower_to_modules(auxiliary: Program, options: Options) -> Program:
    """Return the straight-line simulator program of an auxiliary that has no layout yet."""
    return run_passes(PASSES_BEFORE_LAYOUT, auxiliary, options)


def assemble(
    program: Program, auxiliary: Auxiliary, source: AuxiliarySource, options: Options, dtype: torch.dtype
) -> TintForCausalLM:
    """Emit the tensors and build the model that holds them."""
    config = configure(program, auxiliary, source, options)
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


def streamed_tensors(
    program: Program, auxiliary: Auxiliary, source: AuxiliarySource, options: Options, dtype: torch.dtype
) -> tuple[TintConfig, dict[str, LazyTensor]]:
    """Return (configuration, tensors by name) of the model that `assemble` builds; the tensors are yet to be
    computed."""
    config = configure(program, auxiliary, source, options)
    config.dtype = dtype
    tensors = {
        name: LazyTensor(spec.shape, stored_dtype(name, dtype), spec.build)
        for name, spec in specs(program, auxiliary.tensors, options.inner_lr).items()
    }
    return config, tensors


def _described(source: AuxiliarySource, auxiliary: Auxiliary) -> str | None:
    """Return what is kept of the model so that it can be built again, of a wrapper its decoder of text; None if it is
    not what transformers makes of a configuration, or has weights that a simulator does not hold."""
    model = source.model
    if not isinstance(model, PreTrainedModel) or {PADDING, TRUSTED}.intersection(source.provenance):
        return None
    if source.provenance.get(ADAPTERS) == ADAPTER_FATES[True]:
        kept = kept_adapters(model)
        if kept is None or TEXT_PATH in source.provenance:
            return None
        return describe_model(model, auxiliary.graph, kept[1], kept[0])
    if TEXT_PATH not in source.provenance:
        return describe_model(model, auxiliary.graph)
    alone = decoder_alone(model)
    if alone is None:
        return None
    name = type(alone.model).__name__
    try:  # a wrapper may do more to its decoder's logits
        check_agreement(name, alone.model, auxiliary.program, auxiliary.tensors, source.max_length)
    except ModelError:
        return None
    return describe_model(alone.model, auxiliary.graph, alone.places)


def configure(program: Program, auxiliary: Auxiliary, source: AuxiliarySource, options: Options) -> TintConfig:
    """Return the configuration of a simulator, with digests of its program and of the recorded options."""
    text = print_program(program)
    config = TintConfig(
        program=text,
        **of_program(program),
        **options.recorded("config"),
        provenance=source.provenance,
        placeholders=list(source.placeholders),
        bos_token_id=source.bos_token_id,
        eos_token_id=source.eos_token_id,
        pad_token_id=source.pad_token_id,
        architectures=["TintForCausalLM"],
    )
    config.auxiliary = print_program(auxiliary.program)
    config.described = _described(source, auxiliary)
    config.digests = {"program": text_digest(text), "options": options_digest(config.to_dict())}
    return config
