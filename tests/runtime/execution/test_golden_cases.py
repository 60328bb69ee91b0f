"""`paper-code` is the authors' implementation, for the interpreter and both executors.

Four cases stand in `golden/authors.safetensors`: the authors' logits at the last two positions, and what draws their
models again. All twenty, at every position, lie beside the repository. fp64, 1e-9 of the size of the update.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import Imported, import_model, imported
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from tintc.ir.inputs import resolve_inputs
from tintc.ir.simulator.interface.interpreter import interpret

FOLDERS = ("gpt2-0", "gpt2-1", "opt-0", "opt-1")
STORED = Path(__file__).parent / "golden" / "authors.safetensors"


@cache
def stored_model(kind: str) -> tuple[Imported, list[dict[str, Any]]]:
    """The authors' random model of that kind, drawn again, and its stored cases.

    Matrices are those of transformers' own initialisation; 0.1 times normal numbers are added to every vector.
    """
    with safe_open(STORED, "pt") as file:
        about = json.loads(file.metadata()["models"])[kind]
        squares = file.get_tensor(f"{kind}.squares")
    torch.manual_seed(about["seed"])
    config = AutoConfig.for_model(**about["config"])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    drawn = model.state_dict()
    sums = torch.stack([drawn[name].square().sum() for name in about["names"]])
    torch.testing.assert_close(sums, squares, rtol=1e-12, atol=0, msg="other numbers were drawn than the authors had")
    return import_model(model.eval()), about["cases"]


def check(model: Imported, case: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Compare the logits at the last positions, as many as are stored, before and after the update."""
    index = case["index"]
    ids, mask = tensors[f"{index}.input_ids"].long(), tensors[f"{index}.train_mask"]
    before, after = tensors[f"{index}.logits_before"], tensors[f"{index}.logits_after"]
    sim = model.compile(
        n_steps=case["steps"],
        n_update_layers=case["layers"],
        inner_lr=case["lr"],
        loss=case.get("loss", "ce"),
        semantics="paper-code",
    )
    inputs = resolve_inputs(ids, mask, semantics="paper-code")
    interpreted = interpret(sim.program, sim.state_dict(), inputs, ("logits_before", "logits"))
    results = [(interpreted["logits_before"], interpreted["logits"])]
    for executor in ("literal", "fused"):
        sim.executor = executor
        with torch.no_grad():
            out = sim(ids, train_mask=mask, return_before=True)
        assert sim.last_executor == executor
        results.append((out.logits_before, out.logits))
    size = float((after - before).norm())
    positions = before.shape[1]
    for ours_before, ours_after in results:
        assert float((ours_before[:, -positions:] - before).norm()) < 1e-9 * size
        assert float((ours_after[:, -positions:] - after).norm()) < 1e-9 * size


@pytest.mark.parametrize("case", range(2))
@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_stored_case(kind: str, case: int) -> None:
    model, cases = stored_model(kind)
    tensors = load_file(STORED)
    own = {name.removeprefix(f"{kind}."): tensor for name, tensor in tensors.items() if name.startswith(f"{kind}.")}
    check(model, cases[case], own)


@pytest.mark.parametrize(
    ("folder", "case"),
    [
        pytest.param(name, case, marks=[pytest.mark.slow] * (int(name[-1]) != case % 2))
        for name in FOLDERS
        for case in range(5)
    ],
)
def test_case(shared: Path, folder: str, case: int) -> None:
    """Every case of both kinds of model in one of two folders, which differ by the seed; in the other it is slow."""
    place = shared / "golden" / folder
    options = json.loads((place / "golden.json").read_text())["cases"][case]
    assert options["index"] == case
    check(imported(str(place)), options, load_file(place / "golden.safetensors"))
