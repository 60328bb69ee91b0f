"""`TintConfig`: a simulator's sizes and options, as a transformers configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from tintc.errors import ArtefactError
from tintc.hub import MODEL_TYPE
from tintc.ir.functions import SCHEMES
from tintc.ir.structure import SATURATED
from tintc.lowering.options import DEFAULT_DESCEND, DEFAULT_FD_STEP, REUSE

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
    and the longest text the simulator was compiled for. d_sim, n_sim_heads, n_prefixes, stack, shards: the simulator's
    own (see `Layout`). n_steps, n_update_layers, inner_lr, loss, descend, semantics, fd_scheme, fd_step: options of
    the simulated descent (descend: groups of parameters, with commas between); reuse: which modules share structural
    tensors; linear_attention: ``linear``, or ``softmax`` for softmax heads in its place; train_fraction: share of a
    text that is trained on when no mask is given. provenance: what was compiled, and with what; digests: sha256 of the
    structural tensors and of the program, as the compiler wrote them.

    `program` is the simulator's program as text, `auxiliary` the auxiliary's it was made from. They are stored beside
    the configuration (``program.tint``, ``auxiliary.tint``), not in it.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        vocab_size: int = 0,
        hidden_size: int = 0,
        num_hidden_layers: int = 0,
        max_position_embeddings: int = 0,
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
        kwargs.pop("use_cache", None)  # written by earlier versions; what `generate` does is its own options' matter
        super().__init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        found = super().to_dict()
        found.pop("program", None)
        found.pop("auxiliary", None)
        return found
