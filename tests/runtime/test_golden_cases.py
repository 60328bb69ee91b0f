"""`paper-code` is the authors' implementation: all twenty stored cases, for the interpreter and literal execution.

fp64, 1e-9 of the size of the update.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from programs import imported, relative_to_update
from safetensors.torch import load_file

from tintc.ir.inputs import resolve_inputs
from tintc.ir.simulator.interpreter import interpret

FOLDERS = ("gpt2-0", "gpt2-1", "opt-0", "opt-1")


@pytest.mark.parametrize("case", range(5))
@pytest.mark.parametrize("folder", FOLDERS)
def test_case(shared: Path, folder: str, case: int) -> None:
    place = shared / "golden" / folder
    stored = load_file(place / "golden.safetensors")
    options = json.loads((place / "golden.json").read_text())["cases"][case]
    assert options["index"] == case
    ids, mask, before, after = (
        stored[f"{case}.{name}"] for name in ("input_ids", "train_mask", "logits_before", "logits_after")
    )
    sim = imported(str(place)).compile(
        n_steps=options["steps"],
        n_update_layers=options["layers"],
        inner_lr=options["lr"],
        loss=options.get("loss", "ce"),
        semantics="paper-code",
    )
    with torch.no_grad():
        out = sim(ids, train_mask=mask, return_before=True)
    inputs = resolve_inputs(ids, mask, semantics="paper-code")
    found = interpret(sim.program, sim.state_dict(), inputs, ("logits_before", "logits"))
    for right, literal, interpreted in (
        (before, out.logits_before, found["logits_before"]),
        (after, out.logits, found["logits"]),
    ):
        assert float((literal - right).norm()) < 1e-9 * float((after - before).norm())
        assert float((interpreted - right).norm()) < 1e-9 * float((after - before).norm())
    assert relative_to_update(out.logits, after, before) < 1e-9
