"""What the two ways of choosing a finite difference's step cost in fp32, where rounding counts.

    python benchmarks/differences.py [--model ../shared/models/stories260K] [--length 64] [--no-write]

The gradient of a simulator in fp32, beside that of explicit fine-tuning in fp64 with exact derivatives of norms and
activations (and detached scores, as in the simulator), layer by layer. Writes its section of
``docs/approximations.md``.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import report

import tintc
from tintc.compiler import calibration_ids
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.source.load import load_auxiliary
from tintc.ir.auxiliary.interpreter import view
from tintc.ir.inputs import resolve_inputs
from tintc.option_facts import SCHEMES
from tintc.reference import Approximations, tune
from tintc.reference.approximations import DESCENDS
from tintc.reference.simulated_gradients import first_step, simulated_gradients

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT.parent / "shared" / "models" / "stories260K"
DOCUMENT = ROOT / "docs" / "approximations.md"


def measure(model: Path, length: int) -> dict[str, dict[int, Tensor]]:
    """By scheme and layer (-1: the final norm) ``|a - b|^2`` and ``|b|^2`` of the gradient a and the exact one b. The
    text is the built-in one, all of which is trained on."""
    source = load_auxiliary(str(model))
    ids = calibration_ids(source, None)[None, :length]
    mask = torch.ones_like(ids)
    chosen = Approximations(scores=True, groups=DESCENDS)
    exact = tune(capture(source.model, source.max_length), ids, mask, inner_lr=0.0, approximations=chosen).gradients[0]
    found: dict[str, dict[int, Tensor]] = {}
    for scheme in SCHEMES:
        sim = tintc.compile(str(model), difference=scheme, dtype="float32")
        layers = {op.target: op.layer for op in sim.program.ops if hasattr(op, "target")}  # pyright: ignore
        assert layers.keys() == first_step(sim.program).keys()
        sums: dict[int, Tensor] = defaultdict(lambda: torch.zeros(2, dtype=torch.float64))
        for name, gradient in simulated_gradients(sim, resolve_inputs(ids, mask)).items():
            parameter = sim.program.parameters[name]
            right = view(parameter, exact[parameter.source][0])
            pair = torch.stack([(gradient.double() - right).square().sum(), right.square().sum()])
            sums[layers[name.rpartition(".")[0]]] += pair
        found[scheme] = dict(sums)
    return found


def lines(found: dict[str, dict[int, Tensor]], model: str, length: int) -> list[str]:
    """The section's body."""
    cells = [["scheme", "relative error", *(f"layer {layer}" for layer in sorted(found["token"]) if layer >= 0)]]
    for scheme, sums in found.items():
        total = torch.stack(list(sums.values())).sum(0)
        figures = [total, *(sums[layer] for layer in sorted(sums) if layer >= 0)]
        cells.append([f"`{scheme}`", *(f"{float((apart / size).sqrt()):.2e}" for apart, size in figures)])
    return [
        report.setting(),
        "",
        f"{model}, {length} tokens, all trained on; the simulator in fp32, the exact gradient in fp64. The fixed step",
        "is 0.001. Gradients here are large beside rounding, and what shows is the differences' own error, which",
        "grows with the step.",
        "",
        *report.table(cells),
        "",
    ]


def main(
    model: Annotated[Path, typer.Option(help="A model folder.")] = MODEL,
    length: Annotated[int, typer.Option(help="Tokens of the text.")] = 64,
    write: Annotated[bool, typer.Option(help="Update docs/approximations.md.")] = True,
) -> None:
    """Measure, print and write down."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not model.is_dir():
        raise SystemExit(f"This needs {model}, which is not here.")
    body = lines(measure(model, length), model.name, length)
    print("\n".join(body))
    if write:
        report.write_section("differences", "Steps of finite differences, in fp32", body, DOCUMENT)


if __name__ == "__main__":
    typer.run(main)
