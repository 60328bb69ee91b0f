"""Gates with the paper's pre-activation of 10 (construction.md, section 2.3): what they leave, and who runs them.

fp64 unless said.
"""

from __future__ import annotations

import logging
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Command, make_command, model_folder
from fused_cases import family, relative_to_update, run, token_ids
from tiny_models import gpt2

import tintc
from tintc.errors import IRError, OptionError
from tintc.ir.inputs import resolve_inputs
from tintc.ir.structure import SATURATED, is_saturated
from tintc.ir.text import parse_program, print_program
from tintc.lowering.emit import check_complete
from tintc.lowering.options import Options
from tintc.runtime.artefact import write_artefact
from tintc.runtime.gradients import simulated_gradients
from tintc.runtime.literal import PositionGate
from tintc.runtime.model import TintForCausalLM

IDS = token_ids(1, 9)
LEFT = 1 - math.tanh(10.0)
"""4.1e-9: what the paper's gate is short of 1."""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return make_command(monkeypatch, capfd)


@cache
def compiled(name: str, scale: float, dtype: torch.dtype = torch.float64) -> TintForCausalLM:
    made = family(name).compile(gate_scale=scale, inner_lr=0.02, dtype=dtype)
    made.executor = "auto"
    return made


def relative(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found - right).norm() / right.norm())


def test_one_gate_leaves_four_billionths() -> None:
    """An open gate passes ``tanh(10) = 1 - 4.1e-9`` of what it is given, a closed one nothing at all."""
    assert pytest.approx(4.1e-9, rel=0.01) == LEFT
    gate = compiled("gpt2", 10.0).get_submodule("structure.gates.replace")
    assert isinstance(gate, PositionGate)
    k = compiled("gpt2", 10.0).layout.n_prefixes
    old, new = torch.randn(2, 1, k + 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = gate(old, new, torch.arange(k + 4)[None])
    assert torch.equal(out[:, :k], math.tanh(10.0) * old[:, :k])
    assert torch.equal(out[:, k:], math.tanh(10.0) * new[:, k:])
    assert relative(out[:, k:], new[:, k:]) == pytest.approx(LEFT, rel=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_what_a_whole_model_leaves(name: str) -> None:
    """Measured, in units of one gate: logits before 4, after the update 12, a gradient at most 27. The differences do
    not divide it by their step, for both their terms pass one gate. 64 and 20 leave nothing."""
    sims = {scale: compiled(name, scale) for scale in (SATURATED, 10.0, 20.0)}
    found = {scale: run(made, IDS, "literal", return_before=True) for scale, made in sims.items()}
    right, paper, high = found[SATURATED], found[10.0], found[20.0]
    assert torch.equal(high.logits, right.logits)
    assert 2 * LEFT < relative(paper.logits_before, right.logits_before) < 8 * LEFT
    assert 4 * LEFT < relative(paper.logits, right.logits) < 24 * LEFT
    for made in sims.values():
        made.executor = "literal"
    exact, rough = (simulated_gradients(sims[scale], resolve_inputs(IDS)) for scale in (SATURATED, 10.0))
    worst = max(relative(rough[part], gradient) for part, gradient in exact.items())
    assert 8 * LEFT < worst < 60 * LEFT < 1e-6
    for made in sims.values():
        made.executor = "auto"


def test_only_literal_execution_has_such_gates(caplog: pytest.LogCaptureFixture) -> None:
    """The interpreter, and so fused execution, knows gates of 0 and 1 alone; auto says why it is slow."""
    made = compiled("gpt2", 10.0)
    with caplog.at_level(logging.WARNING, "tintc"):
        found = run(made, IDS, "auto", return_before=True)
    assert made.last_executor == "literal" and "position gates, of pre-activation 10, are not exactly 1" in caplog.text
    assert torch.equal(found.logits, run(made, IDS, "literal").logits)
    with pytest.raises(OptionError, match="fused cannot be used: its position gates, of pre-activation 10"):
        run(made, IDS, "fused")
    run(compiled("gpt2", 20.0), IDS, "fused")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shorter_types_cannot_tell(dtype: torch.dtype) -> None:
    """In fp32 tanh(10) rounds to 1: the same tensors' gates are exact there, and fused execution is too."""
    assert is_saturated(10.0, dtype) and not is_saturated(10.0, torch.float64) and not is_saturated(5.0, dtype)
    made = compiled("gpt2", 10.0, dtype)
    right = run(compiled("gpt2", SATURATED, dtype), IDS, "literal", return_before=True)
    assert torch.equal(run(made, IDS, "literal").logits, right.logits)
    run(made, IDS, "auto")
    assert made.last_executor == "fused"
    wide = family("gpt2").compile(gate_scale=10.0, dtype=dtype).double()
    run(wide, IDS, "auto")
    assert wide.last_executor == "literal"


def test_in_the_artefact(tmp_path: Path, command: Command) -> None:
    """Text, file and configuration carry it; `verify` allows what the gates leave."""
    folder = model_folder(tmp_path / "model", gpt2().double())
    out = tmp_path / "sim"
    assert command("compile", folder, "-o", out, "--gate-scale", 10, "--lr", 0.01).code == 0
    sim = tintc.load(out)
    assert (sim.config.gate_scale, sim.program.attributes["gate_scale"]) == (10, 10)
    gates = {key: float(tensor.max()) for key, tensor in sim.state_dict().items() if ".gates." in key}
    assert gates and set(gates.values()) == {10}
    verdict = command("verify", out, folder, "--json")
    assert verdict.code == 0 and verdict.json["executor"] == "literal"
    assert verdict.json["logits_before_error"] > LEFT / 2 and verdict.json["tolerances"]["logits"] > 1e-9
    assert command("compile", folder, "-o", out, "--gate-scale", 0).code == 2


def test_a_released_simulator_is_the_same(tmp_path: Path) -> None:
    right = run(compiled("gpt2", 10.0), IDS, "literal", return_before=True)
    loaded = tintc.load(write_artefact(compiled("gpt2", 10.0), tmp_path / "sim"))
    found = run(loaded, IDS, "auto")
    assert loaded.last_executor == "literal"
    assert relative_to_update(found.logits, right.logits, right.logits_before) < 1e-9


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_impossible_scales_are_refused(scale: float) -> None:
    with pytest.raises(OptionError, match="it must be a finite number above zero"):
        Options(gate_scale=scale)


@pytest.mark.parametrize("wrong", ['"wide"', "-3", "[64]"])
def test_an_impossible_scale_in_a_text_is_refused(wrong: str) -> None:
    text: Any = print_program(compiled("gpt2", 10.0).program)
    with pytest.raises(IRError, match=r"'gate_scale' is .*; it must be a positive number"):
        check_complete(parse_program(text.replace("gate_scale=10.0", f"gate_scale={wrong}")))
