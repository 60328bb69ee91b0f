"""Paths that no file can have: each door refuses them in one sentence, the command with exit code 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Command
from fused_cases import compiled

import tintc
from tintc.errors import TintcError

PATHS = {"too long": "x" * 300, "in a folder that is too long": f"{'x' * 300}/sim", "a null byte": "a\0b"}
IDS = torch.arange(3, 9)[None]
DOORS: dict[str, Callable[[Path, Path], object]] = {
    "load": lambda path, model: tintc.load(path),
    "compile": lambda path, model: tintc.compile(path),
    "output": lambda path, model: tintc.compile(model, output=path),
    "save": lambda path, model: compiled("gpt2").save_pretrained(path),
    "state": lambda path, model: compiled("gpt2").adapt(IDS).save(path),
    "state, loaded": lambda path, model: tintc.AdaptedState.load(path, compiled("gpt2")),
    "export": lambda path, model: compiled("gpt2").adapt(IDS).export(path),
    "adapter": lambda path, model: compiled("gpt2").adapt(IDS).export(path, kind="lora", rank=2),
}
COMMANDS: dict[str, tuple[Any, ...]] = {
    "compile": ("compile", "MODEL", "-o", "PATH"),
    "a model": ("compile", "PATH", "-o", "sim"),
    "a picture": ("plan", "MODEL", "--png", "PATH"),
    "a page": ("report", "SIM", "--text", "the cat", "-o", "PATH"),
    "a state": ("run", "SIM", "--text", "the cat", "--stream", "--chunk-size", 8, "--save-state", "PATH"),
    "inspect": ("inspect", "PATH"),
    "explain": ("explain", "PATH"),
    "verify": ("verify", "PATH", "MODEL"),
    "a text": ("run", "SIM", "--file", "PATH"),
    "a program": ("opt", "MODEL", "-o", "PATH"),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("door", DOORS)
def test_in_python(llama_sim: Path, tmp_path: Path, door: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TintcError) as refused:
        DOORS[door](Path(PATHS[path]), llama_sim.parent / "model")
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(
    llama_sim: Path, tmp_path: Path, name: str, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"MODEL": llama_sim.parent / "model", "SIM": llama_sim, "PATH": PATHS["too long"]}
    found = command(*(places.get(one, one) for one in COMMANDS[name]))
    assert found.code == 2 and len(found.err.splitlines()) == 1 and not found.out and not list(tmp_path.iterdir())
