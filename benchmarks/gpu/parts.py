"""The parts: what each measures, point by point, the most telling first."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from benchmarks.gpu.lora_peer import LoraPeer
from benchmarks.gpu.models import RATE, Shape, make
from benchmarks.gpu.setup import Setup, copy_rate, product_rate
from benchmarks.peer import Peer
from tintc.errors import InputError
from tintc.ir.simulator.kernels.choice import TABLE, using
from tintc.runtime.execution.fused.costs import multiply_adds
from tintc.runtime.execution.fused.plan import Sizes
from tintc.runtime.execution.fused.planner import make_plan

MODELS = ("opt-125m", "smollm2-135m", "llama-1.2b")
POINTS = ((64, 512), (8, 512), (1, 512), (64, 2048), (8, 2048), (1, 2048), (64, 256), (64, 1024), (8, 256), (1, 256))
"""(texts, tokens of each), the first the one that is looked at closely."""
SMALL_POINTS = ((1, 128), (1, 512), (8, 128), (8, 512))
"""Passes that are mostly launches."""
TINY_POINTS = ((3, 16), (1, 24))
PROMPT, NEW = 128, 64
EXPLICIT = 2
"""Texts that are tuned one by one; the time of more is taken to be in proportion."""
SHOWN_KERNELS = 15
BF16, FP32 = torch.bfloat16, torch.float32


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
        shape = make("tiny" if setup.tiny else name, setup.device, dtype)
        auxiliary = shape.auxiliary()
        return cls(shape, auxiliary, Peer(auxiliary, shape.sim.program, RATE))

    def texts(self, setup: Setup, batch: int, length: int) -> Tensor:
        return setup.texts(batch, length, self.shape.sim.config.vocab_size)


def table(setup: Setup, name: str) -> None:
    """An update and its predictions, half of the text trained on, beside a plain forward pass and explicit tuning."""
    for dtype in (BF16, FP32):
        if not setup.left:
            return
        measured = Measured.of(setup, name, dtype)
        for batch, length in points(setup)[: None if dtype == BF16 else 3]:
            if setup.left:
                _point(setup, name, measured, batch, length)


@torch.no_grad()
def _point(setup: Setup, name: str, measured: Measured, batch: int, length: int) -> None:
    sim = measured.shape.sim
    ids = measured.texts(setup, batch, length)
    given = {"model": name, "dtype": str(sim.dtype), "batch": batch, "length": length}
    try:
        peak = setup.peak(lambda: sim(ids))
        fused = setup.median(lambda: sim(ids), 3)
    except (InputError, torch.OutOfMemoryError) as error:
        setup.note("table", **given, refused=str(error).partition("\n")[0])
        return
    forward = setup.median(lambda: measured.auxiliary(ids, use_cache=False).logits, 3)
    few = ids[:EXPLICIT]
    explicit = setup.median(lambda: measured.peer.run_batch(few, length // 2), 2) * batch / len(few)
    plan = make_plan(sim.program, ("logits",), Sizes(batch, length, length // 2, sim.config.vocab_size, filled=True))
    products = multiply_adds(plan)
    setup.note("table", **given, fused=fused, forward=forward, explicit=explicit, peak=peak, products=products)


def lora(setup: Setup, name: str, compiled: bool) -> None:
    """The first point of the table, as `lora_peer.py` does it."""
    batch, length = points(setup)[0]
    shape = make("tiny" if setup.tiny else name, setup.device, BF16)
    ids = setup.texts(batch, length, shape.sim.config.vocab_size)
    peer = LoraPeer(shape.auxiliary(), shape.sim.program, batch, RATE)
    given = {"model": name, "batch": batch, "length": length}
    setup.note("lora", **given, compiled=False, seconds=setup.median(lambda: peer.run(ids, length // 2), 3))
    if compiled and setup.left:
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


@torch.no_grad()
def twins(setup: Setup, name: str) -> None:
    """The first point's pass with PyTorch's operators, with each of our kernels in its place, and with all."""
    batch, length = points(setup)[0]
    sim = make("tiny" if setup.tiny else name, setup.device, BF16).sim
    ids = setup.texts(batch, length, sim.config.vocab_size)
    with using("torch"):
        plain = sim(ids).logits
        for kernel in ("none", "triton", *TABLE):
            if not setup.left:
                return
            with _with_kernel(kernel):
                apart = float((sim(ids).logits.double() - plain.double()).norm() / plain.double().norm())
                taken = setup.median(lambda: sim(ids), 3)
            setup.note("twins", model=name, batch=batch, length=length, kernel=kernel, seconds=taken, apart=apart)


def _with_kernel(kernel: str) -> AbstractContextManager[None]:
    """Return a block in which that one kernel runs, ours in Triton or a library's, or all of ours, or none."""
    if kernel in TABLE:
        return using(TABLE[kernel].other, kernel)
    return using("torch" if kernel == "none" else kernel)


@torch.no_grad()
def graphs(setup: Setup, name: str) -> None:
    """Passes over few tokens, launched op by op and as one graph, and what a graph costs: time to capture, memory."""
    sim = make("tiny" if setup.tiny else name, setup.device, BF16).sim
    for batch, length in TINY_POINTS if setup.tiny else SMALL_POINTS:
        if not setup.left:
            return
        sim.graphs.clear()
        ids = setup.texts(batch, length, sim.config.vocab_size)
        plain = sim(ids).logits.double()
        without = setup.median(lambda ids=ids: sim(ids), 3)
        setup.wait()
        started = time.perf_counter()
        kept = setup.peak(lambda batch=batch, length=length: sim.warm_up(batch, length))
        captured = time.perf_counter() - started
        apart = float((sim(ids).logits.double() - plain).norm() / plain.norm())
        seconds = setup.median(lambda ids=ids: sim(ids), 5)
        given = {"model": name, "batch": batch, "length": length, "apart": apart, "captured": len(sim.graphs)}
        setup.note("graphs", **given, without=without, seconds=seconds, capture=captured, kept=kept)


@torch.no_grad()
def decode(setup: Setup, name: str) -> None:
    """New tokens per second after an adaptation, beside transformers' with its own model."""
    measured = Measured.of(setup, name, BF16)
    sim = measured.shape.sim
    prompt, new = (6, 4) if setup.tiny else (PROMPT, NEW)
    for batch in (1, 8):
        if not setup.left:
            return
        ids = measured.texts(setup, batch, prompt)
        given = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 1}
        state = sim.adapt(ids)
        ours = setup.median(lambda ids=ids, given=given, state=state: sim.generate(ids, state=state, **given), 2)
        theirs = setup.median(lambda ids=ids, given=given: _generate(measured.auxiliary, ids, given), 2)
        sim.warm_up(batch, prompt, new_tokens=new)
        replayed = setup.median(lambda ids=ids, given=given, state=state: sim.generate(ids, state=state, **given), 2)
        sim.graphs.clear()
        times = {"ours": ours, "replayed": replayed, "theirs": theirs}
        setup.note("decode", model=name, batch=batch, prompt=prompt, new=new, **times)


def _generate(model: PreTrainedModel, ids: Tensor, given: dict[str, int]) -> Tensor:
    return model.generate(ids, attention_mask=torch.ones_like(ids), **given)  # pyright: ignore[reportCallIssue]
