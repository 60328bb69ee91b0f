"""One part of `benchmarks/gpu.sh`.

    python -m benchmarks.gpu PART [MODEL] [--out build/gpu] [--seconds 60] [--tiny] [--device cuda]

Parts: prepare, ceilings; table, lora, kernels, pairs, twins, graphs and decode, of one model; report, which needs no
GPU and may be run again wherever the figures are, such as where matplotlib is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer

from benchmarks.gpu import parts
from benchmarks.gpu.section import write
from benchmarks.gpu.setup import Setup

WHOLE = {"prepare": parts.prepare, "ceilings": parts.ceilings, "report": write}
OF_A_MODEL = {
    "table": parts.table,
    "kernels": parts.kernels,
    "pairs": parts.pairs,
    "twins": parts.twins,
    "graphs": parts.graphs,
    "decode": parts.decode,
}


def main(
    part: Annotated[str, typer.Argument(help="See above.")],
    model: Annotated[str, typer.Argument(help="Whose shape.")] = parts.MODELS[0],
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("build/gpu"),
    seconds: Annotated[float, typer.Option(help="After which no new measurement begins.")] = 60,
    tiny: Annotated[bool, typer.Option(help="Only show that everything runs.")] = False,
    device: Annotated[str, typer.Option(help="What is measured.")] = "cuda",
    compiled: Annotated[bool, typer.Option(help="The batched peer under torch.compile, too.")] = False,
) -> None:
    """Measure one part, and write its figures down."""
    transformers.logging.set_verbosity_error()
    torch.backends.cuda.matmul.allow_tf32 = True  # as what it is set beside is usually run; RESULTS.md says so
    setup = Setup(out, torch.device(device), tiny, seconds)
    if part in WHOLE:
        WHOLE[part](setup)
    elif part in OF_A_MODEL:
        OF_A_MODEL[part](setup, model)
    elif part == "lora":
        parts.lora(setup, model, compiled)
    else:
        raise typer.BadParameter(f"There is no part {part}.")
    if setup.failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
