"""What transformers' Auto classes make of a simulator's configuration, with the model imported once it is needed.

`TintForCausalLM` needs what transformers' own models are made of, which takes longer to import than torch. So a class
that stands for it is registered first; the model takes its place when it is imported, by whoever asks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModel

from tintc.runtime.artefact.config import TintConfig
from tintc.runtime.model.registration import MODEL, register_model

if TYPE_CHECKING:
    from tintc.runtime.model.causal_lm import TintForCausalLM


def model_class() -> type[TintForCausalLM]:
    """Return the model, imported."""
    from tintc.runtime.model.causal_lm import TintForCausalLM

    return TintForCausalLM


class Deferred(type):
    """The type of a class that stands for the model: what it does not have itself is the model's."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")
        return getattr(model_class(), name)

    def __call__(cls, *values: Any, **keywords: Any) -> Any:
        return model_class()(*values, **keywords)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, model_class())

    def __subclasscheck__(cls, other: type) -> bool:
        return other is cls or issubclass(other, model_class())


class NoBaseModel:
    """The class that `AutoModel` makes of a simulator's configuration: none, which it says."""

    config_class = TintConfig

    @classmethod
    def from_pretrained(cls, *_: Any, **__: Any) -> Any:
        """Raise `NoModule`."""
        from tintc.runtime.model.unsupported import NoModule

        raise NoModule(
            "A simulator has no model without its language-model head, which AutoModel asks for; load it by tintc.load "
            "or AutoModelForCausalLM, and take hidden_states[-1] of output_hidden_states=True."
        )

    _from_config = from_pretrained


def register() -> None:
    """Register the configuration, and a class that stands for the model."""
    AutoConfig.register(TintConfig.model_type, TintConfig, exist_ok=True)
    AutoModel.register(TintConfig, NoBaseModel, exist_ok=True)
    register_model(Deferred(MODEL, (), {"__module__": "tintc", "config_class": TintConfig}))
