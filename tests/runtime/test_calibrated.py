"""Finite differences with a constant power of two per module, from a calibration text (construction.md, section 6).

fp64, 1e-9 of the update, unless said otherwise.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import pytest
import torch
from command import STORY, Command, make_command, model_folder
from fused_cases import check_fused, token_ids
from programs import Imported, check_agreement, import_model, three_ways
from tiny_models import gpt2, llama

import tintc
from tintc.driver import calibration_ids
from tintc.errors import IRError, OptionError
from tintc.ir.auxiliary.interpreter import Descent
from tintc.ir.functions import FiniteDifference
from tintc.ir.inputs import resolve_inputs
from tintc.ir.text import parse_program, print_program
from tintc.lowering.calibrate import calibrate, power_of_two
from tintc.lowering.options import Options
from tintc.reference.verify import calibrated_steps
from tintc.runtime.gradients import simulated_gradients
from tintc.runtime.model import TintForCausalLM

MODELS = {"gpt2": lambda: gpt2(n_heads=3, head_dim=6), "llama": lambda: llama(n_heads=3, n_kv_heads=1, d_ff=37)}
IDS = token_ids(2, 9)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return make_command(monkeypatch, capfd)


@cache
def imported(name: str) -> Imported:
    return import_model(MODELS[name]())


def calibrated(name: str, **options: float) -> tuple[TintForCausalLM, dict[str, float]]:
    auxiliary = imported(name)
    chosen = Options(fd_scheme="calibrated", **options)  # pyright: ignore[reportArgumentType]
    steps = calibrate(auxiliary.auxiliary.program, auxiliary.auxiliary.tensors, token_ids(1, 16)[0], chosen)
    return auxiliary.compile(fd_scheme="calibrated", fd_steps=steps, inner_lr=0.02, n_steps=2, **options), steps


@pytest.mark.parametrize("name", MODELS)
def test_all_ways_agree(name: str) -> None:
    """Both interpreters, literal and fused execution, with the recorded steps."""
    sim, steps = calibrated(name)
    differences = {value: FiniteDifference("calibrated", step) for value, step in steps.items()}
    descent = Descent(0.02, 2, differences=differences)
    auxiliary = imported(name)
    check_agreement(three_ways(sim, auxiliary.auxiliary.program, auxiliary.tensors, IDS, descent))
    check_fused(sim, IDS)


@pytest.mark.parametrize("name", MODELS)
def test_steps_are_recorded_powers_of_two(name: str) -> None:
    """The same in every step of a module, not the same for all modules; the program's text carries them."""
    sim, steps = calibrated(name)
    recorded = calibrated_steps(sim.program)
    assert recorded and recorded.items() <= steps.items() and len(set(recorded.values())) > 1
    assert all(math.frexp(step)[0] == 0.5 for step in steps.values())
    text = print_program(sim.program)
    assert print_program(parse_program(text)) == text
    wrong = text.replace(f"fd_step={min(recorded.values())!r}", "fd_step=0.003")
    with pytest.raises(IRError, match=r"a calibrated step is a power of two, not 0\.003"):
        parse_program(wrong)


def test_steps_suit_gradients() -> None:
    """Steps are eps over the root mean square, to a factor of sqrt 2; and follow eps."""
    sizes = [torch.tensor([3e-5, 4e-5]), torch.tensor([0.0])]
    right = 1e-3 / (25e-10 / 3) ** 0.5
    assert 2**-0.5 <= power_of_two(1e-3, sizes) / right <= 2**0.5
    assert power_of_two(1e-3, []) == power_of_two(1e-3, [torch.zeros(3)]) == 2**-10
    for broken in (torch.inf, torch.nan):
        with pytest.raises(OptionError, match="not finite"):
            power_of_two(1e-3, [torch.tensor([1.0, broken])])
    coarse, fine = (calibrated("gpt2", fd_step=step)[1] for step in (2**-6, 2**-9))
    assert coarse.keys() == fine.keys() and all(math.log2(coarse[key] / fine[key]) in (2, 3, 4) for key in fine)


def test_small_gradients_in_fp32() -> None:
    """Gradients of 1e-5 and less, as averaging the loss over a book would make them: the constant step of the paper
    loses them in rounding, the other two do not. Errors relative to fp64 with the same steps."""
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    g = 1e-6 * torch.randn(4, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = power_of_two(1e-3, [g.square().mean(-1).sqrt()])
    errors = {}
    for scheme, eps in (("fixed", 1e-3), ("calibrated", step), ("token", 1e-3)):
        f = FiniteDifference(scheme, eps)
        right = f.derivative(torch.tanh, x, g)
        found = f.derivative(torch.tanh, x.float(), g.float())
        errors[scheme] = float((found - right).norm() / right.norm())
    assert errors["fixed"] > 0.5 and max(errors["calibrated"], errors["token"]) < 1e-2


def test_from_the_command_line(tmp_path: Path, command: Command) -> None:
    """A text of one's own gives steps of its own, `verify` takes the recorded ones, and mistakes are told."""
    model, out = model_folder(tmp_path / "model", gpt2().double()), tmp_path / "sim"
    text = tmp_path / "story.txt"
    text.write_text(STORY)
    made = ("compile", model, "-o", out, "--lr", 0.01, "--difference", "calibrated")
    assert command(*made, "--calibration-text", text).code == 0
    sim = tintc.load(out)
    source = imported_folder(model)
    wanted = calibrate(
        source.auxiliary.program,
        source.auxiliary.tensors,
        calibration_ids(source.source, STORY),
        Options(fd_scheme="calibrated"),
    )
    assert sim.config.fd_scheme == "calibrated" and calibrated_steps(sim.program).items() <= wanted.items()
    verdict = command("verify", out, model, "--json")
    assert verdict.code == 0 and verdict.json["gradient"]["error"] < 1e-9
    wrong = command("compile", model, "-o", out, "--force", "--calibration-text", text)
    assert wrong.code == 2 and "(--difference calibrated)" in wrong.err
    with pytest.raises(OptionError, match="leave the text out"):
        tintc.compile(model, calibration=STORY)
    wrong = command(*made, "--force", "--semantics", "paper-code")
    assert wrong.code == 2 and "paper-code has differences of a fixed step" in wrong.err


def imported_folder(path: Path) -> Imported:
    return import_model(str(path))


def test_fixed_steps_in_exact_semantics() -> None:
    """`--difference fixed` without the rest of paper-code: another gradient than the token step's, but close."""
    auxiliary = imported("gpt2")
    gradients = []
    for scheme in ("fixed", "token"):
        sim = auxiliary.compile(fd_scheme=scheme, inner_lr=0.02)
        check_fused(sim, IDS)
        gradients.append(simulated_gradients(sim, resolve_inputs(IDS[:1])))
    fixed, token = gradients
    apart = sum(float((fixed[key] - token[key]).square().sum()) for key in token) ** 0.5
    size = sum(float(gradient.square().sum()) for gradient in token.values()) ** 0.5
    assert 1e-6 < apart / size < 2e-2


def test_unknown_schemes_are_refused() -> None:
    with pytest.raises(OptionError, match="'free' is unknown; choose one of fixed, calibrated, token"):
        Options(fd_scheme="free")
