"""The auxiliary before and after an update in the tools of others, which read ordinary models of transformers."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import nn

from tintc.errors import ModelError, OptionError
from tintc.runtime.adaptation.export_hf import model_of

if TYPE_CHECKING:
    from tintc.runtime.model.adapted_state import AdaptedState
    from tintc.runtime.model.causal_lm import TintForCausalLM


def auxiliary(
    sim: TintForCausalLM, state: AdaptedState | None = None, *, example: int = 0, model: Any = None
) -> nn.Module:
    """Return the auxiliary as an ordinary model of its own type, in memory and in the simulator's dtype.

    state: whose weights it has (None: those from before any update), example: of which text; model: the auxiliary, as
    an object, a folder, a GGUF file or a hub id (None: what the simulator keeps of it). It shares no tensors with the
    simulator. Raises what `AdaptedState.export` raises.
    """
    if state is not None:
        state = state.of(sim).example(example)
    return model_of(sim, state, model)


def transformer_lens(
    sim: TintForCausalLM,
    state: AdaptedState | None = None,
    *,
    example: int = 0,
    model: Any = None,
    tokenizer: Any = None,
) -> Any:
    """Return the auxiliary, before the update or with a state's weights, as a `TransformerBridge` of TransformerLens.

    Its logits are the simulator's `logits_before`, or those of `sim(..., state=state)`, and its hooks have
    TransformerLens's names. tokenizer: for texts (None: the simulator's); the rest is as of `auxiliary`. Raises
    `OptionError` where TransformerLens 4 is not installed or there is no tokenizer, `ModelError` for a type that it
    does not know.
    """
    try:
        from transformer_lens.model_bridge import TransformerBridge  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise OptionError("TransformerLens 4 or newer is not installed: pip install 'transformer-lens>=4'.") from error
    chosen = sim.tokenizer
    if tokenizer is not None:
        chosen = tokenizer
    if chosen is None:
        raise OptionError("TransformerLens wants a tokenizer, and the simulator has none; pass tokenizer=.")
    words = copy.deepcopy(chosen)
    # TransformerLens would load a tokenizer anew that does not say this, and then finds out what it does at the ends.
    words.init_kwargs |= {"add_bos_token": True, "name_or_path": ""}
    plain: Any = auxiliary(sim, state, example=example, model=model)
    name = str(sim.config.provenance.get("source") or type(plain).__name__)
    try:
        return TransformerBridge.boot_transformers(
            name, hf_model=plain, tokenizer=words, dtype=sim.dtype, device=str(sim.device)
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(f"TransformerLens cannot take a {type(plain).__name__}: {error}") from error
