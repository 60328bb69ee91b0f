"""`output_hidden_states` and `output_attentions`: transformers' own for the unchanged auxiliary, in both executors.

Models in fp64; 1e-6 of a value's size, because transformers' eager attention takes its softmax in fp32.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from programs import import_model
from tiny_models import gpt2, llama, opt, token_ids
from transformers import AutoModelForCausalLM, Gemma2Config, GPTNeoXConfig

from tintc.runtime.model.causal_lm import TintForCausalLM

SMALL: dict[str, Any] = {
    "vocab_size": 53,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
}
GEMMA: dict[str, Any] = {
    **SMALL,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "sliding_window": 4,
    "query_pre_attn_scalar": 8,
}


def random(config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64)


MODELS: dict[str, Any] = {
    "llama": lambda: llama(head_dim=4, d_ff=20),
    "gpt2": lambda: gpt2(n_heads=3, head_dim=4, d_ff=20),
    "opt": lambda: opt(n_heads=3, head_dim=4, d_ff=20),
    "opt, narrow tables and norms after": lambda: opt(
        n_heads=3, head_dim=4, d_ff=20, word_embed_proj_dim=8, do_layer_norm_before=False
    ),
    "gpt_neox, parallel": lambda: random(GPTNeoXConfig(**SMALL, use_parallel_residual=True)),
    "gemma2: scaled embeddings, four norms, caps, windows": lambda: random(Gemma2Config(**GEMMA)),
}
IDS = token_ids(2, 9)


@cache
def auxiliary(name: str) -> tuple[Any, TintForCausalLM]:
    model = MODELS[name]()
    sim = import_model(model).compile(max_length=16, inner_lr=0.02)
    model = model.double().eval()
    model.set_attn_implementation("eager")
    return model, sim


@pytest.mark.parametrize("executor", ["fused", "literal"])
@pytest.mark.parametrize("name", MODELS)
def test_transformers_own_before_the_update(name: str, executor: str) -> None:
    model, sim = auxiliary(name)
    sim.executor = executor
    with torch.no_grad():
        right = model(IDS, output_hidden_states=True, output_attentions=True)
        out = sim(IDS, output_hidden_states=True, output_attentions=True)
        after = sim(IDS, inner_lr=0.0, output_hidden_states=True, output_attentions=True)
    for hidden, attentions in (
        (out.hidden_states_before, out.attentions_before),
        (after.hidden_states, after.attentions),
    ):
        for found, wanted in ((hidden, right.hidden_states), (attentions, right.attentions)):
            assert len(found) == len(wanted)
            for one, other in zip(found, wanted, strict=True):
                assert one.shape == other.shape and float((one - other).norm() / other.norm()) < 1e-6
    assert not torch.allclose(out.hidden_states[-1], out.hidden_states_before[-1])


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt, narrow tables and norms after"])
def test_executors_are_equal_after_the_update(name: str) -> None:
    """1e-9: no transformers here."""
    outs, (_, sim) = [], auxiliary(name)
    for sim.executor in ("fused", "literal"):
        with torch.no_grad():
            outs.append(sim(IDS, output_hidden_states=True, output_attentions=True))
    for field in ("hidden_states", "attentions", "hidden_states_before", "attentions_before"):
        for one, other in zip(outs[0][field], outs[1][field], strict=True):
            assert float((one - other).norm() / other.norm()) < 1e-9


def test_the_configuration_s_defaults_and_tuples() -> None:
    _, sim = auxiliary("llama")
    sim.executor = "fused"
    config = sim.config
    try:
        config.output_hidden_states, config.output_attentions = True, True
        with torch.no_grad():
            out = sim(IDS)
            fewer = sim(IDS, output_hidden_states=False)
            found = sim(IDS, labels=IDS, output_attentions=False, return_dict=False)
            config.return_dict = False
            logits, *_ = sim(IDS)
    finally:
        config.output_hidden_states, config.output_attentions, config.return_dict = False, False, True
    assert len(out.hidden_states) == 3 and len(out.attentions) == 2
    assert fewer.hidden_states is None and len(fewer.attentions_before) == 2
    loss, others, hidden, before = found
    assert loss.dim() == 0 and torch.equal(others, out.logits) and torch.equal(logits, out.logits)
    assert len(hidden) == len(before) == 3
    with torch.no_grad():
        assert tuple(sim(IDS)) == ("logits",)
