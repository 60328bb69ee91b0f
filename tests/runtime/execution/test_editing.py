"""Editing the program's text changes the interpreter and literal execution alike. fp64, 1e-9 of the update."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import import_model, relative_to_update
from safetensors.torch import load_file, save_file
from tiny_models import gpt2, llama, token_ids

import tintc
from tintc.cli.inspect import read_artefact
from tintc.errors import ArtefactError, IRError
from tintc.ir.inputs import resolve_inputs
from tintc.ir.simulator.interface.interpreter import interpret
from tintc.ir.text import parse_program, print_program
from tintc.runtime.model.causal_lm import TintForCausalLM

MODELS = {"gpt2": gpt2, "llama": llama}


IDS = token_ids(2, 10)
RATE = 0.05


@pytest.fixture(scope="module", params=MODELS)
def sim(request: pytest.FixtureRequest) -> TintForCausalLM:
    """One for all tests, which do not change it."""
    return import_model(MODELS[request.param]()).compile(inner_lr=RATE)


@pytest.fixture(scope="module")
def unedited(sim: TintForCausalLM) -> Any:
    with torch.no_grad():
        return sim(IDS, return_before=True)


@pytest.fixture
def folder(sim: TintForCausalLM, tmp_path: Path) -> Path:
    """The simulator's own, for each test."""
    sim.save_pretrained(tmp_path)
    return tmp_path


only = partial(pytest.mark.parametrize, "sim", indirect=True)
"""For what does not depend on the model."""


def descents(text: str) -> list[tuple[str, str, str]]:
    """(line, result, weights) of every linear descent."""
    return re.findall(r"^(%([\w.\-]+) = sim\.linear_descent\(%([\w.\-]+), .*)$", text, re.M)


def drop_descent(text: str) -> str:
    line, result, weights = descents(text)[0]
    return re.sub(rf"%{re.escape(result)}(?![\w.\-])", f"%{weights}", text.replace(line + "\n", ""))


def drop_all_descents(text: str) -> str:
    while descents(text):
        text = drop_descent(text)
    for line, result, weights in re.findall(r"^(%([\w.\-]+) = sim\.norm_descent\(%([\w.\-]+), .*)$", text, re.M):
        text = re.sub(rf"%{re.escape(result)}(?![\w.\-])", f"%{weights}", text.replace(line + "\n", ""))
    return text


def swap_layers(text: str) -> str:
    """The stored weights of layer 0 go where those of layer 1 went, and the other way round."""
    lines = text.splitlines()
    for index, line in enumerate(lines):
        if " = sim.weights()" in line:
            lines[index] = re.sub(r'(name="[^"]*\.)([01])(\.)', lambda m: f"{m[1]}{1 - int(m[2])}{m[3]}", line)
    return "\n".join(lines) + "\n"


def double_rate(text: str) -> str:
    line, _, _ = descents(text)[0]
    return text.replace(line, line.replace('target="', 'rate_scale=2.0, target="', 1))


EDITS: dict[str, Callable[[str], str]] = {"drop": drop_descent, "swap": swap_layers, "double": double_rate}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_changes_both_alike(sim: TintForCausalLM, unedited: Any, edit: str) -> None:
    """The edited text runs with the tensors of the simulator it was made from."""
    state, text = sim.state_dict(), print_program(sim.program)
    changed = EDITS[edit](text)
    assert changed != text
    program = parse_program(changed)
    config: dict[str, Any] = sim.config.to_dict() | {"program": changed}
    edited = TintForCausalLM(type(sim.config)(**config))
    edited.executor = "literal"
    edited.load_state_dict(state, strict=edit != "drop", assign=True)
    edited.zero_absent_terms()
    interpreted = interpret(program, state, resolve_inputs(IDS))["logits"]
    with torch.no_grad():
        literal = edited(IDS).logits
    assert print_program(program) == changed or edit == "double"
    assert relative_to_update(interpreted, unedited.logits, unedited.logits_before) > 1e-4
    assert relative_to_update(literal, interpreted, unedited.logits_before) < 1e-9


@pytest.mark.parametrize(
    ("sim", "edit"), [("gpt2", "drop"), ("llama", "swap"), ("gpt2", "swap"), ("llama", "double")], indirect=["sim"]
)
def test_an_artefact_with_an_edited_program_loads_and_runs_it(
    sim: TintForCausalLM, unedited: Any, edit: str, folder: Path
) -> None:
    file = folder / "program.tint"
    changed = EDITS[edit](file.read_text())
    file.write_text(changed)
    interpreted = interpret(parse_program(changed), dict(sim.state_dict()), resolve_inputs(IDS))["logits"]
    assert relative_to_update(interpreted, unedited.logits, unedited.logits_before) > 1e-4
    edited = tintc.load(folder, executor="literal")
    for edited.executor in ("literal", "auto"):
        with torch.no_grad():
            found = edited(IDS).logits
        assert relative_to_update(found, interpreted, unedited.logits_before) < 1e-9


def test_dropping_every_descent_is_no_update(unedited: Any, folder: Path) -> None:
    file = folder / "program.tint"
    file.write_text(drop_all_descents(file.read_text()))
    edited = tintc.load(folder, executor="literal")
    with torch.no_grad():
        assert torch.equal(edited(IDS).logits, unedited.logits_before)


@only(argvalues=["llama"])
def test_an_edit_that_does_not_verify_is_refused_when_loading(folder: Path) -> None:
    file = folder / "program.tint"
    file.write_text(file.read_text().replace("sim.linear_backward(", "sim.linear_sideways(", 1))
    with pytest.raises(IRError, match=r"line \d+: there is no op 'sim.linear_sideways'"):
        tintc.load(folder)


def test_an_artefact_with_an_edited_program_can_be_inspected(folder: Path) -> None:
    """It may hold tensors that its program has no use for, as when it is loaded, but it may not lack any."""
    file = folder / "program.tint"
    text = file.read_text()
    file.write_text(drop_all_descents(text))
    kinds = {op.opname for op in read_artefact(str(folder)).simulator().ops}
    assert "sim.linear_backward" in kinds and "sim.linear_descent" not in kinds
    file.write_text(text.replace("fd_step=0.001", "fd_step=0.01"))
    with pytest.raises(ArtefactError, match="does not fit its program"):
        read_artefact(str(folder))


@only(argvalues=["gpt2"])
def test_tensors_nobody_asked_for_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"tables.more": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ArtefactError, match=r"does not fit its program: it has 1 tensor it does not know \(tables\.more\)"
    ):
        read_artefact(str(folder))
