"""tintc: compiles Hugging Face decoders into TinT simulators (arXiv 2307.01189).

Importing it registers simulators with transformers and its Auto classes. The compiler and the reference, which most who
only load one do without, are imported when they are first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from tintc import masks
from tintc.runtime.artefact.config import TintConfig
from tintc.runtime.load import load
from tintc.runtime.model.adapted_state import AdaptedState
from tintc.runtime.model.causal_lm import TintForCausalLM, TintOutput
from tintc.runtime.model.unsupported import NoBaseModel

if TYPE_CHECKING:
    from tintc import mixers, reference
    from tintc.compiler import compile

AutoConfig.register(TintConfig.model_type, TintConfig, exist_ok=True)
AutoModelForCausalLM.register(TintConfig, TintForCausalLM, exist_ok=True)
AutoModel.register(TintConfig, NoBaseModel, exist_ok=True)
# `transformers serve` and TRL look there for the class that a folder's config.json names.
setattr(transformers, TintForCausalLM.__name__, TintForCausalLM)

__version__ = "0.1.0"
__all__ = [
    "AdaptedState",
    "TintConfig",
    "TintForCausalLM",
    "TintOutput",
    "compile",
    "load",
    "masks",
    "mixers",
    "reference",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name == "compile":
        return import_module("tintc.compiler").compile
    if name in ("mixers", "reference"):
        return import_module(f"tintc.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
