"""The n-th open, write, rename, fsync or mapping of compiling, saving, exporting and loading fails, for every n: one
sentence says so, or nothing was lost; what stands there is the old or the new, byte for byte, and what is left beside
it is hidden, and gone after the next time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from command import contents
from test_failing_disk import MANY, MOST_CALLS, SAFE_OPEN, WRITE, WRITE_OF_OPEN, fail, nth
from tiny_models import token_ids

import tintc
from tintc import AdaptedState
from tintc.errors import TintcError

RENAME = "tintc.runtime.artefact.disk._renameat2"
TENSORS = "transformers.modeling_utils.safe_save_file"
"""What writes tensors by a library of its own."""


@dataclass(frozen=True)
class World:
    """model: folder of a model; old: a folder that holds a simulator, ``sim``, and a state of it, ``state``; first:
    that simulator; sim: the same with other rates; state: a state of this one."""

    model: Path
    old: Path
    first: Any
    sim: Any
    state: Any


ACTIONS: dict[str, Callable[[World, Path], object]] = {
    "compile": lambda world, at: tintc.compile(world.model, inner_lr=0.5, output=at / "sim", force=True),
    "save": lambda world, at: world.sim.save_pretrained(at / "sim"),
    "save anew": lambda world, at: world.sim.save_pretrained(at / "new"),
    "state": lambda world, at: world.state.save(at / "state"),
    "export": lambda world, at: world.state.export(at / "export"),
    "adapter": lambda world, at: world.state.export(at / "adapter", kind="lora", rank=2),
    "load": lambda world, at: tintc.load(at / "sim").tokenizer,
    "state, loaded": lambda world, at: AdaptedState.load(at / "state", world.first),
}
SHORT = [(action, name) for action in ("save", "save anew", "state", "export") for name in ("os.fsync", RENAME)]
LONG = [
    (action, name)
    for action in ACTIONS
    for name in ("os.open", "io.open", "builtins.open", WRITE, WRITE_OF_OPEN, "os.rename", "os.replace", TENSORS)
]
OTHERS = [("compile", name) for name in ("os.fsync", RENAME)] + [(one, SAFE_OPEN) for one in ("compile", "load")]
CASES = [*SHORT, *(pytest.param(*case, marks=pytest.mark.slow) for case in [*LONG, *OTHERS])]


@pytest.fixture(scope="module")
def world(one_layer: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    old = tmp_path_factory.mktemp("every-call") / "old"
    old.mkdir()
    sim = tintc.compile(one_layer, inner_lr=0.25, output=old / "sim")
    sim.adapt(token_ids(1, 6)).save(old / "state")
    changed = tintc.load(old / "sim")
    with torch.no_grad():
        for rate in changed.rates.parameters():
            rate.mul_(2)
    assert changed.tokenizer is not None
    return World(one_layer, old, sim, changed, changed.adapt(token_ids(1, 9)))


@pytest.mark.parametrize(("action", "name"), CASES)
def test_every_call_fails_once(
    world: World, tmp_path: Path, action: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    act = ACTIONS[action]
    shutil.copytree(world.old, tmp_path / "new")
    act(world, tmp_path / "new")
    whole, before = contents(tmp_path / "new"), contents(world.old)
    answer: Callable[[], object] = fail
    if name == RENAME:  # which returns what went wrong
        answer = lambda: 5  # noqa: E731
    for n in range(MOST_CALLS):
        at = tmp_path / str(n)
        shutil.copytree(world.old, at)
        failed = False
        with monkeypatch.context() as patch:
            calls = nth(name, n, answer, patch)
            try:
                act(world, at)
            except TintcError as error:
                failed = True
                assert "\n" not in str(error)
        if calls[0] <= n:
            break
        left = {path: data for path, data in contents(at).items() if ".tintc-" not in path}
        hidden = left != contents(at)  # what the disk did not let it remove
        if action == "compile" and not failed and left != whole:  # without what could not be read: a tokenizer
            tintc.load(at / "sim", check_files=True)
        else:
            assert left in (before, whole) and (failed or left == whole), f"call {n} of {name}"
        if (failed or hidden) and action not in ("load", "state, loaded"):
            act(world, at)
            assert contents(at) == whole
        shutil.rmtree(at)
    else:
        pytest.fail(MANY)
