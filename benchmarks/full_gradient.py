"""What each kind of gradient buys and costs: its error, parameter counts, and CPU time of an update.

    python benchmarks/full_gradient.py [--models stories260K,stories15M,SmolLM2] [--tokens 256] [--rounds 3]
        [--no-write]

For the paper's gradient and the full one: the error of the gradient of all parameters that the simulator updates, to
transformers' own autograd in fp64; the counts of `tintc inspect --params`; and fused execution against explicit tuning
of the same parameters with transformers and autograd, a pass, a step and another pass, in turn in one process, on one
thread, by CPU time; of the smallest model literal execution too, once. Half of the tokens are trained on. stories260K
and stories15M are expected in ``../shared``. Updates docs/approximations.md.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import report
import shapes

import tintc
from tintc.analysis.parameter_counts import count_parameters
from tintc.frontend.source.load import load_auxiliary
from tintc.ir.auxiliary.interpreter import view
from tintc.ir.inputs import resolve_inputs
from tintc.reference.simulated_gradients import simulated_gradients
from tintc.runtime.model.causal_lm import TintForCausalLM

DOCUMENT = Path(__file__).parents[1] / "docs" / "approximations.md"
MODELS = DOCUMENT.parents[2] / "shared" / "models"
LITERAL = "stories260K"
"""The model that is executed literally too."""
RATE = 1e-6
KINDS: dict[str, dict[str, Any]] = {
    "paper": {},
    "paper, central": {"difference": "central"},
    "full": {"gradient": "full"},
    "full, all": {"gradient": "full", "descend": "all"},
}


class Explicit:
    """Plain tuning of some parameters of the model itself."""

    def __init__(self, model: Any, names: set[str], ids: Tensor, train: int):
        self.model = model
        self.ids = ids
        self.train = train
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        self.parameters = {name: p for name, p in model.named_parameters() if name in names}

    def gradients(self) -> dict[str, Tensor]:
        logits = self.model(self.ids[:, : self.train]).logits[0, :-1]
        loss = F.cross_entropy(logits, self.ids[0, 1 : self.train], reduction="sum")
        return dict(zip(self.parameters, torch.autograd.grad(loss, list(self.parameters.values())), strict=True))

    def update(self) -> None:
        """Step, predict the whole text, and step back: copies of the weights would cost more."""
        gradients = self.gradients()
        with torch.no_grad():
            for name, gradient in gradients.items():
                self.parameters[name].sub_(gradient, alpha=RATE)
            self.model(self.ids)
            for name, gradient in gradients.items():
                self.parameters[name].add_(gradient, alpha=RATE)


def error(sim: TintForCausalLM, simulated: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    off = size = 0.0
    for key, gradient in simulated.items():
        parameter = sim.program.parameters[key]
        right = view(parameter, exact[parameter.source])
        off += float((gradient.reshape(right.shape).double() - right).square().sum())
        size += float(right.square().sum())
    return (off / size) ** 0.5


def cpu_seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def row(model_name: str, name: str, options: dict[str, Any], file: Path, ids: Tensor, rounds: int) -> tuple[str, ...]:
    train = ids.shape[1] // 2
    mask = (torch.arange(ids.shape[1]) < train)[None]
    sim = tintc.compile(file, max_length=ids.shape[1], inner_lr=RATE, dtype="float32", **options)
    sim.executor = "fused"
    simulated = simulated_gradients(sim, resolve_inputs(ids, mask))
    names = {sim.program.parameters[key].source for key in simulated}
    model = load_auxiliary(file).model.float()
    explicit = Explicit(model, names, ids, train)
    times: list[tuple[float, float]] = []
    with torch.no_grad():
        sim(ids, train_mask=mask)
    for _ in range(rounds):
        with torch.no_grad():
            ours = cpu_seconds(lambda: sim(ids, train_mask=mask))
        times.append((ours, cpu_seconds(explicit.update)))
    literal = "-"
    if model_name == LITERAL:
        sim.executor = "literal"
        with torch.no_grad():
            literal = f"{cpu_seconds(lambda: sim(ids, train_mask=mask)):.2f}"
    apart = error(sim, simulated, Explicit(model.double(), names, ids, train).gradients())
    counts = count_parameters(sim.program)
    ours, theirs = (statistics.median(of) for of in zip(*times, strict=True))
    numbers = [count / 1e6 for count in (counts.table.total, counts.unrolled, counts.unique)]
    ratio = statistics.median(a / b for a, b in times)
    return (
        *(model_name, name, f"{len(names)}", f"{apart:.1e}", *(f"{number:,.1f}" for number in numbers)),
        *(literal, f"{ours:.2f}", f"{theirs:.2f}", f"{ratio:.2f}"),
    )


def main(
    models: Annotated[str, typer.Option(help="Which of the models, by name.")] = "stories260K,stories15M,SmolLM2",
    tokens: Annotated[int, typer.Option(help="Tokens of the text; the first half is trained on.")] = 256,
    rounds: Annotated[int, typer.Option(help="Times that each is measured.")] = 3,
    write: Annotated[bool, typer.Option(help="Update docs/approximations.md.")] = True,
) -> None:
    """Measure, print and write down."""
    torch.set_num_threads(1)
    text = (DOCUMENT.parent / "tutorial.md").read_text(encoding="utf-8")
    head: tuple[str, ...] = (
        "model",
        "gradient",
        "parameters",
        "error",
        "table, M",
        "unrolled, M",
        "unique, M",
        "literal s",
        "fused s",
        "explicit s",
        "ratio",
    )
    rows: list[tuple[str, ...]] = [head]
    for model in models.split(","):
        file = shapes.smollm2() if model == "SmolLM2" else MODELS / model
        if file is None or not file.exists():
            raise SystemExit(f"This needs {model}, which is not here.")
        tokenizer: Any = load_auxiliary(file, values=False).tokenizer
        ids = tokenizer(text, return_tensors="pt").input_ids[:, :tokens]
        for name, options in KINDS.items():
            rows.append(row(model, name, options, file, ids, rounds))
            print(" | ".join(rows[-1]), flush=True)
    body = [
        report.setting(),
        "",
        f"{tokens} tokens of [the tutorial](tutorial.md), half of them trained on, one step; CPU seconds, medians of",
        f"{rounds} rounds (literal: once). Parameters are those that the simulator updates, and that explicit tuning",
        "does, beside which error and time stand; *all* is everything below the head.",
        "",
        *report.table(rows),
    ]
    print("\n".join(body))
    if write:
        report.write_section("full", "What each approximation buys", body, DOCUMENT)


if __name__ == "__main__":
    typer.run(main)
