"""`TintConfig`: a simulator's sizes and options, as a transformers configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from tintc.errors import ArtefactError
from tintc.hub import MODEL_TYPE
from tintc.ir.functions import SCHEMES
from tintc.ir.structure import SATURATED
from tintc.lowering.options import DEFAULT_DESCEND, DEFAULT_FD_STEP, REUSE
from tintc.runtime.artefact.beside import AUXILIARY_FILE, HUB_ARGUMENTS, text_beside, text_digest
from tintc.runtime.artefact.staging import PROGRAM_FILE

FORMAT_VERSION = 1
CHOICES = {"fd_scheme": SCHEMES, "reuse": REUSE, "gate_scale": (SATURATED,)}
"""What fields may say; earlier versions of tintc had more choices."""


def check_format(version: Any, what: str) -> None:
    """Raise `ArtefactError` unless this version of tintc reads the format."""
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ArtefactError(
            f"{what} was written by a newer tintc (format {version}; this one reads up to {FORMAT_VERSION}); update "
            "tintc."
        )


def check_choices(config: Mapping[str, Any], what: str) -> None:
    """Raise `ArtefactError` for a simulator that was compiled with what this version of tintc does not do."""
    for name, choices in CHOICES.items():
        if config.get(name, choices[0]) not in choices:
            raise ArtefactError(
                f"{what} was compiled with {name} {config[name]!r}, which this version of tintc does not have; compile "
                "the model again."
            )


class TintConfig(PretrainedConfig):
    """Configuration of a TinT simulator.

    hidden_size, num_hidden_layers, vocab_size, max_position_embeddings: the auxiliary's width, layers and vocabulary,
    and the longest text the simulator was compiled for; num_attention_heads, num_key_value_heads, head_dim,
    intermediate_size: of its widest layers; use_cache: what `generate` does unless told otherwise. d_sim, n_sim_heads,
    n_prefixes, stack, shards: the simulator's own (see `Layout`). n_steps, n_update_layers, inner_lr, loss, descend,
    semantics, fd_scheme, fd_step: options of the simulated descent (descend: groups of parameters, with commas
    between); reuse: which modules share structural tensors; linear_attention: ``linear``, or ``softmax`` for softmax
    heads in its place; train_fraction: share of a text that is trained on when no mask is given. provenance: what was
    compiled, and with what; digests: sha256 of the structural tensors and of the program, as the compiler wrote them.

    `program` is the simulator's program as text, `auxiliary` the auxiliary's it was made from. They are stored beside
    the configuration (``program.tint``, ``auxiliary.tint``), not in it, and read with it where they are there.
    """

    model_type = MODEL_TYPE

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
        n_steps: int = 1,
        n_update_layers: int = 0,
        inner_lr: float = 1e-4,
        loss: str = "ce",
        descend: str = DEFAULT_DESCEND,
        semantics: str = "exact",
        fd_scheme: str = "token",
        fd_step: float = DEFAULT_FD_STEP,
        linear_attention: str = "linear",
        reuse: str = "layer",
        train_fraction: float = 0.5,
        provenance: dict[str, Any] | None = None,
        digests: dict[str, str] | None = None,
        format_version: int = FORMAT_VERSION,
        **kwargs: Any,
    ):
        check_format(format_version, "The configuration")
        check_choices({"fd_scheme": fd_scheme, "reuse": reuse, **kwargs}, "The simulator")
        kwargs.pop("gate_scale", None)  # written by earlier versions
        self.program: str | None = kwargs.pop("program", None)
        self.auxiliary: str | None = kwargs.pop("auxiliary", None)
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
        self.n_steps = n_steps
        self.n_update_layers = n_update_layers
        self.inner_lr = inner_lr
        self.loss = loss
        self.descend = descend
        self.semantics = semantics
        self.fd_scheme = fd_scheme
        self.fd_step = fd_step
        self.linear_attention = linear_attention
        self.reuse = reuse
        self.train_fraction = train_fraction
        self.provenance = provenance or {}
        self.digests = digests or {}
        self.format_version = format_version
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)

    def complete(self, known: dict[str, Any]) -> None:
        """Add what a folder of an earlier version does not say, and its program does."""
        for name, value in known.items():
            setattr(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        found = super().to_dict()
        found.pop("program", None)
        found.pop("auxiliary", None)
        return found

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As transformers', and with what lies beside it."""
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        found: Any = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        (found[0] if isinstance(found, tuple) else found).read_beside(pretrained_model_name_or_path, hub)
        return found

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers', and, called by its Auto classes, which say where they have it from, with what lies beside
        it there."""
        path = kwargs.get("name_or_path")
        found: Any = super().from_dict(config_dict, **kwargs)
        config = found[0] if isinstance(found, tuple) else found
        if path is not None:
            config.read_beside(path, {})
            if not os.path.isdir(path) and text_digest(config.program or "") != config.digests.get("program"):
                config.program = config.auxiliary = None  # of another revision than the configuration
        return found

    def read_beside(self, path: str | os.PathLike[str], hub: dict[str, Any]) -> None:
        """Read `program` and `auxiliary`, which stay None where they cannot be read."""
        try:
            self.program = text_beside(path, PROGRAM_FILE, **hub)
            self.auxiliary = text_beside(path, AUXILIARY_FILE, **hub)
        except UnicodeDecodeError:
            self.program = self.auxiliary = None
