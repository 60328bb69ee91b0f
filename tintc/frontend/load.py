"""`load_auxiliary`: the auxiliary model from wherever the user has it, checked before anything is built on it."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from functools import partial
from glob import escape, glob
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tintc.errors import ModelError, OptionError
from tintc.frontend.capture import LONGEST, longest_sequence
from tintc.frontend.hollow import hollow_model
from tintc.frontend.mapped import MappedWeights
from tintc.hub import MODEL_TYPE, why_missing

PIECE = 1 << 22
"""Numbers looked at at a time."""
SHOWN = 3
"""Tensors named in a message before "and n more"."""


@dataclass(frozen=True)
class AuxiliarySource:
    """A decoder that is complete, finite and a causal language model.

    tokenizer: None if there is none beside the weights; weights: the mapped files that the model's weights lie in, none
    for a model that was in memory; provenance: where it came from, plain JSON values, the same for
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


@dataclass(frozen=True)
class _Place:
    """Where a model's files are: a folder or hub id, and the GGUF file in it if that is what to read."""

    name: str
    folder: str
    gguf_file: str | None
    local: bool

    @property
    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"local_files_only": self.local, "trust_remote_code": False}
        return options | ({"gguf_file": self.gguf_file} if self.gguf_file else {})


def load_auxiliary(
    model_or_path: PreTrainedModel | str | os.PathLike[str], max_length: int | None = None, values: bool = True
) -> AuxiliarySource:
    """A model in memory (left as it is), a local folder or the config.json in it, a ``.gguf`` file, or a hub id.

    max_length None: the configuration's, at most 2048. Weights keep the checkpoint's dtype; only safetensors and GGUF
    files are read. values: whether the weights are needed; if not they are not looked at, and a model without weight
    files has zeros. Raises `ModelError` (missing or broken files, missing, misshapen or non-finite weights, not a
    causal language model) and `OptionError` for a `max_length` the model does not have.
    """
    if isinstance(model_or_path, torch.nn.Module):
        model, tokenizer, weights = model_or_path, None, MappedWeights()
        name, kind = Path(str(getattr(model.config, "name_or_path", ""))).name or type(model).__name__, "memory"
    else:
        place = _find(str(model_or_path))
        name, kind = place.name, "gguf" if place.gguf_file else "safetensors"
        with _quiet():
            model, tokenizer = _load(place, hollow=not (values or _has_weights(place))), _tokenizer(place)
        weights = MappedWeights(model.state_dict().values())
    _check_kind(model, name)
    if values:
        _check_finite(model, name, weights)
    config = model.config.get_text_config()
    return AuxiliarySource(
        model=model,
        tokenizer=tokenizer,
        provenance=_provenance(model, name, kind),
        max_length=_length(name, longest_sequence(config), max_length),
        dtype=torch.promote_types(torch.float32, model.dtype),
        bos_token_id=getattr(config, "bos_token_id", None),
        eos_token_id=getattr(config, "eos_token_id", None),
        pad_token_id=getattr(config, "pad_token_id", None),
        weights=weights,
    )


TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "merges.txt", "*.tiktoken")


def _find(text: str) -> _Place:
    path = Path(text).expanduser()
    if path.is_file() and path.name == "config.json":
        path = path.absolute().parent
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{text} is a file and not a GGUF file; pass the folder that holds config.json.")
        return _Place(path.name, str(path.parent), path.name, True)
    if path.is_dir():
        if not (path / "config.json").is_file():
            return _gguf_in(path, text)
        return _Place(path.resolve().name, str(path), None, True)
    kind, why = ("file", "it is not looked for on the hub") if text.endswith(".gguf") else ("folder", why_missing(text))
    if why is not None:
        raise ModelError(
            f"There is no {kind} {text}, and {why}; pass a folder, a .gguf file or the id of a model on the hub."
        )
    return _Place(text, text, None, False)


def _gguf_in(path: Path, text: str) -> _Place:
    files = sorted(path.glob("*.gguf"))
    if len(files) != 1:
        found = f"{len(files)} GGUF files, name the one to read" if files else "no GGUF file, pass a model's folder"
        raise ModelError(f"{text} has no config.json and {found}.")
    return _Place(files[0].name, str(path), files[0].name, True)


def _has_weights(place: _Place) -> bool:
    """Whether there are weights on this machine, without asking the hub."""
    return place.gguf_file is not None or any(Path(place.folder).glob("*.safetensors"))


def _load(place: _Place, hollow: bool) -> PreTrainedModel:
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
    except ImportError as error:
        raise ModelError(f"{place.name} needs a package that is not installed: {_sentence(error)}") from error
    except Exception as error:
        raise ModelError(_explain(place, error)) from error
    if hollow:
        return loaded
    model, report = loaded
    _check_report(place.name, report)
    return model.eval()


def _make_hollow(place: _Place) -> Callable[..., PreTrainedModel]:
    return partial(hollow_model, AutoConfig.from_pretrained(place.folder, **place.options))


def _explain(place: _Place, error: Exception) -> str:
    text = str(error)
    if "is required when loading" in text:
        return f"{place.name} needs a package that is not installed: {_sentence(error)}"
    if "Unrecognized configuration class" in text:
        return f"{place.name} is not a causal language model (decoder); tintc compiles nothing else."
    if not place.local and isinstance(error, OSError):
        return (
            f"There is no folder {place.name}, and no such model can be had from the hub; check the name, the "
            "connection, and that its weights are safetensors."
        )
    if isinstance(error, OSError) and "no file named" in text:
        return f"{place.name} has no weights; put model.safetensors beside config.json."
    if isinstance(error, OSError) and "JSON" in text:
        return f"{place.name} has a broken config.json: it is not valid JSON."
    return f"{place.name} cannot be loaded ({type(error).__name__}): {_sentence(error)}"


def _check_report(name: str, report: Mapping[str, Any]) -> None:
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(f"{name} lacks weights that its configuration asks for: {_listed(missing)}.")
    misfits = sorted(report["mismatched_keys"])
    shapes = [f"{key} is {tuple(found)}, expected {tuple(wanted)}" for key, found, wanted in misfits]
    if shapes:
        raise ModelError(f"{name} has weights of other shapes than its configuration says: {_listed(shapes)}.")
    if report["error_msgs"]:
        raise ModelError(f"{name} cannot be loaded: {_listed(list(report['error_msgs']))}.")


def _tokenizer(place: _Place) -> Any | None:
    """The tokenizer beside the weights, None if there is none that transformers can read.

    transformers makes an empty tokenizer for some model types when a folder has none; that would only mislead.
    """
    if (
        place.local
        and not place.gguf_file
        and not any(glob(f"{escape(place.folder)}/{name}") for name in TOKENIZER_FILES)
    ):
        return None
    try:
        return AutoTokenizer.from_pretrained(place.folder, **place.options)
    except Exception:
        return None


def _check_kind(model: Any, name: str) -> None:
    if not isinstance(model, PreTrainedModel):
        raise ModelError(f"{name} is not a transformers model; pass a PreTrainedModel with a language-model head.")
    if model.config.model_type == MODEL_TYPE:
        raise ModelError(
            f"{name} is a simulator already; pass the model that it was compiled from, or use it as it is."
        )
    if model.config.is_encoder_decoder or not model.can_generate():
        raise ModelError(f"{name} is not a causal language model (decoder); tintc compiles nothing else.")


def _check_finite(model: PreTrainedModel, name: str, weights: MappedWeights) -> None:
    state = model.state_dict()
    if any(tensor.is_meta for tensor in state.values()):
        raise ModelError(f"{name} has weights that are not in memory; load it without offloading.")
    for key, tensor in state.items():
        if tensor.is_floating_point() and not _is_finite(tensor):
            raise ModelError(f"{name} has NaN or infinite weights in {key}; such a model cannot be trained further.")
        weights.release()


def _is_finite(tensor: Tensor) -> bool:
    """Looks at a piece at a time: `isfinite` takes more memory than what it looks at."""
    pieces = tensor.detach().reshape(-1).split(PIECE)
    return all(bool(torch.isfinite(piece).all()) for piece in pieces)


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


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return "; ".join(items[:SHOWN]) + more


def _sentence(error: Exception) -> str:
    """The first sentence of an error's message."""
    text = " ".join(str(error).split()).split(". ")[0] or "no message"
    return text.rstrip(".") + "."
