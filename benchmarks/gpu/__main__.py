"""One part of `benchmarks/gpu.sh`.

    python -m benchmarks.gpu PART [MODEL] [--out build/gpu] [--seconds 60] [--tiny] [--device cuda]

Parts: ceilings; table, lora, kernels, twins, graphs and decode, of one model; report, which needs no GPU.
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


def main(
    part: Annotated[str, typer.Argument(help="ceilings, table, lora, kernels, twins, graphs, decode or report.")],
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
    if part == "ceilings":
        parts.ceilings(setup)
    elif part == "table":
        parts.table(setup, model)
    elif part == "lora":
        parts.lora(setup, model, compiled)
    elif part == "kernels":
        parts.kernels(setup, model)
    elif part == "twins":
        parts.twins(setup, model)
    elif part == "graphs":
        parts.graphs(setup, model)
    elif part == "decode":
        parts.decode(setup, model)
    elif part == "report":
        write(setup)
    else:
        raise typer.BadParameter(f"There is no part {part}.")


if __name__ == "__main__":
    typer.run(main)
