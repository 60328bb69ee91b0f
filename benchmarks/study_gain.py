"""How the gain depends on what is simulated: approximations, layers, steps, optimiser and rate.

    python benchmarks/study_gain.py [--models stories260K,stories15M] [--blocks 6] [--block-size 256] [--no-write]

The update is learnt on the first half of each block; the gain is by how many nats a token of the second halves is
predicted better. Every variant is a simulator of its own, tried at every rate of a grid. The texts are the two in
``benchmarks/data``; models are expected in ``../shared``. Writes docs/study-gain.md and its figures. What was measured
is kept in ``build/study-gain.json``, so that an interrupted run goes on.
"""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[1])]
import report
import study_gain_page
from subjects import file_of, text_of

import tintc
from tintc.evaluation.perplexity import evaluate_blocks

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "build" / "study-gain.json"
PLAIN = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
NORMALISED = (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2, 8e-2)
SMALL = {"stories15M"}
"""Models that only the cheaper part of the study is run on."""


@dataclass(frozen=True)
class Variant:
    """One simulator. figure: where it is shown; series and place: its line there, and the point on it."""

    figure: str
    series: str
    place: str
    options: dict[str, Any]

    @property
    def key(self) -> str:
        return json.dumps(self.options, sort_keys=True)

    def rates(self, model: str) -> tuple[float, ...]:
        """Return the grid: a larger model has larger gradients, and a sum over the vocabulary much larger ones."""
        normalised = self.options["optimizer"] == "normalized"
        scale = 1.0
        if not normalised and model in SMALL:
            scale = 0.1
        if self.options.get("loss") == "quad":
            scale *= 0.1 if normalised else 1e-5
        if self.options.get("normalize") == "all":
            scale = 5.0
        return tuple(float(f"{scale * rate:.3g}") for rate in (NORMALISED if normalised else PLAIN))


def variants(layers: int, cheap: bool) -> list[Variant]:
    """Everything that is tried on a model of so many layers."""
    made: list[Variant] = []
    steps = {"plain steps": {"optimizer": "sgd"}, "normalised steps": {"optimizer": "normalized"}}
    approximations: dict[str, dict[str, Any]] = {
        "as in the paper": {},
        "differences both ways": {"difference": "central"},
        "scores differentiated (full)": {"gradient": "full"},
        "full, every group descends": {"gradient": "full", "descend": "all"},
        "quadratic loss": {"loss": "quad"},
    }
    for series, step in steps.items():
        made += [Variant("approximations", series, name, {**step, **more}) for name, more in approximations.items()]
    authors = {"optimizer": "sgd", "semantics": "paper-code"}
    made.append(Variant("approximations", "plain steps", "the authors' code", authors))
    gradients = {"paper": {}, "full": {"gradient": "full"}}
    for name, gradient in gradients.items():
        for kind, step in steps.items():
            series = f"{name}, {kind}"
            counts = sorted({1, 2, layers // 2, layers})
            some = {count: {"n_update_layers": count} if count < layers else {} for count in counts}
            made += [Variant("layers", series, str(count), {**gradient, **step, **own}) for count, own in some.items()]
            taken = {1: {}, 2: {"n_steps": 2}} if cheap else {1: {}, 2: {"n_steps": 2}, 4: {"n_steps": 4}}
            made += [Variant("steps", series, str(count), {**gradient, **step, **own}) for count, own in taken.items()]
        optimisers: dict[str, dict[str, Any]] = {
            "plain": {"optimizer": "sgd"},
            "momentum": {"optimizer": "momentum"},
            "normalised by weight": {"optimizer": "normalized"},
            "normalised by all": {"optimizer": "normalized", "normalize": "all"},
            "normalised, momentum": {"optimizer": "normalized", "momentum": 0.9},
            "normalised, decay 5": {"optimizer": "normalized", "decay": 5.0},
        }
        if not cheap:
            for label, own in optimisers.items():
                made.append(Variant("optimisers", name, label, {**gradient, **own, "n_steps": 2}))
    return made


def measure(
    model: Path, variant: Variant, rates: tuple[float, ...], ids: torch.Tensor, size: int, blocks: int
) -> dict[str, Any]:
    """Return loss before, and after the update at each rate (None: not finite)."""
    sim = tintc.compile(model, max_length=size, **variant.options)
    found = evaluate_blocks(sim, ids, block_size=size, max_blocks=blocks, train_fraction=0.5, rates=rates)
    after = {str(one["inner_lr"]): _log(one["perplexity_after"]) for one in found.rates or ()}
    return {"before": math.log(found.perplexity_before), "after": after, "tokens": found.tokens_scored}


def _log(perplexity: float | None) -> float | None:
    return None if perplexity is None else math.log(perplexity)


def main(
    models: str = "stories260K,stories15M",
    blocks: int = 6,
    block_size: int = 256,
    write: Annotated[bool, typer.Option("--write/--no-write", help="Write the page and its figures.")] = True,
) -> None:
    """Measure what has not been measured, and write the page."""
    KEPT.parent.mkdir(exist_ok=True)
    kept: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    shown: list[dict[str, Any]] = []
    for name in models.split(","):
        model = file_of(name)
        tokenizer = tintc.compile(model, max_length=8).tokenizer
        ids = torch.tensor(tokenizer(text_of(name), add_special_tokens=False)["input_ids"])
        layers = json.loads((model / "config.json").read_text())["num_hidden_layers"]
        for variant in variants(layers, name in SMALL):
            rates = variant.rates(name)
            key = f"{name} {blocks} {block_size} {variant.key} {rates}"
            if key not in kept:
                start = time.process_time()
                kept[key] = measure(model, variant, rates, ids, block_size, blocks)
                KEPT.write_text(json.dumps(kept))
                seconds = time.process_time() - start
                print(f"{name}, {variant.figure}, {variant.series}, {variant.place}: {seconds:.0f} s", file=sys.stderr)
            shown.append({"model": name, **asdict(variant), **kept[key]})
    if write:
        study_gain_page.write(shown, report.setting(), blocks, block_size)


if __name__ == "__main__":
    typer.run(main)
