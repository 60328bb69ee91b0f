"""`TintConfig`: a simulator's sizes and options, as a transformers configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from tintc.errors import ArtefactError
from tintc.hub import MODEL_TYPE
from tintc.ir.structure import SATURATED
from tintc.options import ABOUT, FORMER, Options, renamed
from tintc.runtime.artefact.beside import HUB_ARGUMENTS, text_beside, text_digest
from tintc.runtime.artefact.names import AUXILIARY_FILE, DESCRIPTION_FILE, PROGRAM_FILE

FORMAT_VERSION = 2
"""Format 1 kept the vectors of attention's scores under another name."""
OPTIONS = Options().recorded()
"""The options that a configuration states, with their defaults."""
CHOICES = {name: ABOUT[name].choices for name in OPTIONS if ABOUT[name].choices} | {"gate_scale": (SATURATED,)}
"""What fields may say; earlier versions of tintc had more choices."""


def check_format(version: Any, what: str) -> None:
    """Raise `ArtefactError` unless this version of tintc reads the format."""
    if not isinstance(version, int) or version > FORMAT_VERSION:
        version = " ".join(str(version).split())[:80]
        raise ArtefactError(
            f"{what} was written by a newer tintc (format {version}; this one reads {FORMAT_VERSION}); update tintc."
        )
    if version < FORMAT_VERSION:
        raise ArtefactError(
            f"{what} was written by an earlier tintc (format {version}; this one reads {FORMAT_VERSION}); compile the "
            "model again."
        )


def check_choices(config: Mapping[str, Any], what: str) -> None:
    """Raise `ArtefactError` for a simulator that was compiled with what this version of tintc does not do."""
    for name, choices in CHOICES.items():
        value = config.get(name)
        if value is not None and value not in choices:
            raise ArtefactError(
                f"{what} was compiled with {name} {repr(value)[:80]}, which this version of tintc does not have; "
                "compile the model again."
            )


def _config_of(loaded: Any) -> Any:
    """Return the configuration of what transformers loads: itself, or the first of a pair with the arguments
    that it had no use for."""
    if isinstance(loaded, tuple):
        return loaded[0]
    return loaded


class TintConfig(PretrainedConfig):
    """Configuration of a TinT simulator.

    hidden_size, num_hidden_layers, vocab_size, max_position_embeddings: the auxiliary's width, layers and vocabulary,
    and the longest text the simulator was compiled for; num_attention_heads, num_key_value_heads, head_dim,
    intermediate_size: of its widest layers; use_cache: what `generate` does unless told otherwise. d_sim, n_sim_heads,
    n_prefixes, stack, shards: the simulator's own (see `Layout`). train_fraction: share of a text that is trained on
    when no mask is given. provenance: what was compiled, and with what; placeholders: token ids that stand for an image
    or the like, which texts may not have; digests: sha256 of the structural tensors and of the program, as the compiler
    wrote them. The options that are recorded (`tintc.options`) are fields too.

    `program` is the simulator's program as text, `auxiliary` the auxiliary's it was made from, `described` the rest of
    what is kept of that model, as JSON. They are stored beside the configuration (``program.tint``, ``auxiliary.tint``,
    ``auxiliary.json``), not in it, and read with it where they are there.
    """

    model_type = MODEL_TYPE
    attribute_map = FORMER

    def __init__(
        self,
        vocab_size: int = 0,
        hidden_size: int = 0,
        num_hidden_layers: int = 0,
        max_position_embeddings: int = 0,
        num_attention_heads: int | None = None,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        intermediate_size: int | None = None,
        use_cache: bool = True,
        d_sim: int = 0,
        n_sim_heads: int = 0,
        n_prefixes: int = 0,
        stack: int = 0,
        shards: int = 0,
        train_fraction: float = 0.5,
        provenance: dict[str, Any] | None = None,
        placeholders: list[int] | None = None,
        digests: dict[str, str] | None = None,
        format_version: int = FORMAT_VERSION,
        **kwargs: Any,
    ):
        check_format(format_version, "The configuration")
        kwargs = renamed(kwargs)
        check_choices(kwargs, "The simulator")
        kwargs.pop("gate_scale", None)  # written by earlier versions
        self.program: str | None = kwargs.pop("program", None)
        self.auxiliary: str | None = kwargs.pop("auxiliary", None)
        self.described: str | None = kwargs.pop("described", None)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.max_position_embeddings = max_position_embeddings
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.intermediate_size = intermediate_size
        self.use_cache = use_cache
        self.d_sim = d_sim
        self.n_sim_heads = n_sim_heads
        self.n_prefixes = n_prefixes
        self.stack = stack
        self.shards = shards
        for name, default in OPTIONS.items():
            setattr(self, name, kwargs.pop(name, default))
        self.train_fraction = train_fraction
        self.provenance = provenance or {}
        self.placeholders = placeholders or []
        self.digests = digests or {}
        self.format_version = format_version
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)

    def complete(self, known: dict[str, Any]) -> None:
        """Add what a folder of an earlier version does not say, and its program does."""
        for name, value in known.items():
            setattr(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        entries = super().to_dict()
        entries.pop("program", None)
        entries.pop("auxiliary", None)
        entries.pop("described", None)
        return entries

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Read a configuration as transformers does, and the programs beside it."""
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        result: Any = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        _config_of(result).read_beside(pretrained_model_name_or_path, hub)
        return result

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make a configuration as transformers does. Its Auto classes pass the folder or hub id as `name_or_path`;
        then the programs beside it are read too."""
        path = kwargs.get("name_or_path")
        result: Any = super().from_dict(config_dict, **kwargs)
        config = _config_of(result)
        if path is not None:
            config.read_beside(path, {})
            if not os.path.isdir(path) and text_digest(config.program or "") != config.digests.get("program"):
                config.program = config.auxiliary = config.described = (
                    None  # of another revision than the configuration
                )
        return result

    def read_beside(self, path: str | os.PathLike[str], hub: dict[str, Any]) -> None:
        """Read `program`, `auxiliary` and `described`, which stay None where they cannot be read."""
        try:
            self.program = text_beside(path, PROGRAM_FILE, **hub)
            self.auxiliary = text_beside(path, AUXILIARY_FILE, **hub)
            self.described = text_beside(path, DESCRIPTION_FILE, **hub)
        except UnicodeDecodeError:
            self.program = self.auxiliary = self.described = None


def options_of(config: Any) -> Options:
    """Return the options that a simulator was compiled with, as its configuration states them."""
    stated = {name: getattr(config, name) for name, about in ABOUT.items() if about.record}
    return Options(**{name: value for name, value in stated.items() if value is not None})
