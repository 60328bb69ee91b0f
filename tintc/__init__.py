"""tintc: compiles Hugging Face decoders into TinT simulators (arXiv 2307.01189).

Importing it registers simulators with transformers and its Auto classes. Everything else is imported when it is first
asked for: the compiler, the reference, and the model with what transformers' models are made of.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tintc import masks
from tintc.runtime.artefact.config import TintConfig
from tintc.runtime.model.auto_classes import register

if TYPE_CHECKING:
    from tintc import bridges, mixers, reference
    from tintc.compiler import compile
    from tintc.runtime.load import load
    from tintc.runtime.model.adapted_state import AdaptedState
    from tintc.runtime.model.causal_lm import TintForCausalLM
    from tintc.runtime.model.output import TintOutput

register()

__version__ = "0.1.0"
__all__ = [
    "AdaptedState",
    "TintConfig",
    "TintForCausalLM",
    "TintOutput",
    "bridges",
    "compile",
    "load",
    "masks",
    "mixers",
    "reference",
]
PLACES = {
    "AdaptedState": "tintc.runtime.model.adapted_state",
    "TintForCausalLM": "tintc.runtime.model.causal_lm",
    "TintOutput": "tintc.runtime.model.output",
    "compile": "tintc.compiler",
    "load": "tintc.runtime.load",
}
"""Where that is which is imported when it is asked for."""
MODULES = ("bridges", "mixers", "reference")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in PLACES:
        return getattr(import_module(PLACES[name]), name)
    if name in MODULES:
        return import_module(f"tintc.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
