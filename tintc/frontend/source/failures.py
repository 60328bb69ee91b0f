"""Failures of loading, as sentences that say what to do, whatever transformers says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from tintc.errors import ModelError
from tintc.frontend.source.kinds import method_of
from tintc.frontend.source.places import Place, configuration

OTHER_WEIGHTS = ("*.bin", "*.pth", "*.pt", "*.ckpt", "*.h5", "*.msgpack")
"""Names of files that hold weights and are not read."""
SHOWN = 3
"""Tensors named in a message before "and n more"."""


def why_not_loaded(place: Place, error: Exception) -> str:
    """Return why a model cannot be loaded, and what to do."""
    text = str(error)
    method = method_of(configuration(place).get("quantization_config"))
    missing = isinstance(error, ImportError) or "is required when loading" in text
    if method:
        return (
            f"{place.name} has weights that are quantised by {method}, and transformers cannot load them here: "
            f"{first_sentence(error)} Pass the model from before it was quantised."
        )
    if missing:
        return f"{place.name} needs a package that is not installed: {first_sentence(error)}"
    if "trust_remote_code" in text:
        return (
            f"{place.name} has code of its own, which tintc does not run; load it with AutoModelForCausalLM."
            "from_pretrained(..., trust_remote_code=True) in Python and pass the model."
        )
    if "Unrecognized configuration class" in text:
        return _no_decoder(place)
    if not place.local and isinstance(error, OSError):
        return (
            f"There is no folder {place.name}, and no such model can be had from the hub; check the name, the "
            "connection, and that it has weights in safetensors or pytorch_model.bin."
        )
    if isinstance(error, OSError) and "no file named" in text:
        return _no_safetensors(place)
    if "Weights only load failed" in text or isinstance(error, UnpicklingError):
        return (
            f"{place.name} cannot be loaded, because its pytorch_model.bin holds more than weights, or is broken; "
            "tintc runs no code of a checkpoint, so get it again, or its safetensors."
        )
    if isinstance(error, OSError) and "JSON" in text:
        return f"{place.name} has a broken config.json: it is not valid JSON."
    return f"{place.name} cannot be loaded ({type(error).__name__}): {first_sentence(error)}"


def _no_decoder(place: Place) -> str:
    if configuration(place).get("model_type") in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return (
            f"{place.name} is a model of images and text, which tintc does not load from a folder; load it with "
            "AutoModelForImageTextToText.from_pretrained in Python and pass the model: its decoder of text is compiled."
        )
    return f"{place.name} is not a causal language model (decoder); tintc compiles nothing else."


def _no_safetensors(place: Place) -> str:
    folder = Path(place.folder)
    others = sorted(file.name for kind in OTHER_WEIGHTS for file in folder.glob(kind))
    if not others:
        return f"{place.name} has no weights; put model.safetensors beside config.json."
    return (
        f"{place.name} has its weights in {listed(others)}, and tintc reads safetensors, pytorch_model.bin and GGUF; "
        f"convert them: AutoModelForCausalLM.from_pretrained({place.folder!r}).save_pretrained(another folder)."
    )


def check_report(name: str, report: Mapping[str, Any]) -> None:
    """Raise `ModelError` if transformers reports weights that are missing, have other shapes or cannot be read."""
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(f"{name} lacks weights that its configuration asks for: {listed(missing)}.")
    misfits = sorted(report["mismatched_keys"])
    shapes = [f"{key} is {tuple(shape)}, expected {tuple(expected)}" for key, shape, expected in misfits]
    if shapes:
        raise ModelError(f"{name} has weights of other shapes than its configuration says: {listed(shapes)}.")
    if report["error_msgs"]:
        raise ModelError(f"{name} cannot be loaded: {listed(list(report['error_msgs']))}.")


def listed(items: list[str]) -> str:
    """Return the first items, and the number of the others."""
    shown = "; ".join(items[:SHOWN])
    if len(items) > SHOWN:
        shown += f" and {len(items) - SHOWN} more"
    return shown


def first_sentence(error: Exception) -> str:
    """Return the first sentence of an error's message."""
    text = " ".join(str(error).split()).split(". ")[0] or "no message"
    return text.rstrip(".") + "."
