"""The parts: what each measures, point by point, the most telling first."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from benchmarks.gpu import models
from benchmarks.gpu import pairs as alone
from benchmarks.gpu.lora_peer import LoraPeer
from benchmarks.gpu.models import RATE, Shape
from benchmarks.gpu.setup import PROGRAMS, Setup, copy_rate, product_rate
from benchmarks.peer import Peer
from tintc.ir.simulator.kernels.choice import TABLE, using
from tintc.runtime.execution.fused.costs import multiply_adds
from tintc.runtime.execution.fused.plan import Sizes
from tintc.runtime.execution.fused.planner import make_plan
from tintc.runtime.model.causal_lm import TintForCausalLM

MODELS = ("opt-125m", "smollm2-135m", "llama-1.2b")
POINTS = ((64, 512), (8, 512), (1, 512), (64, 256), (8, 256), (1, 256), (8, 2048), (1, 2048), (64, 1024), (64, 2048))
"""(texts, tokens of each), the first the one that is looked at closely, the dearest last."""
TURNS = ((torch.bfloat16, slice(6)), (torch.float32, slice(2)), (torch.bfloat16, slice(6, None)))
"""Points of the table by dtype, in the order in which they are measured."""
SMALL_POINTS = ((1, 128), (1, 512), (8, 128), (8, 512))
"""Passes that are mostly launches."""
PAIR_POINTS = ((64, 512), (8, 512), (1, 512))
TINY_POINTS = ((3, 16), (1, 24))
PROMPT, NEW = 128, 64
EXPLICIT = 2
"""Texts that are tuned one by one; the time of more is taken to be in proportion."""
SHOWN_KERNELS = 15
BF16, FP32 = torch.bfloat16, torch.float32


def prepare(setup: Setup) -> None:
    """The programs of all shapes, so that no part waits for its own."""
    for name in ("tiny",) if setup.tiny else MODELS:
        with setup.trying("prepare", model=name):
            models.prepare(name, setup.out / PROGRAMS)


def points(setup: Setup) -> tuple[tuple[int, int], ...]:
    return TINY_POINTS if setup.tiny else POINTS


def ceilings(setup: Setup) -> None:
    """Rates of a large product and a large copy, and what runs where."""
    name = "cpu"
    if setup.device.type == "cuda":
        name = torch.cuda.get_device_name(setup.device)
    setup.note(
        "ceilings",
        device=name,
        torch=torch.__version__,
        tiny=setup.tiny,
        bf16=product_rate(setup, BF16),
        fp32=product_rate(setup, FP32),
        copy=copy_rate(setup),
    )


@dataclass
class Measured:
    """A shape, its auxiliary, and whoever tunes that explicitly."""

    shape: Shape
    auxiliary: PreTrainedModel
    peer: Peer

    @classmethod
    def of(cls, setup: Setup, name: str, dtype: torch.dtype) -> Measured:
        shape = setup.make(name, dtype)
        auxiliary = shape.auxiliary()
        return cls(shape, auxiliary, Peer(auxiliary, shape.sim.program, RATE))

    def texts(self, setup: Setup, batch: int, length: int) -> Tensor:
        return setup.texts(batch, length, self.shape.sim.config.vocab_size)


def table(setup: Setup, name: str) -> None:
    """An update and its predictions, half of the text trained on, beside a plain forward pass and explicit tuning."""
    made: dict[torch.dtype, Measured] = {}
    for dtype, which in TURNS:
        for batch, length in points(setup)[which]:
            if not setup.left:
                return
            given = {"model": name, "dtype": str(dtype), "batch": batch, "length": length}
            with setup.trying("table", **given):
                if dtype not in made:
                    made[dtype] = Measured.of(setup, name, dtype)
                _point(setup, given, made[dtype], batch, length)


@torch.no_grad()
def _point(setup: Setup, given: dict[str, Any], measured: Measured, batch: int, length: int) -> None:
    sim = measured.shape.sim
    ids = measured.texts(setup, batch, length)
    peak = setup.peak(lambda: sim(ids))
    fused = setup.median(lambda: sim(ids), 3)
    forward = setup.median(lambda: measured.auxiliary(ids, use_cache=False).logits, 3)
    few = ids[:EXPLICIT]
    explicit = setup.median(lambda: measured.peer.run_batch(few, length // 2), 2) * batch / len(few)
    plan = make_plan(sim.program, ("logits",), Sizes(batch, length, length // 2, sim.config.vocab_size, filled=True))
    products = multiply_adds(plan)
    setup.note("table", **given, fused=fused, forward=forward, explicit=explicit, peak=peak, products=products)


def lora(setup: Setup, name: str, compiled: bool) -> None:
    """The first point of the table, as `lora_peer.py` does it."""
    batch, length = points(setup)[0]
    shape = setup.make(name, BF16)
    ids = setup.texts(batch, length, shape.sim.config.vocab_size)
    peer = LoraPeer(shape.auxiliary(), shape.sim.program, batch, RATE)
    given = {"model": name, "batch": batch, "length": length}
    with setup.trying("lora", **given, compiled=False):
        setup.note("lora", **given, compiled=False, seconds=setup.median(lambda: peer.run(ids, length // 2), 3))
    if compiled and setup.left:
        with setup.trying("lora", **given, compiled=True):
            peer.compile()
            setup.note("lora", **given, compiled=True, seconds=setup.median(lambda: peer.run(ids, length // 2), 3))


@torch.no_grad()
def kernels(setup: Setup, name: str) -> None:
    """The first point's time by kernel, and the part of it in which none runs."""
    batch, length = points(setup)[0]
    measured = Measured.of(setup, name, BF16)
    ids = measured.texts(setup, batch, length)
    sim = measured.shape.sim
    wall = setup.median(lambda: sim(ids), 3)
    on_gpu = setup.device.type == "cuda"
    device, column = DeviceType.CPU, "self_cpu_time_total"
    activities = [ProfilerActivity.CPU]
    if on_gpu:
        device, column = DeviceType.CUDA, "self_device_time_total"
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as seen:
        sim(ids)
        setup.wait()
    averages = seen.key_averages()
    entries = [entry for entry in averages if entry.device_type == device]  # of a GPU: kernels, not who launched them
    spent = {entry.key: getattr(entry, column) / 1e6 for entry in entries}
    count = {entry.key: entry.count for entry in entries}
    busy = sum(spent.values())
    most = sorted(spent, key=lambda key: -spent[key])[:SHOWN_KERNELS]
    listed = [{"name": key, "seconds": spent[key], "calls": count[key]} for key in most]
    given = {"model": name, "batch": batch, "length": length}
    setup.note("kernels", **given, wall=wall, busy=busy, calls=sum(count.values()), kernels=listed)
    text = averages.table(sort_by=column, row_limit=60, max_name_column_width=90)
    with (setup.out / "profile.txt").open("a", encoding="utf-8") as file:
        file.write(f"{name}, {batch} texts of {length} tokens\n{text}\n")


def pairs(setup: Setup, name: str) -> None:
    """Each kernel of the table alone beside PyTorch's operators."""
    alone.measure(setup, name, TINY_POINTS[:1] if setup.tiny else PAIR_POINTS)


@torch.no_grad()
def twins(setup: Setup, name: str) -> None:
    """The first point's pass with PyTorch's operators, with all of our kernels, with the libraries', and with each."""
    batch, length = points(setup)[0]
    sim = setup.make(name, BF16).sim
    ids = setup.texts(batch, length, sim.config.vocab_size)
    with using("torch"):
        plain = sim(ids).logits
        for kernel in ("none", "triton", "library", *TABLE):
            if not setup.left:
                return
            with setup.trying("twins", model=name, kernel=kernel), _with_kernel(kernel):
                apart = _apart(sim(ids).logits, plain)
                taken = setup.median(lambda: sim(ids), 3)
                setup.note("twins", model=name, batch=batch, length=length, kernel=kernel, seconds=taken, apart=apart)


def _apart(found: Tensor, right: Tensor) -> float:
    """Return how far logits are from others, without a copy of all of them in a wider type."""
    return float(torch.linalg.vector_norm(found - right, dtype=FP32) / torch.linalg.vector_norm(right, dtype=FP32))


def _with_kernel(kernel: str) -> AbstractContextManager[None]:
    """Return a block in which that one kernel runs, ours in Triton or a library's, or all of a kind, or none."""
    if kernel in TABLE:
        return using(TABLE[kernel].other, kernel)
    return using("torch" if kernel == "none" else kernel)


@torch.no_grad()
def graphs(setup: Setup, name: str) -> None:
    """Passes over few tokens, launched op by op and as one graph, and what a graph costs: time to capture, memory."""
    sim = setup.make(name, BF16).sim
    for batch, length in TINY_POINTS if setup.tiny else SMALL_POINTS:
        if not setup.left:
            return
        with setup.trying("graphs", model=name, batch=batch, length=length):
            sim.graphs.clear()
            _graph(setup, name, sim, batch, length)


def _graph(setup: Setup, name: str, sim: TintForCausalLM, batch: int, length: int) -> None:
    ids = setup.texts(batch, length, sim.config.vocab_size)
    plain = sim(ids).logits
    without = setup.median(lambda: sim(ids), 3)
    setup.wait()
    started = time.perf_counter()
    kept = setup.peak(lambda: sim.warm_up(batch, length))
    captured = time.perf_counter() - started
    apart = _apart(sim(ids).logits, plain)
    seconds = setup.median(lambda: sim(ids), 5)
    given = {"model": name, "batch": batch, "length": length, "apart": apart, "captured": len(sim.graphs)}
    setup.note("graphs", **given, without=without, seconds=seconds, capture=captured, kept=kept)


@torch.no_grad()
def decode(setup: Setup, name: str) -> None:
    """New tokens per second after an adaptation, beside transformers' with its own model."""
    measured = Measured.of(setup, name, BF16)
    sim = measured.shape.sim
    prompt, new = (6, 4) if setup.tiny else (PROMPT, NEW)
    given = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 1}
    for batch in (1, 8):
        if not setup.left:
            return
        with setup.trying("decode", model=name, batch=batch):
            ids = measured.texts(setup, batch, prompt)
            theirs = setup.median(lambda ids=ids: _generate(measured.auxiliary, ids, given), 2)
            state = sim.adapt(ids)
            ours = setup.median(lambda ids=ids, state=state: sim.generate(ids, state=state, **given), 2)
            sim.warm_up(batch, prompt, new_tokens=new)
            replayed = setup.median(lambda ids=ids, state=state: sim.generate(ids, state=state, **given), 2)
            sim.graphs.clear()
            times = {"ours": ours, "replayed": replayed, "theirs": theirs}
            setup.note("decode", model=name, batch=batch, prompt=prompt, new=new, **times)


def _generate(model: PreTrainedModel, ids: Tensor, given: dict[str, int]) -> Tensor:
    return model.generate(ids, attention_mask=torch.ones_like(ids), **given)  # pyright: ignore[reportCallIssue]
