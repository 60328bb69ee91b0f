"""Texts that go on after a prompt: run whole, token by token with a cache, or with a state."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from fused_cases import family, run
from torch import Tensor

from tintc.ir.inputs import resolve_inputs
from tintc.runtime.model.adapted_state import AdaptedState
from tintc.runtime.model.causal_lm import TintForCausalLM

PROMPT, WHOLE = 8, 13
PADDED = torch.tensor([[1] * PROMPT, [0] * 3 + [1] * (PROMPT - 3)])


@cache
def compiled(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> TintForCausalLM:
    chosen: dict[str, Any] = {"inner_lr": 0.02} | options
    sim = family(name).compile(dtype=dtype, **chosen)
    sim.executor = "fused"
    return sim


def worst(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def whole(sim: TintForCausalLM, ids: Tensor, mask: Tensor | None = None, **given: Any) -> Tensor:
    """Logits of the last tokens when the whole text is run, trained on the prompt's train tokens."""
    train = given.pop("train_mask", None)
    if train is None:
        train = resolve_inputs(ids[:, :PROMPT], attention_mask=mask).train
    train = F.pad(train, (0, ids.shape[1] - PROMPT))
    seen = None if mask is None else F.pad(mask, (0, ids.shape[1] - PROMPT), value=1)
    return run(sim, ids, sim.executor, train_mask=train, attention_mask=seen, **given).logits[:, PROMPT - 1 :]


@torch.no_grad()
def one_by_one(sim: TintForCausalLM, ids: Tensor, mask: Tensor | None = None, **given: Any) -> Tensor:
    """The same with a cache: the prompt, two tokens together, then one at a time."""
    out = sim(ids[:, :PROMPT], attention_mask=mask, use_cache=True, logits_to_keep=1, **given)
    found, at = [out.logits], PROMPT
    for count in (2, *[1] * (ids.shape[1] - PROMPT - 2)):
        out = sim(ids[:, at : at + count], past_key_values=out.past_key_values)
        found.append(out.logits)
        at += count
    assert out.past_key_values.get_seq_length() == ids.shape[1]
    return torch.cat(found, 1)


@torch.no_grad()
def continued(sim: TintForCausalLM, ids: Tensor, state: AdaptedState, **given: Any) -> Tensor:
    return sim(ids, state=state, **given).logits
