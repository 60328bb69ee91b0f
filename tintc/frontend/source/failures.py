"""Failures of loading, as sentences that say what to do, whatever transformers says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from transformers import PreTrainedModel

from tintc.errors import ModelError
from tintc.frontend.source.kinds import method_of
from tintc.frontend.source.places import Place, configuration
from tintc.frontend.source.trust import code_sentence

OTHER_WEIGHTS = ("*.bin", "*.pth", "*.pt", "*.ckpt", "*.h5", "*.msgpack")
"""Names of files that hold weights and are not read."""
SHOWN = 3
"""Tensors named in a message before "and n more"."""
LONGEST = 500
"""Characters of an error of somebody else that are shown."""


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
        return code_sentence(place.name)
    if "Unrecognized configuration class" in text:
        return f"{place.name} is not a causal language model (decoder); tintc compiles nothing else."
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


def _no_safetensors(place: Place) -> str:
    folder = Path(place.folder)
    others = sorted(file.name for kind in OTHER_WEIGHTS for file in folder.glob(kind))
    if not others:
        return f"{place.name} has no weights; put model.safetensors beside config.json."
    return (
        f"{place.name} has its weights in {listed(others)}, and tintc reads safetensors, pytorch_model.bin and GGUF; "
        f"convert them: AutoModelForCausalLM.from_pretrained({place.folder!r}).save_pretrained(another folder)."
    )


def check_report(name: str, report: Mapping[str, Any], model: PreTrainedModel) -> None:
    """Raise `ModelError` if transformers reports weights of a model that are missing, have other shapes or cannot be
    read."""
    missing = sorted(report["missing_keys"])
    head = model.get_output_embeddings()
    if missing and head is not None:
        of_head = {id(tensor) for tensor in head.parameters()}
        if all(id(model.get_parameter_or_buffer(key)) in of_head for key in missing):
            raise ModelError(
                f"{name} lacks the weights of its language-model head, {listed(missing)}, as a folder does that "
                f"AutoModel has saved; save a {type(model).__name__}, which has it, and pass that folder."
            )
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
    """Return the first sentence of an error's message, of a long one its beginning."""
    text = " ".join(str(error).split()).split(". ")[0] or "no message"
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]} ..."
    return text.rstrip(".") + "."
