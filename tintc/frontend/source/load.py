"""`load_auxiliary`: the auxiliary model from wherever the user has it, checked before anything is built on it."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from functools import partial
from glob import escape, glob
from pathlib import Path
from typing import Any, TextIO

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel

from tintc.errors import ModelError, OptionError
from tintc.frontend.graph.calling import longest_sequence, text_config
from tintc.frontend.graph.trace_model import LONGEST, PROCESS_LOCK
from tintc.frontend.source.adapters import check_peft, is_adapted, resolved, with_adapter
from tintc.frontend.source.bounds import check_files
from tintc.frontend.source.failures import check_report, first_sentence, why_not_loaded
from tintc.frontend.source.gguf_header import check_gguf
from tintc.frontend.source.kinds import (
    check_kind,
    is_registered,
    method_of,
    not_a_model,
    simulator_sentence,
    unwrapped,
)
from tintc.frontend.source.modules import PADDING, count_ids, find_length, padding_of
from tintc.frontend.source.places import Place, configuration, find_place, has_weights
from tintc.frontend.source.quantised import check_packages, dequantised, dequantising
from tintc.frontend.source.trust import TRUSTED, trusted_code
from tintc.frontend.source.weightless import weightless_model
from tintc.frontend.source.wrappers import TEXT_PATH, loader_of, placeholders, text_path
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
) -> AuxiliarySource:
    """Return the model of a folder or the config.json in it, of a ``.gguf`` file or of a hub id, or one in memory.

    A model of images and text is taken for its decoder of text. A module that is none of transformers' is run on token
    ids to learn how many there are and how long texts may be. vocab_size: how many there must be (None: any number);
    trust_remote_code: run Python code that comes with the model. max_length None: the configuration's, at most 2048.
    Weights keep the checkpoint's dtype, and quantised ones are made plain numbers; docs/checkpoints.md has every form
    that is read. values: whether the weights are needed; if not they are not looked at, and a model without weight
    files has zeros. keep_adapters: leave adapters of peft as layers of their own; otherwise they are merged into the
    weights. with_tokenizer: whether the tokenizer is needed, whose reading is a quarter of a GGUF file's. Raises
    `ModelError` (missing or broken files, missing, misshapen or non-finite weights, a package that is
    missing, not a causal language model) and `OptionError` for a `max_length` the model does not have.
    """
    tokenizer = None
    tokenizer_problem = ""
    weights = MappedWeights()
    if isinstance(model_or_path, nn.Module):
        loaded = unwrapped(model_or_path)
        path = str(getattr(getattr(loaded, "config", None), "name_or_path", ""))
        name = Path(path).name or type(loaded).__name__
        kind = "memory"
        adapted = is_adapted(loaded)
        if adapted:
            loaded = resolved(loaded, name, keep_adapters, own=False)
    elif isinstance(model_or_path, str | os.PathLike):
        place = find_place(str(model_or_path), trust_remote_code)
        _check_folders(place)
        if configuration(place).get("model_type") == MODEL_TYPE:
            raise ModelError(simulator_sentence(place.name))
        name = place.name
        kind = place.format
        adapted = place.adapter is not None
        with _quiet():
            loaded = _load(place, values, keep_adapters)
            if with_tokenizer:
                tokenizer, tokenizer_problem = _tokenizer(place)
        if not adapted:  # else written to
            weights = MappedWeights(loaded.state_dict().values())
    else:
        raise ModelError(not_a_model(model_or_path))
    model = check_kind(loaded, name, keep_adapters)
    if values:
        _check_finite(model, name, weights)
    config = text_config(model)
    provenance = _provenance(model, name, kind)
    facts = {TOKENIZER_PROBLEM: tokenizer_problem, TRUSTED: trusted_code(model, tokenizer), TEXT_PATH: text_path(model)}
    if adapted:
        facts[ADAPTERS] = ADAPTER_FATES[keep_adapters]
    if is_registered(model):
        length = _length(name, longest_sequence(config), max_length)
        count = _vocabulary(name, config, vocab_size)
    else:
        count = count_ids(model, name, vocab_size)
        length = find_length(model, name, max_length)
        facts[PADDING] = padding_of(model)
    return AuxiliarySource(
        model=model,
        tokenizer=tokenizer,
        provenance=provenance | {key: said for key, said in facts.items() if said},
        vocab_size=count,
        max_length=length,
        dtype=torch.promote_types(torch.float32, _dtype(model)),
        bos_token_id=getattr(config, "bos_token_id", None),
        eos_token_id=getattr(config, "eos_token_id", None),
        pad_token_id=getattr(config, "pad_token_id", None),
        placeholders=placeholders(model),
        weights=weights,
    )


TOKENIZER_PROBLEM = "tokenizer_problem"
"""Key of the provenance's entry that says why the tokenizer beside the weights cannot be read."""
ADAPTERS = "adapters"
"""Key of the provenance's entry that says what became of adapters."""
ADAPTER_FATES = {False: "merged", True: "kept"}
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "merges.txt", "*.tiktoken")


def _load(place: Place, values: bool, keep_adapters: bool) -> torch.nn.Module:
    """Return the model at a place, with its adapter if it has one.

    Raises `ModelError` for every failure of transformers, and for weights that would be left random.
    """
    method = method_of(configuration(place).get("quantization_config"))
    if place.gguf_file is not None:
        check_gguf(Path(place.folder) / place.gguf_file)
    weightless = not values and (bool(method) or not has_weights(place))
    if method and not weightless:
        check_packages(place.name, method)
    wants_adapter = place.adapter is not None and (values or keep_adapters)
    if wants_adapter:
        check_peft(place.name)
    base = _base(place, weightless)
    if method and not weightless:
        base = dequantised(base, place.name, method)
    if not wants_adapter or place.adapter is None:
        return base
    return resolved(with_adapter(base, place.name, place.adapter), place.name, keep_adapters, own=True)


def _check_folders(place: Place) -> None:
    """Raise `ModelError` for files on this machine that are not to be opened or believed."""
    if place.gguf_file is None and place.local:
        check_files(place.folder, place.name)
    if place.adapter is not None:
        check_files(place.adapter, place.name)


def _base(place: Place, weightless: bool) -> PreTrainedModel:
    """Return the model at a place, with its weights or without, as transformers loads it."""
    try:
        make = _maker(place, weightless)
        try:
            loaded = make(attn_implementation="sdpa")
        except ValueError as error:
            if "attention" not in str(error):
                raise
            loaded = make(attn_implementation="eager")
    except Exception as error:
        raise ModelError(why_not_loaded(place, error)) from error
    if weightless:
        return loaded
    model, report = loaded
    check_report(place.name, report, model)
    return model.eval()


def _maker(place: Place, weightless: bool) -> Callable[..., Any]:
    """Return the function that makes the model; if it loads weights, it returns a report with it."""
    config = AutoConfig.from_pretrained(place.folder, **place.options)
    if weightless:
        return partial(weightless_model, config, trust_remote_code=place.trusted)
    # Files that torch has pickled are read by its weights-only loader, which runs no code.
    options: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True, "weights_only": True}
    options |= {"config": config, "dtype": "auto"}
    loader: Any = AutoModelForCausalLM
    if place.gguf_file:
        options |= {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
    else:
        loader = loader_of(config)
        if getattr(config, "quantization_config", None) is not None:
            config.quantization_config = dequantising(config.quantization_config)
    return partial(loader.from_pretrained, place.folder, **place.options, **options)


def _tokenizer(place: Place) -> tuple[Any | None, str]:
    """Return the tokenizer beside the weights, and why it cannot be read; None if there is none or it cannot.

    An adapter's own comes before its base's. transformers makes an empty tokenizer for some model types when a folder
    has none; that would only mislead.
    """
    options = place.options
    folder = place.folder
    if place.adapter is not None and _has_tokenizer(place.adapter):
        folder = place.adapter
        options = {"local_files_only": True, "trust_remote_code": False}
    elif place.local and not place.gguf_file and not _has_tokenizer(folder):
        return None, ""
    try:
        return AutoTokenizer.from_pretrained(folder, **options), ""
    except Exception as error:  # of transformers, or of a package that it asks for
        return None, first_sentence(error)


def _has_tokenizer(folder: str) -> bool:
    return any(glob(f"{escape(folder)}/{name}") for name in TOKENIZER_FILES)


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


def _dtype(model: nn.Module) -> torch.dtype:
    """Return the type of the model's weights, that of the first that is a floating one."""
    return next(weight.dtype for weight in model.parameters() if weight.is_floating_point())


def _provenance(model: nn.Module, name: str, kind: str) -> dict[str, Any]:
    config: Any = getattr(model, "config", None)
    architectures = getattr(config, "architectures", None)
    if not isinstance(architectures, list | tuple) or not all(isinstance(one, str) for one in architectures):
        architectures = None
    return {
        "source": name,
        "format": kind,
        "model_type": getattr(config, "model_type", ""),
        "architectures": list(architectures or [type(model).__name__]),
        "parameters": sum(tensor.numel() for tensor in model.parameters()),
        "dtype": str(_dtype(model)).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


@contextmanager
def _quiet() -> Iterator[None]:
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
