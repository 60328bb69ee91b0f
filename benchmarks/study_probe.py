"""Does an observer of hidden states alone recover the simulated update? Linear probes, beside what `roles()` says.

    python benchmarks/study_probe.py [--texts 60] [--no-write]

stories260K, whose last layer is updated, reads many short texts in literal execution. After every module of the pass, a
ridge regression on other texts predicts parts of the update from the hidden states: D_sim numbers of a position. Writes
docs/study-probe.md and its figure. The model is expected in ``../shared``; the texts are what it tells itself, sampled.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[1])]
import report
import results
import study_probe_page
from study_probe_page import Found, Target

import tintc
from tintc.ir.simulator import SimOp
from tintc.runtime.execution.fused.batches import run_together

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT.parent / "shared" / "models" / "stories260K"
LENGTH, TRAINED, RATE = 48, 24, 1e-3
LAYER = "model.layers.4.self_attn.o_proj"
WEIGHT = f"{LAYER}.weight"
PENALTY = 1e-6
"""Of the ridge regression, relative to the mean square of what it reads."""
HELD_OUT = 4
"""One text in so many is for scoring the probes."""


@dataclass(frozen=True)
class Seen:
    """The output of every call of a module, ``[texts, positions, D_sim]``, in the order of the pass."""

    sites: list[str]
    states: list[Tensor]


def watch(sim: Any, texts: Tensor) -> Seen:
    """Run every text literally, and keep what modules return."""
    sites: list[str] = []
    kept: list[list[Tensor]] = []
    hooks = []
    current: list[tuple[str, Tensor]] = []
    for name in dict.fromkeys(row.site for row in sim.roles().rows()):
        module = sim.get_submodule(f"sites.{name}")
        hooks.append(
            module.register_forward_hook(lambda _m, _a, out, name=name: current.append((name, out[0].clone())))
        )
    for ids in texts:
        current.clear()
        with torch.no_grad():
            sim(ids[None])
        sites = [name for name, _ in current]
        kept.append([out for _, out in current])
    for hook in hooks:
        hook.remove()
    return Seen(sites, [torch.stack(each) for each in zip(*kept, strict=True)])


def truths(sim: Any, texts: Tensor) -> list[Target]:
    """Return what the simulator computes, from fused execution: no slot of an embedding has a part in it."""
    values = {value.name: value for op in sim.program.ops for value in op.results}
    descent = next(op for op in sim.program.ops if isinstance(op, SimOp) and op.updated_weight() == LAYER)
    gradient = next(value.name for value in descent.operands if value.name.endswith(".g0"))
    wanted = {"dy": gradient, "f0": f"{LAYER}.f0", "f1": f"{LAYER}.f1"}
    program = replace(sim.program, outputs={label: values[name] for label, name in wanted.items()})
    found: dict[str, list[Tensor]] = {label: [] for label in (*wanted, "update")}
    for ids in texts:
        with torch.no_grad():
            out = run_together(sim, program, sim.resolve(ids[None]), sim.resolve_rates(RATE, 1))
            for label in wanted:
                found[label].append(out[label][0])
            with sim.capture(f"step0.updates.{WEIGHT}") as seen:
                sim(ids[None])
        found["update"].append(seen[f"step0.updates.{WEIGHT}"][0])
    tables = {label: torch.stack(rows) for label, rows in found.items()}
    prefixes, stack = sim.layout.n_prefixes, sim.layout.stack
    rows = tables["update"][:, ::stack]
    tokens = slice(prefixes, prefixes + TRAINED)
    later = slice(prefixes + TRAINED, prefixes + LENGTH)
    change = (tables["f1"] - tables["f0"])[:, TRAINED:]
    return [
        Target("gradient at a train token", tables["dy"][:, :TRAINED], tokens, (gradient,), "tokens"),
        Target("rows of the weights' update", rows, slice(0, rows.shape[1]), (WEIGHT,), "prefixes"),
        Target(
            "change of the layer's result at a later token", change, later, (f"{LAYER}.f0", f"{LAYER}.f1"), "tokens"
        ),
    ]


def probe(states: Tensor, target: Tensor) -> tuple[float, Tensor]:
    """Return R^2 on held-out texts of a ridge regression on the others, and how much each number of an embedding counts
    in it.

    states ``[texts, positions, D]``, target ``[texts, positions, n]``; both are centred by their mean at each position
    over the texts that the probe learns from, which an observer of many texts knows too.
    """
    states, target = states.double(), target.double()
    held = torch.arange(len(states)) % HELD_OUT == 0
    x, y = (table - table[~held].mean(0) for table in (states, target))
    known, asked = x[~held].flatten(0, 1), x[held].flatten(0, 1)
    right, truth = y[~held].flatten(0, 1), y[held].flatten(0, 1)
    scale = known.pow(2).mean(0).sqrt()
    live = scale > 1e-9 * scale.max().clamp_min(1e-30)
    if not bool(live.any()):
        return 0.0, torch.zeros(states.shape[-1])
    known, asked = known[:, live] / scale[live], asked[:, live] / scale[live]
    square = known.T @ known + PENALTY * len(known) * torch.eye(known.shape[1], dtype=known.dtype)
    weights = torch.linalg.solve(square, known.T @ right)
    left = (truth - asked @ weights).pow(2).sum()
    counts = torch.zeros(states.shape[-1], dtype=known.dtype)
    counts[live] = weights.pow(2).sum(1)
    return float(1 - left / truth.pow(2).sum()), counts / counts.sum()


def named_by_roles(sim: Any, target: Target) -> dict[str, set[int]]:
    """Return the modules whose heads read or write the target, by `roles()`, and the slots where."""
    slots: dict[str, set[int]] = {}
    for row in sim.roles().rows():
        for place in (*row.reads, *row.writes):
            if place.of in target.names and (place.at == "prefixes") == (target.at == "prefixes"):
                slots.setdefault(row.site, set()).add(place.slot)
    return slots


def main(
    texts: int = 60, write: Annotated[bool, typer.Option("--write/--no-write", help="Write the page.")] = True
) -> None:
    """Measure, and write the page."""
    sim: Any = tintc.compile(MODEL, max_length=LENGTH, n_update_layers=1, inner_lr=RATE)
    told = results.told(2).splitlines()[:texts]
    rows = sim.tokenizer(told, add_special_tokens=True)["input_ids"]
    ids = torch.tensor([row[:LENGTH] for row in rows if len(row) >= LENGTH])
    targets = truths(sim, ids)
    seen = watch(sim, ids)
    pitch = sim.layout.d_sim // 3
    found = []
    for target in targets:
        scores, counts = zip(*(probe(states[:, target.places], target.values) for states in seen.states), strict=True)
        shuffled = target.values.roll(1, 0)
        control = max(probe(states[:, target.places], shuffled)[0] for states in seen.states)
        named = named_by_roles(sim, target)
        found.append(Found(target, seen.sites, scores, counts, control, named))
        print(target.title, found[-1].summary(pitch), file=sys.stderr)
    if write:
        study_probe_page.write(found, pitch, len(ids), report.setting())


if __name__ == "__main__":
    typer.run(main)
