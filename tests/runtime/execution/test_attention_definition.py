"""`TintAttention` is Def. C.1 on any tensors: every instance of three simulators, filled with random ones.

The definition is written out here, independently of the code under test. fp64, 1e-12 relative.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from programs import gpt_like, llama_like, simulator
from torch import Tensor

from tintc.runtime.execution.literal.attention import TintAttention
from tintc.runtime.model.causal_lm import TintForCausalLM


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def definition(m: Any, e: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
    """Def. C.1, head by head and example by example."""
    heads, width = m.n_heads, e.shape[-1] // m.n_heads
    out = torch.zeros_like(e)
    for b in range(e.shape[0]):
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            q, k, v = (
                w(e)[b, :, part] + lam[h] * p.T[positions[b]]
                for w, lam, p in (
                    (m.w_q, m.lam_q, m.position_matrix("q")),
                    (m.w_k, m.lam_k, m.position_matrix("k")),
                    (m.w_v, m.lam_v, m.position_matrix("v")),
                )
            )
            if m.kind == "linear":
                a = (q @ k.T) * mask[b]
            else:
                a = (q @ k.T).masked_fill(mask[b] == 0, -math.inf).softmax(-1).nan_to_num(0.0)
            out[b, :, part] = (a.T if m.transpose else a) @ v
    return m.w_o(out)


def randomise(module: TintAttention) -> None:
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.copy_(randn(*tensor.shape))
        for letter in "qkv":
            for tensor in (module.position_matrix(letter), getattr(module, f"lam_{letter}")):
                tensor.copy_(randn(*tensor.shape))


@pytest.fixture(scope="module", params=["gpt", "llama", "llama without biases' heads", "narrow"])
def sim(request: pytest.FixtureRequest) -> TintForCausalLM:
    make, options = {
        "gpt": (gpt_like, {}),
        "llama": (llama_like, {"stack": 1, "shards": 1}),
        "narrow": (gpt_like, {"stack": 3, "shards": 3}),
    }.get(request.param, (llama_like, {}))
    return simulator(*make(layers=1), max_length=9, **options)


def test_every_instance_is_the_definition(sim: TintForCausalLM) -> None:
    torch.manual_seed(0)
    layout, seen = sim.layout, set()
    for name, module in sim.named_modules():
        if not isinstance(module, TintAttention):
            continue
        randomise(module)
        size = layout.sim_seq_len
        e = randn(2, size, layout.d_sim)
        positions = torch.stack([torch.randperm(size), torch.randint(0, size, (size,))])
        mask = (torch.rand(2, size, size) < 0.6).double()
        mask[0, 1] = 0
        with torch.no_grad():
            found, wanted = module(e, positions, mask), definition(module, e, positions, mask)
        error = float((found - wanted).abs().max() / wanted.abs().max())
        assert error < 1e-12, (name, error)
        assert float(wanted.abs().max()) > 0
        seen.add((module.kind, module.transpose))
    assert seen == {("linear", False), ("softmax", False), ("softmax", True)}


def test_no_mask_is_a_mask_of_ones_and_rows_without_keys_give_the_output_s_bias(sim: TintForCausalLM) -> None:
    torch.manual_seed(1)
    layout = sim.layout
    e, positions = randn(1, layout.sim_seq_len, layout.d_sim), torch.arange(layout.sim_seq_len)[None]
    ones = torch.ones(1, layout.sim_seq_len, layout.sim_seq_len, dtype=torch.bool)
    for module in sim.modules():
        if isinstance(module, TintAttention):
            randomise(module)
            with torch.no_grad():
                assert torch.equal(module(e, positions), module(e, positions, ones))
                nothing = module(e, positions, torch.zeros_like(ones))
                assert torch.equal(nothing, module.w_o(torch.zeros_like(e)))


def test_rotation_by_token_positions(sim: TintForCausalLM) -> None:
    """Without them the definition holds; with them, equal positions rotate scores away, unequal ones do not."""
    torch.manual_seed(2)
    layout = sim.layout
    e, positions = randn(1, layout.sim_seq_len, layout.d_sim), torch.arange(layout.sim_seq_len)[None]
    for module in sim.modules():
        if isinstance(module, TintAttention) and module.vector("inv_freq") is not None:
            randomise(module)
            with torch.no_grad():
                plain, same = module(e, positions), module(e, positions, None, torch.full_like(positions, 7))
                assert torch.allclose(plain, same, rtol=0, atol=1e-10 * float(plain.abs().max()))
                assert not torch.allclose(plain, module(e, positions, None, positions), rtol=1e-3)
