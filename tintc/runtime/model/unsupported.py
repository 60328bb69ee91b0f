"""What transformers and PyTorch offer of any model and a simulator cannot have, each refused in a sentence."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from tintc.errors import ArtefactError, OptionError

NO_FLOAT16 = (
    "A simulator does not compute in float16, whose range small updates leave; use sim.to(torch.bfloat16), or keep "
    "float32 (of Trainer's options, leave out fp16_full_eval)."
)


def refuse_float16(dtype: torch.dtype) -> None:
    """Raise `OptionError` for a simulator that was cast to float16."""
    if dtype == torch.float16:
        raise OptionError(NO_FLOAT16)


class NoModule(OptionError, NotImplementedError):
    """There is no such module; transformers takes a `NotImplementedError` for that and, where it can, goes on."""


class Refusals:
    """The part of `TintForCausalLM` that refuses."""

    def get_input_embeddings(self) -> nn.Module:
        """Raises `NoModule`: a table of embeddings is a parameter that the executors read."""
        raise NoModule(
            "A simulator has no module of input embeddings, so nothing can be hooked in there (neftune_noise_alpha, "
            "adapters); leave that out, and train sim.tables."
        )

    def half(self, *_: Any) -> Any:
        """Raise `OptionError`, before anything is cast."""
        refuse_float16(torch.float16)

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *_: Any, **__: Any) -> str:
        """Called by transformers wherever one is asked for."""
        if attn_implementation not in (None, "eager"):
            raise OptionError(
                f"A simulator's attention is its own, so attn_implementation={attn_implementation!r} means nothing; "
                "leave it out. How it is executed is what executor says."
            )
        return "eager"

    def __getstate__(self) -> Any:
        """What pickling asks for: a folder is checked when it is read and runs no code, unlike a pickle."""
        raise ArtefactError("A simulator is not pickled; keep it by sim.save_pretrained(OUT) and tintc.load(OUT).")

    def __deepcopy__(self: Any, memo: dict[int, Any]) -> Any:
        """As any module is copied, without asking `__getstate__` above."""
        kind: Any = type(self)
        made = memo[id(self)] = kind.__new__(kind)
        made.__setstate__(deepcopy(nn.Module.__getstate__(self), memo))
        if self.has_own_structure():
            made.trust()
        return made
