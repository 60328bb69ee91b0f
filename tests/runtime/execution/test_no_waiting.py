"""A fused pass on a GPU waits for nothing: run on a GPU that is not there, which has no values to wait for.

And what a GPU computes in another way than a CPU, so that it need not wait, is the same (fp64, 1e-12).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from attention_programs import decoder
from fake_gpu import GPU, NoCopies, NoHostMemory, Waits, fake_gpu, fake_inputs, on_fake_gpu
from fused_cases import compiled, token_ids
from programs import Sketch, gpt_like, hybrid_like, llama_like, mixture_like, simulator
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from tintc.ir import auxiliary as aux
from tintc.ir.core import OPS, Value, tokens
from tintc.ir.inputs import Inputs, resolve_inputs
from tintc.ir.simulator import Repeat, SimOp
from tintc.ir.simulator.interface.chosen_experts import Routing
from tintc.ir.simulator.interface.fused_base import FusedWeights, Pending
from tintc.ir.simulator.kernels.grouped import grouped_sums
from tintc.ir.simulator.shared.grouped import expert_sums, grouped_linear, grouped_transposed
from tintc.ir.simulator.shared.grouped_device import linear_on_device, transposed_on_device
from tintc.runtime.adaptation.adapt import _stored_values
from tintc.runtime.adaptation.cache import TintCache
from tintc.runtime.adaptation.continuation import base_weights, stored_weights
from tintc.runtime.adaptation.continued_run import ContinuedRun
from tintc.runtime.adaptation.pending import Renamed
from tintc.runtime.execution.fused import batches, executor
from tintc.runtime.execution.fused.batches import sizes_of
from tintc.runtime.execution.fused.executor import FusedExecutor
from tintc.runtime.execution.fused.planner import make_plan
from tintc.runtime.execution.fused.read_rates import RunRates
from tintc.runtime.model.causal_lm import TintForCausalLM

VOCAB = 11
SIMULATORS: dict[str, Callable[[], TintForCausalLM]] = {
    "gpt2": lambda: written(gpt_like),
    "opt": lambda: compiled("opt", n_steps=2),
    "llama": lambda: written(llama_like),
    "windows and caps": lambda: once(decoder(layers=1, window=3, soft_cap=2.0)),
    "alibi": lambda: once(decoder(layers=1, slopes=(0.5, 0.25, 0.125))),
    "sinks": lambda: written(decoder, sunk=True),
    "experts": lambda: written(mixture_like, chosen=2, normalise="sum", biases=True),
    "sparse mixer": lambda: written(mixture_like, chosen=2, scores="sparse_mixer", jitter=0.1),
    "delta rule": lambda: once(hybrid_like(key_heads=2, delta=True, unit_eps=1e-6)),
    "state space": lambda: once(hybrid_like(key_heads=1, by_coordinate=True, skip=True)),
}


def scaled_and_moved() -> tuple[Any, Any]:
    """One layer of what others have not: a vector that is the same at every token, a scale, columns of a wide value."""
    make = Sketch(12)
    table = make.parameter("start", 1, 12)
    x = make.sum("begin", make.embedding("wte", VOCAB), make.add(aux.Constant, "start", 12, table=table))
    make.layer = 0
    x = make.sum("mid", x, make.attention("attn", make.norm("ln1", x), 3, 3))
    wide = make.linear("up", make.norm("ln2", x), 27, "ffn")
    moved = make.add(aux.Select, "moved", 32, wide, columns=((12, 27), (2, 5, 2), (-2, 0, 2), (0, 7)))
    down = make.linear("down", moved, 12, "ffn")
    x = make.sum("out", x, make.add(aux.Scale, "scaled", 12, down, factor=-0.5))
    make.layer = -1
    return make.finish(make.norm("lnf", x, "final"), VOCAB, 1)


FULL = {"gradient": "full", "descend": "all"}
GROUPS = "values,out,ffn,norm-bias,norm-gain"
RULES: dict[str, Callable[[], TintForCausalLM]] = {
    "full gradient": lambda: lowered(decoder(layers=1, window=3, soft_cap=2.0, sunk=True), **FULL),
    "full gradient of experts, normalised": lambda: lowered(
        mixture_like(layers=1, chosen=2, normalise="sum", biases=True), **FULL, optimizer="normalized"
    ),
    "momentum, normalised": lambda: lowered(
        gpt_like(layers=1), optimizer="normalized", normalize="all", momentum=0.5, decay=0.3, descend=GROUPS
    ),
    "sums, scales, selections": lambda: once(scaled_and_moved()),
    "fixed, another loss": lambda: once(gpt_like(layers=1), difference="fixed", loss="quad"),
}
"""Simulators of other gradients, other optimisers, another loss."""
LENGTH = 9
SELDOM = ("opt", "sinks", "sparse mixer")


def written(make: Callable[..., Any], **options: Any) -> TintForCausalLM:
    """Of one layer, since another has the same operators; in two steps."""
    return lowered(make(layers=1, **options))


def once(program: tuple[Any, Any], **options: Any) -> TintForCausalLM:
    """In one step, where others show what a second one does with weights that are waiting to be updated."""
    return lowered(program, n_steps=1, **options)


@cache
def kind(name: str) -> TintForCausalLM:
    """One simulator of each kind for all tests."""
    return (SIMULATORS | RULES)[name]()


def lowered(program: tuple[Any, Any], **options: Any) -> TintForCausalLM:
    return simulator(*program, **{"inner_lr": 0.02, "n_steps": 2} | options)


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
    """Of two steps, each with train tokens of its own, or one, and padding."""
    monkeypatch.setattr(executor, "read_rates", known_rates)
    sim = kind(name)
    check_pass(sim, text(**masks(True, sim.program.attributes["n_steps"] == 2)), "lazy")


@pytest.mark.parametrize(("name", "update"), [*((name, "lazy") for name in RULES), ("full gradient", "materialised")])
def test_other_rules(name: str, update: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "read_rates", known_rates)
    check_pass(kind(name), text(**masks(update == "lazy", False)), update)


def test_every_op_is_among_them() -> None:
    """Of those that a pass runs; whoever adds one adds a simulator here."""
    ran = {type(op) for name in (*SIMULATORS, *RULES) if name not in SELDOM for op in kind(name).program.ops}
    every = {op for op in OPS.values() if issubclass(op, SimOp) and op is not Repeat}
    assert sorted(op.__name__ for op in every - ran) == []


@pytest.mark.parametrize(("name", "update"), [("llama", "materialised"), ("experts", "lazy")])
def test_a_later_chunk(name: str, update: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream's second: it starts from the weights that the first has left, with other train tokens, and padding."""
    monkeypatch.setattr(executor, "read_rates", known_rates)
    sim, inputs = kind(name), text(**masks(True, False))
    sizes = sizes_of(inputs, sim.config.vocab_size)
    with fake_gpu():
        other = on_fake_gpu(sim)
        labels = {f"updated.{value.name}": value for value in other.continuation.updated}
        program = replace(other.program, outputs=labels)
        starts: dict[Value, FusedWeights] = {}
        for _ in range(2):
            begins = replace(sizes, starts=batches._layers(program, starts))
            plan = make_plan(program, tuple(labels), begins, update)
            run = FusedExecutor(other, fake_inputs(inputs), plan, None, starts)
            with NoHostMemory():
                learnt = run.run()
            renamed, stored = Renamed(), _stored_values(other)
            starts = {stored[value]: renamed.away(learnt[label]) for label, value in labels.items()}
    assert max(len(w.pending) for w in starts.values()) == 4 * (update == "lazy")


def test_passes_without_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "read_rates", known_rates)
    check_pass(kind("windows and caps"), text(), "materialised")


@pytest.mark.parametrize(
    "name", ["llama", "windows and caps", "alibi", "sinks", "experts", "delta rule", "state space"]
)
def test_next_tokens(name: str) -> None:
    sim = kind(name)
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
    sim = kind("llama")
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
