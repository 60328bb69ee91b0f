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
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tintc.errors import ModelError, OptionError
from tintc.frontend.graph.trace_model import LONGEST, longest_sequence
from tintc.frontend.source.failures import check_report, first_sentence, why_not_loaded
from tintc.frontend.source.kinds import check_kind, not_a_model, simulator_sentence, unwrapped
from tintc.frontend.source.mapped import MappedWeights
from tintc.frontend.source.places import Place, configuration, find_place, has_weights
from tintc.frontend.source.weightless import hollow_model
from tintc.hub import MODEL_TYPE
from tintc.ir.finite import is_finite


@dataclass(frozen=True)
class AuxiliarySource:
    """A decoder that is complete, finite and a causal language model.

    tokenizer: None if there is none beside the weights that can be read; weights: the mapped files that the model's
    weights lie in, none for a model that was in memory; provenance: where it came from, plain JSON values, the same for
    the same input on every machine; dtype: float32, or the checkpoint's where that is longer.
    """

    model: PreTrainedModel
    tokenizer: Any | None
    provenance: dict[str, Any]
    max_length: int
    dtype: torch.dtype
    bos_token_id: int | None
    eos_token_id: int | list[int] | None
    pad_token_id: int | None
    weights: MappedWeights = field(default_factory=MappedWeights)


def load_auxiliary(
    model_or_path: PreTrainedModel | str | os.PathLike[str], max_length: int | None = None, values: bool = True
) -> AuxiliarySource:
    """A model in memory (left as it is), a local folder or the config.json in it, a ``.gguf`` file, or a hub id.

    max_length None: the configuration's, at most 2048. Weights keep the checkpoint's dtype; only safetensors and GGUF
    files are read. values: whether the weights are needed; if not they are not looked at, and a model without weight
    files has zeros. Raises `ModelError` (missing or broken files, missing, misshapen or non-finite weights, not a
    causal language model) and `OptionError` for a `max_length` the model does not have.
    """
    reason = ""
    if isinstance(model_or_path, torch.nn.Module):
        loaded, tokenizer, weights = unwrapped(model_or_path), None, MappedWeights()
        named = str(getattr(getattr(loaded, "config", None), "name_or_path", ""))
        name, kind = Path(named).name or type(loaded).__name__, "memory"
    elif isinstance(model_or_path, str | os.PathLike):
        place = find_place(str(model_or_path))
        if configuration(place).get("model_type") == MODEL_TYPE:
            raise ModelError(simulator_sentence(place.name))
        name, kind = place.name, "gguf" if place.gguf_file else "safetensors"
        with _quiet():
            loaded = _load(place, hollow=not (values or has_weights(place)))
            tokenizer, reason = _tokenizer(place)
        weights = MappedWeights(loaded.state_dict().values())
    else:
        raise ModelError(not_a_model(model_or_path))
    model = check_kind(loaded, name)
    if values:
        _check_finite(model, name, weights)
    config = model.config.get_text_config()
    return AuxiliarySource(
        model=model,
        tokenizer=tokenizer,
        provenance=_provenance(model, name, kind) | ({TOKENIZER_PROBLEM: reason} if reason else {}),
        max_length=_length(name, longest_sequence(config), max_length),
        dtype=torch.promote_types(torch.float32, model.dtype),
        bos_token_id=getattr(config, "bos_token_id", None),
        eos_token_id=getattr(config, "eos_token_id", None),
        pad_token_id=getattr(config, "pad_token_id", None),
        weights=weights,
    )


TOKENIZER_PROBLEM = "tokenizer_problem"
"""Entry of the provenance: why the tokenizer beside the weights cannot be read."""
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "merges.txt", "*.tiktoken")


def _load(place: Place, hollow: bool) -> PreTrainedModel:
    """Every failure of transformers as one sentence; weights that would be left random are refused."""
    options = place.options | {"dtype": torch.float32 if place.gguf_file else "auto"}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    options |= {} if place.gguf_file else {"use_safetensors": True}
    try:
        make = _make_hollow(place) if hollow else partial(AutoModelForCausalLM.from_pretrained, place.folder, **options)
        try:
            loaded: Any = make(attn_implementation="sdpa")
        except ValueError as error:
            if "attention" not in str(error):
                raise
            loaded = make(attn_implementation="eager")
    except Exception as error:
        raise ModelError(why_not_loaded(place, error)) from error
    if hollow:
        return loaded
    model, report = loaded
    check_report(place.name, report)
    return model.eval()


def _make_hollow(place: Place) -> Callable[..., PreTrainedModel]:
    return partial(hollow_model, AutoConfig.from_pretrained(place.folder, **place.options))


def _tokenizer(place: Place) -> tuple[Any | None, str]:
    """The tokenizer beside the weights; None if there is none that transformers can read, and why if one is there.

    transformers makes an empty tokenizer for some model types when a folder has none; that would only mislead.
    """
    here = place.local and not place.gguf_file
    if here and not any(glob(f"{escape(place.folder)}/{name}") for name in TOKENIZER_FILES):
        return None, ""
    try:
        return AutoTokenizer.from_pretrained(place.folder, **place.options), ""
    except Exception as error:  # of transformers, or of a package that it asks for
        return None, first_sentence(error) if here else ""


def _check_finite(model: PreTrainedModel, name: str, weights: MappedWeights) -> None:
    state = model.state_dict()
    if any(tensor.is_meta for tensor in state.values()):
        raise ModelError(f"{name} has weights that are not in memory; load it without offloading.")
    for key, tensor in state.items():
        if tensor.is_floating_point() and not is_finite(tensor):
            raise ModelError(f"{name} has NaN or infinite weights in {key}; such a model cannot be trained further.")
        weights.release()


def _length(name: str, longest: int | None, wanted: int | None) -> int:
    if wanted is None:
        return min(longest or LONGEST, LONGEST)
    if wanted < 2 or (longest is not None and wanted > longest):
        limit = f"between 2 and {longest}, the positions that {name} has" if longest else "at least 2"
        raise OptionError(f"The maximal length is {wanted}; it must be {limit}.")
    return wanted


def _provenance(model: PreTrainedModel, name: str, kind: str) -> dict[str, Any]:
    return {
        "source": name,
        "format": kind,
        "model_type": model.config.model_type,
        "architectures": list(model.config.architectures or [type(model).__name__]),
        "parameters": sum(tensor.numel() for tensor in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """No reports of transformers' own (ours follow as errors), and no progress bars unless somebody watches."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    bars = sys.stderr if sys.stderr.isatty() else io.StringIO()
    try:
        with redirect_stderr(bars):
            yield
    finally:
        transformers.logging.set_verbosity(level)
