"""Two simulators on one text: their options, what each has learnt, and how far their gradients agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tintc.errors import OptionError
from tintc.reference.simulated_gradients import simulated_gradients
from tintc.report.quality import Rate, place_of, rate_curve
from tintc.report.text import TextRun, run_text
from tintc.runtime.artefact.config import options_of

if TYPE_CHECKING:
    from tintc.runtime.model.causal_lm import TintForCausalLM


@dataclass(frozen=True)
class Other:
    """Another simulator beside the page's own. rows: what differs or is compared, and its value in either; gradients:
    rows as `quality.layers_of` has them, of the parameters that both update."""

    name: str
    run: TextRun
    curve: list[Rate]
    rows: list[tuple[str, str, str]]
    gradients: list[dict[str, Any]]


def check_same_tokens(sim: TintForCausalLM, other: TintForCausalLM, name: str, ids: Tensor, text: str | None) -> None:
    """Raise `OptionError` unless both simulators read the text as the same tokens."""
    same = sim.config.vocab_size == other.config.vocab_size
    if same and text is not None and other.tokenizer is not None:
        read = other.tokenizer(text)["input_ids"][: len(ids)]
        same = read == ids.tolist()
    if not same:
        raise OptionError(
            f"{name} reads this text as other tokens; a report compares simulators of auxiliaries with one vocabulary."
        )


def compare(sim: TintForCausalLM, other: TintForCausalLM, name: str, run: TextRun) -> Other:
    """Return what another simulator does with the text that `run` is of."""
    theirs = run_text(other, run.ids)
    rows = [(what, f"{own:.4f}", f"{their:.4f}") for what, own, their in _losses(run, theirs)]
    mine, others = (options_of(one.config).recorded() for one in (sim, other))
    rows += [(key.replace("_", " "), str(mine[key]), str(others[key])) for key in mine if mine[key] != others[key]]
    for part in sim.config.digests:
        own, their = (str(one.config.digests.get(part, ""))[:12] for one in (sim, other))
        if own != their:
            rows.append((f"digest of the {part}", own, their))
    ours = simulated_gradients(sim, run.inputs)
    gradients = compared(ours, simulated_gradients(other, theirs.inputs))
    return Other(name, theirs, rate_curve(other, theirs), rows, gradients)


def _losses(run: TextRun, theirs: TextRun) -> list[tuple[str, float, float]]:
    """Return mean losses of the tokens that neither has trained on."""
    start = max(run.train, theirs.train)

    def mean(losses: Tensor) -> float:
        return float(losses[start:].mean())

    return [
        ("mean loss of the rest before, nats", mean(run.before), mean(theirs.before)),
        ("and after", mean(run.after), mean(theirs.after)),
    ]


def compared(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Return cosine and difference of the gradients that both have, by parameter; the difference is relative to the
    first."""
    rows: list[dict[str, Any]] = []
    for name, gradient in mine.items():
        other = theirs.get(name)
        if other is None or other.shape != gradient.shape or not gradient.any() or not other.any():
            continue
        own, their = gradient.double().flatten(), other.to(gradient.device).double().flatten()
        layer, what = place_of(name)
        cosine = float(torch.cosine_similarity(own, their, dim=0))
        error = float((own - their).norm() / own.norm())
        rows.append({"parameter": name, "layer": layer, "what": what, "cosine": cosine, "error": error})
    return rows
