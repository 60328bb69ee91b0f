"""`paper-code` is the authors' implementation: all twenty stored cases, for the interpreter and both executors.

fp64, 1e-9 of the size of the update.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from programs import imported
from safetensors.torch import load_file

from tintc.ir.inputs import resolve_inputs
from tintc.ir.simulator.interface.interpreter import interpret

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
        out = {}
        for sim.executor in ("literal", "fused"):
            out[sim.executor] = sim(ids, train_mask=mask, return_before=True)
            assert sim.last_executor == sim.executor
    inputs = resolve_inputs(ids, mask, semantics="paper-code")
    found = interpret(sim.program, sim.state_dict(), inputs, ("logits_before", "logits"))
    size = float((after - before).norm())
    for logits in (
        *((one.logits_before, one.logits) for one in out.values()),
        (found["logits_before"], found["logits"]),
    ):
        for right, got in zip((before, after), logits, strict=True):
            assert float((got - right).norm()) < 1e-9 * size
