"""An option is written once: what it makes in Python, on the command line, in the configuration and on the card."""

from __future__ import annotations

import sys
from dataclasses import fields
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from command import Command, finished, forked, model_folder
from typer.main import get_command

import tintc
import tintc_cli
from tintc.errors import OptionError
from tintc.options import ABOUT, Options
from tintc.runtime.artefact.card import model_card
from tintc.runtime.artefact.checks import RECORDED, options_digest
from tintc.runtime.artefact.config import TintConfig

COMMANDS: Any = get_command(tintc_cli.app)


def test_python_takes_every_option() -> None:
    parameters = signature(tintc.compile).parameters
    assert list(parameters)[1 : 1 + len(ABOUT)] == list(ABOUT)
    assert {name: parameters[name].default for name in ABOUT} == {one.name: one.default for one in fields(Options)}
    assert all(f"\n{name}: {about.help}" in (tintc.compile.__doc__ or "") for name, about in ABOUT.items())


@pytest.mark.parametrize("name", ["compile", "plan", "opt"])
def test_commands_take_options_by_the_same_name(name: str) -> None:
    spellings = {opt: one for one in COMMANDS.commands[name].params for opt in one.opts}
    for option, about in ABOUT.items():
        if name == "plan" and not about.plans:
            assert f"--{option.replace('_', '-')}" not in spellings
            continue
        shown = spellings[f"--{option.replace('_', '-')}"]
        assert shown.name == option and shown.default == getattr(Options, option)
        if about.short:
            assert spellings[f"--{about.short}"].hidden and f"--{about.short}" in shown.help


def test_short_forms_are_the_options(command: Command, tmp_path: Path) -> None:
    """Every spelling that an earlier version had gives the same simulator."""
    model = model_folder(tmp_path / "model", tiny_models.gpt2(n_layers=2))
    short = ("--steps", 2, "--update-layers", 1, "--lr", 0.02, "--fd-scheme", "fixed")
    long = ("--n-steps", 2, "--n-update-layers", 1, "--inner-lr", 0.02, "--difference", "fixed")
    configurations = []
    for number, options in enumerate((short, long)):
        found = command("compile", model, "-o", tmp_path / str(number), *options, "--json")
        assert found.code == 0
        assert ("warning: The option --fd-scheme is called --difference now." in found.err) == (options is short)
        configurations.append((tmp_path / str(number) / "config.json").read_text())
    assert configurations[0] == configurations[1]
    config = tintc.TintConfig.from_pretrained(tmp_path / "0")
    assert (config.n_steps, config.n_update_layers, config.inner_lr, config.difference) == (2, 1, 0.02, "fixed")


def test_options_come_as_keywords_by_position_or_as_one() -> None:
    model = tiny_models.gpt2(n_layers=1)
    chosen = Options(n_steps=2, inner_lr=0.5, dtype=torch.float64)  # pyright: ignore[reportArgumentType]
    assert chosen.dtype == "float64"
    configs = [
        tintc.compile(model, chosen).config,
        tintc.compile(model, options=chosen).config,
        tintc.compile(model_or_path=model, n_steps=2, inner_lr=0.5, dtype=torch.float64).config,
        tintc.compile(model, 2, None, 0.5, dtype="float64").config,
        tintc.compile(model, Options(inner_lr=0.5, dtype="float64"), n_steps=2).config,
    ]
    assert {name: getattr(configs[0], name) for name in RECORDED} == chosen.recorded("config")
    assert all(config.to_dict() == configs[0].to_dict() for config in configs)


def test_a_former_name_is_taken_and_read() -> None:
    """By tintc.compile with a warning, and by the configuration of a folder that was written under it."""
    model = tiny_models.gpt2(n_layers=1)
    with pytest.warns(DeprecationWarning, match="option fd_scheme is called difference now"):
        config = tintc.compile(model, fd_scheme="fixed").config
    assert config.difference == config.fd_scheme == "fixed"
    stated = config.to_dict()
    stated["fd_scheme"] = stated.pop("difference")
    assert options_digest(TintConfig(**stated).to_dict()) == config.digests["options"]
    with pytest.raises(OptionError, match="no argument 'fd_scheme'; 'difference' is the nearest"):
        tintc.compile(model, fd_scheme="fixed", difference="token")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("n_stepz", "compile has no argument 'n_stepz'; 'n_steps' is the nearest."),
        ("n-steps", "'n_steps' is the nearest"),
        ("lr", "'inner_lr' is the nearest"),
        ("update_layers", "'n_update_layers' is the nearest"),
        ("outptu", "'output' is the nearest"),
        ("colour", "it has model_or_path, n_steps, n_update_layers,"),
    ],
)
def test_a_keyword_that_does_not_exist_is_told_the_nearest(given: str, says: str) -> None:
    with pytest.raises(OptionError) as caught:
        tintc.compile(tiny_models.gpt2(n_layers=1), **{given: 2})
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "given", [["values", "ffn"], ("values", "ffn"), {"ffn", "values"}, frozenset(("values", "ffn"))]
)
def test_groups_come_as_text_or_as_names(given: Any) -> None:
    assert Options(descend=given) == Options(descend="values,ffn")


def test_the_digest_of_recorded_options_keeps_its_order() -> None:
    """Folders that earlier versions wrote are checked by it."""
    assert RECORDED[:6] == ("inner_lr", "loss", "descend", "difference", "fd_step", "linear_attention")


def test_configuration_and_card_have_every_recorded_option() -> None:
    config = tintc.TintConfig(provenance={"source": "a/b"})
    card = model_card(config)
    for name, value in Options().recorded().items():
        assert getattr(config, name) == value
        assert f"| {ABOUT[name].title} | {value} |" in card


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"n_steps": 0}, "The option n_steps is 0; it must be at least 1."),
        ({"stack": 1.5}, "The option stack is 1.5; it must be a whole number, at least 1."),
        ({"n_steps": "2"}, "The option n_steps is 2; it must be a whole number, at least 1."),
        ({"n_update_layers": 1.5}, "The option n_update_layers is 1.5; it must be a whole number."),
        ({"inner_lr": [1e-4, 1e-3]}, "it must be one number; where a simulator runs, inner_lr may be one per example"),
        ({"inner_lr": "1e-4"}, "it must be one number"),
        ({"fd_step": "small"}, "it must lie between 0 and 1"),
        ({"descend": ["gates"]}, "The parameter group 'gates' is unknown"),
        ({"descend": {"ffn", "gates"}}, "The parameter group 'gates' is unknown"),
        ({"descend": 3}, "pass names of parameter groups, such as 'values,ffn'"),
        ({"loss": "l1"}, "The loss 'l1' is unknown; choose one of ce, quad, mse."),
        ({"dtype": "int8"}, "The dtype 'int8' is not supported; choose one of float32, bfloat16, float64."),
        ({"inner_lr": float("nan")}, "The learning rate is nan; it must be a finite number, zero or more."),
        ({"fd_step": 1.0}, "The finite-difference step is 1.0; it must lie between 0 and 1."),
        ({"semantics": "paper-code", "difference": "token"}, "choose exact for token"),
    ],
)
def test_values_out_of_range(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError) as caught:
        Options(**options)
    assert says in str(caught.value)


def import_anew(first: str, second: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tintc", "tintc_cli")]:
        del sys.modules[name]
    for name in (first, second):
        import_module(name)
    assert sys.modules["tintc.compiler"].Options is sys.modules["tintc.options"].Options is not Options


@pytest.mark.parametrize("first", ["tintc_cli", "tintc.compiler"])
def test_the_command_and_the_package_share_one_copy(first: str) -> None:
    """Whichever is imported first."""
    (second,) = {"tintc_cli", "tintc.compiler"} - {first}
    found = finished(forked(lambda: import_anew(first, second)))
    assert found.code == 0, found.err
