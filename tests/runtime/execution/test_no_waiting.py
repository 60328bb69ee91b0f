"""A fused pass on a GPU waits for nothing: run on a GPU that is not there, which has no values to wait for.

And what a GPU computes in another way than a CPU, so that it need not wait, is the same (fp64, 1e-12).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention_programs import decoder
from fake_gpu import GPU, NoCopies, NoHostMemory, Waits, fake_gpu, fake_inputs, on_fake_gpu
from fused_cases import compiled, token_ids
from programs import hybrid_like, mixture_like, simulator
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from tintc.ir.core import Value, tokens
from tintc.ir.inputs import Inputs, resolve_inputs
from tintc.ir.simulator.interface.chosen_experts import Routing
from tintc.ir.simulator.interface.fused_base import FusedWeights, Pending
from tintc.ir.simulator.kernels.grouped import grouped_sums
from tintc.ir.simulator.shared.grouped import expert_sums, grouped_linear, grouped_transposed
from tintc.ir.simulator.shared.grouped_device import linear_on_device, transposed_on_device
from tintc.runtime.adaptation.cache import TintCache
from tintc.runtime.adaptation.continuation import base_weights, stored_weights
from tintc.runtime.adaptation.continued_run import ContinuedRun
from tintc.runtime.execution.fused import executor
from tintc.runtime.execution.fused.batches import sizes_of
from tintc.runtime.execution.fused.executor import FusedExecutor
from tintc.runtime.execution.fused.planner import make_plan
from tintc.runtime.execution.fused.read_rates import RunRates
from tintc.runtime.model.causal_lm import TintForCausalLM

VOCAB = 11
SIMULATORS: dict[str, Callable[[], TintForCausalLM]] = {
    "gpt2": lambda: compiled("gpt2", n_steps=2),
    "opt": lambda: compiled("opt", n_steps=2),
    "llama": lambda: compiled("llama", n_steps=2),
    "windows and caps": lambda: written(decoder, window=3, soft_cap=2.0),
    "alibi": lambda: written(decoder, slopes=(0.5, 0.25, 0.125)),
    "sinks": lambda: written(decoder, sunk=True),
    "experts": lambda: written(mixture_like, chosen=2, normalise="sum", biases=True),
    "sparse mixer": lambda: written(mixture_like, chosen=2, scores="sparse_mixer", jitter=0.1),
    "delta rule": lambda: written(hybrid_like, key_heads=2, delta=True, unit_eps=1e-6),
    "state space": lambda: written(hybrid_like, key_heads=1, by_coordinate=True, skip=True),
}
LENGTH = 9
SELDOM = ("opt", "sinks", "sparse mixer")


def written(make: Callable[..., Any], **options: Any) -> TintForCausalLM:
    return simulator(*make(**options), inner_lr=0.02, n_steps=2)


def masks(masked: bool, apart: bool) -> dict[str, Any]:
    """masked: padding on either side; apart: other train tokens in every step."""
    given: dict[str, Any] = {}
    if masked:
        given["attention_mask"] = torch.ones(2, LENGTH)
        given["attention_mask"][0, :2] = 0
        given["attention_mask"][1, 7:] = 0
    if apart:
        given["train_mask"] = torch.zeros(2, 2, LENGTH)
        given["train_mask"][0, :, :4] = 1
        given["train_mask"][1, :, 3:7] = 1
    return given


def text(count: int = LENGTH, **given: Any) -> Inputs:
    """Two texts, of which is known before a pass what it has to know."""
    inputs = resolve_inputs(token_ids(2, count, VOCAB), **given)
    assert inputs.plain or inputs.only_padding
    return inputs


def known_rates(model: Any, ops: Any, rates: Any, recorded: bool) -> RunRates:
    """Rates as a run knows them once they are read: a number, and one for each example."""
    each = torch.empty(2, dtype=torch.float64, device=GPU)
    keys = [(name, op.step) for op in ops for name in op.rates()]
    return {key: each if place % 2 else 0.02 for place, key in enumerate(keys)}


def check_pass(sim: TintForCausalLM, inputs: Inputs, update: str) -> None:
    sizes = sizes_of(inputs, sim.config.vocab_size)
    with fake_gpu():
        other = on_fake_gpu(sim)
        plan = make_plan(other.program, ("logits_before", "logits"), sizes, update)
        run = FusedExecutor(other, fake_inputs(inputs), plan, None, {})
        with NoHostMemory():
            out = run.run()
    assert out["logits"].device == GPU and out["logits"].shape == (2, LENGTH, sim.config.vocab_size)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SELDOM else name for name in SIMULATORS]
)
def test_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two steps, each with train tokens of its own, and padding."""
    monkeypatch.setattr(executor, "read_rates", known_rates)
    check_pass(SIMULATORS[name](), text(**masks(True, True)), "lazy")


def test_passes_without_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "read_rates", known_rates)
    check_pass(SIMULATORS["windows and caps"](), text(), "materialised")


@pytest.mark.parametrize("name", ["llama", "windows and caps", "alibi", "experts", "delta rule", "state space"])
def test_next_tokens(name: str) -> None:
    sim = SIMULATORS[name]()
    inputs = text(1)
    with fake_gpu():
        other = on_fake_gpu(sim)
        weights = stored_weights(other) | base_weights(other)
        cache = TintCache(other.continuation.carrying)
        with NoCopies():
            for count in (1, 2):
                places = torch.empty(2, count, dtype=torch.long, device=GPU)
                run = ContinuedRun(other, fake_inputs(inputs), places)
                logits = run.run(weights, cache)
    assert logits.device == GPU and logits.shape == (2, 1, sim.config.vocab_size)


def test_what_waits_is_seen() -> None:
    with fake_gpu(), NoCopies():
        x = torch.empty(3, device=GPU)
        assert x[None, :2, ...].shape == (1, 2)
        with pytest.raises(DataDependentOutputException):
            x[0].item()
        with pytest.raises(DataDependentOutputException):
            bool(x.any())
        with pytest.raises(DynamicOutputShapeException):
            torch.ops.aten.nonzero(x)
        with pytest.raises(Waits):
            torch.zeros(3).to(GPU)
        with pytest.raises(Waits):
            x.to("cpu")


def test_a_pass_that_waits_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here it reads a rate as it goes."""
    sim = compiled("llama", n_steps=2)
    inputs = text()
    sizes = sizes_of(inputs, sim.config.vocab_size)
    with fake_gpu():
        other = on_fake_gpu(sim)
        plan = make_plan(other.program, ("logits",), sizes)
        with pytest.raises(DataDependentOutputException):
            FusedExecutor(other, fake_inputs(inputs), plan, None, {})


@pytest.mark.parametrize("examples", [False, True])
def test_experts_on_a_device(examples: bool) -> None:
    """Groups by masks are groups by cutting out: products, biases, pending updates and sums, fp64."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    b, n, k, count, din, dout = 2, 5, 2, 4, 3, 6
    stack = (b, count) if examples else (count,)
    routing = Routing.of(random(b, n, count), k)
    earlier = Routing.of(random(b, 3, count), k).experts.flatten(1)
    update = Pending(random(b, 3 * k, dout), random(b, 3, din), Value("x", tokens(din)), 1, 0.3, earlier)
    w = FusedWeights(random(*stack, dout, din), random(*stack, dout), (update,))
    x, dy = random(b, n, k, din), random(b, n, k, dout)
    exact = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(linear_on_device(w, routing.experts, x), grouped_linear(w, routing, x), **exact)
    moved = transposed_on_device(w, routing.experts, dy)
    torch.testing.assert_close(moved, grouped_transposed(w, routing, dy), **exact)
    vectors = update.x.repeat_interleave(k, 1)
    sums = grouped_sums(update.dy, vectors, earlier, count)
    torch.testing.assert_close(sums, expert_sums(update.dy, vectors, earlier, count), **exact)
