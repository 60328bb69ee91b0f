"""Theorem C.2, Lemma C.3: linear attention by softmax heads and a sink, against its bound and against linear attention.

The bound of construction.md, section 12, with a rounding term: a weight passes an exponential, a quotient and a sum of
n terms, twice.
"""

from __future__ import annotations

import logging
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fused_cases import family
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import build, gpt_like, imported, llama_like, simulator
from tiny_models import llama
from torch import Tensor

import tintc
from tintc.analysis.parameter_counts import count_parameters, unrolled_count
from tintc.analysis.report import parameter_report
from tintc.compiler import warn_of_coarse_heads
from tintc.errors import ModelError, OptionError
from tintc.evaluation.perplexity import evaluate_blocks
from tintc.ir.functions import sink_softmax
from tintc.lowering.passes.calibrate_softmax_heads import calibrate_softmax_heads
from tintc.runtime.execution.literal.attention import TintAttention
from tintc.runtime.load import load, write_artefact
from tintc.runtime.model.causal_lm import TintForCausalLM

STORIES = Path(__file__).parents[4] / "shared" / "models" / "stories260K"
STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big red ball under a tree. Lily wanted to play with it, but it belonged to a boy named Tom. They threw the ball."
)


def bound(
    scores: Tensor, values: Tensor, temperature: Tensor | float, sink: float, n: int, dtype: torch.dtype
) -> Tensor:
    """``[..., n_queries, width]``: sum |v| (max|s|^2 / R + 2 n max|s| / (M + n) + 3 (n + 16) u R), for |s| <= R / 4."""
    top, unit = scores.abs().amax((-1, -2), keepdim=True), torch.finfo(dtype).eps / 2
    assert bool((top <= torch.as_tensor(temperature, dtype=torch.float64) / 4).all()) and sink >= 10 * n
    per_value = top.square() / temperature + 2 * n * top / (sink + n) + 3 * (n + 16) * unit * temperature
    return per_value * values.abs().sum(-2, keepdim=True)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 40),
    st.integers(0, 9),
    st.floats(-8, 8),
    st.floats(2, 20),
    st.floats(4, 40),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 999),
)
def test_one_head(n: int, rest: int, size: float, log_r: float, log_m: float, dtype: torch.dtype, seed: int) -> None:
    """Lemma C.3 for any scores up to R / 4, with `rest` more positions of score and value 0; `size`: log2 of scores."""
    generator = torch.Generator().manual_seed(seed)
    scores = (2 * torch.rand(1, 1, 3, n, dtype=torch.float64, generator=generator) - 1) * 2**size
    values = torch.randn(1, 1, n, 4, dtype=torch.float64, generator=generator)
    temperature, total = float(scores.abs().max()) * 2**log_r, n + rest
    sink = 10 * total * 2**log_m
    logit = torch.full((1,), math.log(sink), dtype=dtype)
    s, v = (scores / temperature).to(dtype), values.to(dtype)
    a, b = (sink_softmax(x, logit, rest) @ v for x in (s, torch.zeros_like(s)))
    found = temperature * (sink + total) * (a - b).double()
    assert bool(((found - scores @ values).abs() <= bound(scores, values, temperature, sink, total, dtype)).all())


@cache
def pair(name: str, dtype: torch.dtype = torch.float64, **chosen: Any) -> tuple[TintForCausalLM, TintForCausalLM]:
    """A simulator with linear heads and one with softmax heads, both literal."""
    made, lr = family(name), 0.02
    linear = made.compile(dtype=dtype, inner_lr=lr, **chosen)
    ids = torch.randint(0, 53, (20,), generator=torch.Generator().manual_seed(1))
    program = calibrate_softmax_heads(linear.program, made.auxiliary.tensors, lr, dtype, ids)
    options = tintc.compiler.Options(inner_lr=lr, linear_attention="softmax", **chosen)
    softmax = tintc.compiler.assemble(program, made.auxiliary, made.source, options, dtype)
    softmax.executor = "literal"
    return linear, softmax


@cache
def by_hand(name: str, layers: int, inner_lr: float = 0.02, **chosen: Any) -> tuple[TintForCausalLM, TintForCausalLM]:
    """The same of a program written by hand."""
    auxiliary, tensors = {"gpt2": gpt_like, "llama": llama_like}[name](layers=layers)
    linear = simulator(auxiliary, tensors, inner_lr=inner_lr, **chosen)
    ids = torch.randint(0, 11, (20,), generator=torch.Generator().manual_seed(1))
    program = calibrate_softmax_heads(linear.program, tensors, inner_lr, torch.float64, ids)
    return linear, build(program, tensors, inner_lr)


def heads(module: TintAttention, e: Tensor, positions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Masked scores ``[B, H, n, n]`` and values ``[B, H, n, width]`` of a linear attention."""
    q, k, v = (module._heads(letter, e, positions) for letter in "qkv")
    return (q @ k.transpose(-1, -2)) * mask[:, None], v


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_every_module(name: str) -> None:
    """Forward, backward and descent with and without bias, and norms': on any embeddings, with a mask, on a text that
    is shorter than T_sim, no entry is farther from the linear module than the bound. fp64."""
    linear, softmax = pair(name)
    generator = torch.Generator().manual_seed(0)
    length, seen = linear.layout.sim_seq_len - 3, set()
    e = torch.randn(2, length, linear.layout.d_sim, dtype=torch.float64, generator=generator)
    mask = (torch.rand(2, length, length, generator=generator) < 0.6).double()
    positions = torch.arange(length).expand(2, -1)
    for op in softmax.program.ops:
        for block, (built, _) in op.realised(softmax.layout).items() if op.softmax else ():  # pyright: ignore
            before, after = linear.block(block)[0], softmax.block(built)[0]
            if built == block or built in seen:
                continue
            assert isinstance(before, TintAttention) and isinstance(after, TintAttention)
            varied, constant, sink = op.softmax  # pyright: ignore[reportAttributeAccessIssue]
            r = torch.full((before.n_heads, 1, 1), varied, dtype=torch.float64)
            r[list(before.spec.constant)] = constant
            small = e * min(1.0, 1e-4 * varied)
            with torch.no_grad():
                scores, values = heads(before, small, positions, mask)
                allowed = bound(scores, values, r, sink, softmax.layout.sim_seq_len, torch.float64)
                apart = after(small, positions, mask) - before(small, positions, mask)
                allowed = before.w_o(allowed.expand_as(scores @ values).transpose(1, 2).flatten(-2).contiguous())
            assert bool((apart.abs() <= allowed.abs()).all()), built
            assert after.n_heads == 2 * before.n_heads and after.kind == "sink"
            seen.add(built)
    kinds = {built.split("_softmax_")[0] for built in seen}
    bias = {"linear_forward_bias", "linear_descent_bias", "norm_descent"} if name == "gpt2" else set()
    assert kinds >= {"linear_backward"} | bias | ({"linear_forward", "linear_descent"} if name == "llama" else set())


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [("gpt2", torch.float64, 1e-5), ("llama", torch.float64, 1e-5), ("llama", torch.float32, 0.1)],
)
def test_a_whole_simulator(name: str, dtype: torch.dtype, tolerance: float) -> None:
    """Logits before and after, relative to the update: about 100 sqrt(u) in these random models of three layers."""
    check_whole(*pair(name, dtype), tolerance)


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("gpt2", {"loss": "mse", "n_update_layers": 1}),
        ("gpt2", {"n_steps": 3, "n_update_layers": 1}),
        ("llama", {"loss": "quad", "n_steps": 2, "inner_lr": 1e-3}),
        ("llama", {"gradient": "full", "descend": "all"}),
        ("llama", {"descend": "values,norm-gain", "difference": "fixed"}),
    ],
)
def test_other_options(name: str, chosen: dict[str, Any]) -> None:
    """Other losses, steps and groups have other linear heads, or the same with other scores. fp64."""
    check_whole(*by_hand(name, 1 + ("n_update_layers" in chosen), **chosen), 1e-5)


def test_steps_of_their_own_data() -> None:
    """Each step has scores at its own train tokens, calibrated on other tokens. fp64."""
    given = {"train_mask": torch.tensor([[[1] * 7 + [0] * 7] * 2, [[0] * 7 + [1] * 5 + [0] * 2] * 2])}
    check_whole(*by_hand("llama", 1, n_steps=2), 1e-5, **given)


def check_whole(linear: TintForCausalLM, softmax: TintForCausalLM, tolerance: float, **given: Tensor) -> None:
    ids = torch.randint(0, linear.config.vocab_size, (2, 14), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        right, found = (sim(ids, return_before=True, **given) for sim in (linear, softmax))
    update = float((right.logits - right.logits_before).norm())
    assert 0 < float((found.logits - right.logits).norm()) / update < tolerance
    assert float((found.logits_before - right.logits_before).norm()) / update < tolerance


def test_counts_are_the_tensors_sizes() -> None:
    linear, softmax = pair("gpt2")
    state = softmax.state_dict()
    assert count_parameters(softmax.program).unique == sum(tensor.numel() for tensor in state.values())
    assert parameter_report(softmax.program)["parameters"]["unrolled"] == unrolled_count(softmax.program)
    stages, layout = {name: tensor.shape for name, tensor in state.items()}, softmax.layout
    doubled = [shape for name, shape in stages.items() if "linear_forward_bias_softmax" in name]
    assert (layout.d_h, 2 * layout.n_heads, layout.n_heads) in doubled
    assert (layout.d_h, layout.n_heads, 2 * layout.n_heads) in doubled
    assert unrolled_count(softmax.program) > unrolled_count(linear.program)


def one_layer() -> Any:
    return llama(n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=12, vocab=23)


def test_which_executor(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Literal only: `fused` refuses with the reason, `auto` says it, before and after a round trip through a folder."""
    sim = tintc.compile(one_layer(), inner_lr=0.02, linear_attention="softmax", dtype="float64")
    ids = torch.arange(10)[None]
    with caplog.at_level(logging.WARNING, "tintc"), torch.no_grad():
        right = sim(ids).logits
    assert sim.last_executor == "literal" and "linear heads are softmax heads" in caplog.text
    loaded = load(write_artefact(sim, tmp_path / "sim"))
    with torch.no_grad():
        assert float((loaded(ids).logits - right).abs().max()) < 1e-5
    assert loaded.config.linear_attention == "softmax" and "softmax" in (tmp_path / "sim" / "program.tint").read_text()
    assert "leave an error" not in caplog.text
    loaded.executor = "fused"
    with pytest.raises(OptionError, match="softmax heads"):
        loaded(ids)
    with pytest.raises(OptionError, match="compile for this type"):
        load(tmp_path / "sim", dtype="float32")(ids)


def test_what_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    model = one_layer()
    with pytest.raises(OptionError, match="float32"):
        tintc.compile(model, linear_attention="softmax", dtype="bfloat16")
    warn_of_coarse_heads(torch.float32)
    assert "Softmax heads in float32 leave an error of the size of the update" in caplog.text
    with pytest.raises(OptionError, match="unknown"):
        tintc.compile(model, linear_attention="hard")
    with pytest.raises(OptionError, match="calibration text"):
        tintc.compile(model, linear_attention="softmax", inner_lr=1e200, n_steps=3)
    with pytest.raises(ModelError, match="no tokenizer"):
        tintc.compile(model, linear_attention="softmax", calibration="a text")


@pytest.mark.skipif(not STORIES.exists(), reason=f"{STORIES} is not here")
def test_perplexity_of_a_trained_model() -> None:
    """stories260K, fp32: the perplexity after the update is the linear simulator's within 1 %, before it too."""
    made, options = imported(str(STORIES)), {"inner_lr": 1e-4, "n_update_layers": 2}
    linear = made.compile(max_length=48, dtype=torch.float32, **options)
    assert made.source.tokenizer is not None
    ids = torch.tensor(made.source.tokenizer(STORY)["input_ids"][:48])
    program = calibrate_softmax_heads(linear.program, made.auxiliary.tensors, 1e-4, torch.float32, ids)
    chosen = tintc.compiler.Options(**options, linear_attention="softmax")
    softmax = tintc.compiler.assemble(program, made.auxiliary, made.source, chosen, torch.float32)
    linear.executor = "fused"
    right, found = (evaluate_blocks(sim, ids, block_size=48) for sim in (linear, softmax))
    assert found.perplexity_before == pytest.approx(right.perplexity_before, rel=0.01)
    assert found.perplexity_after == pytest.approx(right.perplexity_after, rel=0.01)
