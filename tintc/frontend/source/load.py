"""`load_auxiliary`: the auxiliary model from wherever the user has it, checked before anything is built on it."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
import transformers
from torch import nn

from tintc.errors import ModelError, OptionError
from tintc.frontend.graph.calling import longest_sequence, text_config
from tintc.frontend.graph.trace_model import LONGEST, PROCESS_LOCK
from tintc.frontend.source.adapters import is_adapted, resolved
from tintc.frontend.source.kinds import (
    check_kind,
    is_registered,
    not_a_model,
    simulator_sentence,
    unwrapped,
)
from tintc.frontend.source.known_types import refuse_known_configuration, refuse_known_model
from tintc.frontend.source.model_at import check_folders, model_at
from tintc.frontend.source.modules import PADDING, count_ids, find_length, padding_of
from tintc.frontend.source.places import Place, configuration, find_place
from tintc.frontend.source.provenance import ADAPTER_FATES, ADAPTERS, TOKENIZER_PROBLEM, provenance_of, stored_dtype
from tintc.frontend.source.tokenizer_at import tokenizer_at
from tintc.frontend.source.trust import TRUSTED, trusted_code
from tintc.frontend.source.wrappers import TEXT_PATH, placeholders, text_path
from tintc.hub import MODEL_TYPE
from tintc.ir.finite import is_finite
from tintc.mapped import MappedWeights


@dataclass(frozen=True)
class AuxiliarySource:
    """A decoder that is complete, finite and a causal language model.

    model: of transformers, or any module that makes logits of token ids; vocab_size: V; placeholders: token ids that
    stand for an image or the like, which a decoder of text alone does not take;
    tokenizer: None if there is none beside the weights that can be read; weights: the mapped files that the model's
    weights lie in, none for a model that was in memory; provenance: where it came from, plain JSON values, the same for
    the same input on every machine; dtype: float32, or the checkpoint's where that is longer.
    """

    model: nn.Module
    tokenizer: Any | None
    provenance: dict[str, Any]
    vocab_size: int
    max_length: int
    dtype: torch.dtype
    bos_token_id: int | None
    eos_token_id: int | list[int] | None
    pad_token_id: int | None
    placeholders: tuple[int, ...] = ()
    weights: MappedWeights = field(default_factory=MappedWeights)


def load_auxiliary(
    model_or_path: nn.Module | str | os.PathLike[str],
    max_length: int | None = None,
    values: bool = True,
    vocab_size: int | None = None,
    trust_remote_code: bool = False,
    keep_adapters: bool = False,
    with_tokenizer: bool = True,
    try_anyway: bool = True,
) -> AuxiliarySource:
    """Return the model of a folder or the config.json in it, of a ``.gguf`` file or of a hub id, or one in memory.

    A model of images and text is taken for its decoder of text. A module that is none of transformers' is run on token
    ids to learn how many there are and how long texts may be. vocab_size: how many there must be (None: any number);
    trust_remote_code: run Python code that comes with the model. max_length None: the configuration's, at most 2048.
    Weights keep the checkpoint's dtype, and quantised ones are made plain numbers; docs/checkpoints.md has every form
    that is read. values: whether the weights are needed; if not, a model without weight files has zeros. keep_adapters:
    leave adapters of peft as layers of their own, and do not merge them. with_tokenizer: whether the tokenizer is
    needed, whose reading is a quarter of a GGUF file's. try_anyway: load what is known not to compile too. Raises
    `ModelError` (missing or broken files, missing, misshapen or non-finite weights, a package that is missing, not a
    causal language model, or known not to compile) and `OptionError` for a `max_length` the model does not have.
    """
    if isinstance(model_or_path, nn.Module):
        loaded = _in_memory(model_or_path, keep_adapters)
    elif isinstance(model_or_path, str | os.PathLike):
        place = find_place(str(model_or_path), trust_remote_code)
        loaded = _at_place(place, values, keep_adapters, with_tokenizer, try_anyway)
    else:
        raise ModelError(not_a_model(model_or_path))
    model = check_kind(loaded.model, loaded.name, keep_adapters)
    if not try_anyway:
        refuse_known_model(loaded.name, model)
    if values:
        _check_finite(model, loaded.name, loaded.weights)
    facts = _facts(loaded, model, keep_adapters)
    config = text_config(model)
    if is_registered(model):
        length = _length(loaded.name, longest_sequence(config), max_length)
        count = _vocabulary(loaded.name, config, vocab_size)
    else:
        count = count_ids(model, loaded.name, vocab_size)
        length = find_length(model, loaded.name, max_length)
        facts[PADDING] = padding_of(model)
    return AuxiliarySource(
        model=model,
        tokenizer=loaded.tokenizer,
        provenance=provenance_of(model, loaded.name, loaded.kind) | facts,
        vocab_size=count,
        max_length=length,
        dtype=torch.promote_types(torch.float32, stored_dtype(model)),
        bos_token_id=getattr(config, "bos_token_id", None),
        eos_token_id=getattr(config, "eos_token_id", None),
        pad_token_id=getattr(config, "pad_token_id", None),
        placeholders=placeholders(model),
        weights=loaded.weights,
    )


@dataclass
class _Loaded:
    """A model before it is checked. kind: where it was: ``memory``, or the format of its files; adapted: whether peft
    has given it adapters."""

    model: nn.Module
    name: str
    kind: str
    adapted: bool
    tokenizer: Any | None = None
    tokenizer_problem: str = ""
    weights: MappedWeights = field(default_factory=MappedWeights)


def _in_memory(model: nn.Module, keep_adapters: bool) -> _Loaded:
    """Return a model that a caller has, without what wraps it; adapters stay, or a copy has them merged."""
    model = unwrapped(model)
    path = str(getattr(getattr(model, "config", None), "name_or_path", ""))
    name = Path(path).name or type(model).__name__
    adapted = is_adapted(model)
    if adapted:
        model = resolved(model, name, keep_adapters, own=False)
    return _Loaded(model, name, "memory", adapted)


def _at_place(place: Place, values: bool, keep_adapters: bool, with_tokenizer: bool, try_anyway: bool) -> _Loaded:
    """Return the model and the tokenizer at a place; errors as of `load_auxiliary`, `ModelError` for a simulator."""
    if not (try_anyway or place.gguf_file):
        refuse_known_configuration(place.name, configuration(place), place.trusted)
    check_folders(place)
    if configuration(place).get("model_type") == MODEL_TYPE:
        raise ModelError(simulator_sentence(place.name))
    tokenizer = None
    problem = ""
    with quietly():
        model = model_at(place, values, keep_adapters)
        if with_tokenizer:
            tokenizer, problem = tokenizer_at(place)
    loaded = _Loaded(model, place.name, place.format, place.adapter is not None, tokenizer, problem)
    if not loaded.adapted:  # an adapter is written into the weights, which are then no file's any more
        loaded.weights = MappedWeights(model.state_dict().values())
    return loaded


def _facts(loaded: _Loaded, model: nn.Module, keep_adapters: bool) -> dict[str, Any]:
    """Return the entries of the provenance that say what is unusual about a model."""
    facts = {
        TOKENIZER_PROBLEM: loaded.tokenizer_problem,
        TRUSTED: trusted_code(model, loaded.tokenizer),
        TEXT_PATH: text_path(model),
    }
    if loaded.adapted:
        facts[ADAPTERS] = ADAPTER_FATES[keep_adapters]
    return {key: said for key, said in facts.items() if said}


def _check_finite(model: nn.Module, name: str, weights: MappedWeights) -> None:
    """Raise `ModelError` if a weight is not in memory, NaN or infinite."""
    state = model.state_dict()
    if any(tensor.is_meta for tensor in state.values()):
        raise ModelError(f"{name} has weights that are not in memory; load it without offloading.")
    for key, tensor in state.items():
        if tensor.is_floating_point() and not is_finite(tensor):
            raise ModelError(f"{name} has NaN or infinite weights in {key}; such a model cannot be trained further.")
        weights.release()


def _length(name: str, longest: int | None, wanted: int | None) -> int:
    """Return the longest text that the result must serve; raise `OptionError` if the model cannot."""
    if wanted is None:
        return min(longest or LONGEST, LONGEST)
    if longest is None and wanted < 2:
        raise OptionError(f"The maximal length is {wanted}; it must be at least 2.")
    if longest is not None and not 2 <= wanted <= longest:
        raise OptionError(
            f"The maximal length is {wanted}; it must be between 2 and {longest}, the positions that {name} has."
        )
    return wanted


def _vocabulary(name: str, config: Any, wanted: int | None) -> int:
    """Return the number of token ids that a configuration says; raise `OptionError` if another is wanted."""
    if wanted not in (None, config.vocab_size):
        raise OptionError(f"The vocab_size is {wanted}, and {name} has {config.vocab_size} token ids; leave it out.")
    return config.vocab_size


@contextmanager
def quietly() -> Iterator[None]:
    """Drop reports of transformers (ours follow as errors), and progress bars unless somebody watches.

    Both are settings of the whole process, so that one thread at a time loads.
    """
    bars: TextIO = io.StringIO()
    with PROCESS_LOCK:
        if sys.stderr.isatty():
            bars = sys.stderr
        level = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity(logging.ERROR)
        try:
            with redirect_stderr(bars):
                yield
        finally:
            transformers.logging.set_verbosity(level)
