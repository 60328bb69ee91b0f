"""Compiles that are killed: nothing that looks like an artefact is left, and the next one leaves nothing of them."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest
import tiny_models
from command import contents, finished, process

import tintc
from tintc.runtime.artefact.folder import is_artefact
from tintc.runtime.artefact.staging import remove_abandoned, staged

KILL = "os.kill(os.getpid(), signal.SIGKILL)"
POINTS = {
    "in a weight file": f"""
        real, left = shards._pieces, [5]
        def pieces(tensor):
            left[0] -= 1
            {KILL} if left[0] == 0 else None
            return real(tensor)
        shards._pieces = pieces""",
    "before the configuration": f"stream.structure_digest = lambda *_: {KILL}",
    "before the texts": f"stream.write_texts = lambda *_, **__: {KILL}",
    "before the renaming": f"staging._move = lambda *_: {KILL}",
    "after the exchange": f"""
        real = staging._move
        staging._move = lambda *both: (real(*both), {KILL})""",
}
"""Where a compile kills itself, as Python that arranges it."""


def arranged(point: str) -> str:
    lines = POINTS[point].strip("\n").splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(
        [
            "import os, signal, tintc",
            "from tintc.runtime.artefact import safetensors_writer as shards, staging, streaming as stream",
            *(at[indent:] for at in lines),
        ]
    )


@pytest.fixture(scope="module")
def old(one_layer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("old") / "sim"
    tintc.compile(one_layer, inner_lr=0.5, output=out)
    return out


SHORT = ("in a weight file",)


@pytest.mark.parametrize("point", [p if p in SHORT else pytest.param(p, marks=pytest.mark.slow) for p in POINTS])
def test_killed(tmp_path: Path, one_layer: Path, old: Path, point: str) -> None:
    """The old simulator is there, or the new one; what lies beside it is hidden, and is gone after the next compile."""
    out = Path(shutil.copytree(old, tmp_path / "sim"))
    before = contents(out)
    running = process("compile", one_layer, "-o", out, "--lr", 0.25, "--force", before=arranged(point))
    assert finished(running).code == -signal.SIGKILL
    (left,) = [path for path in tmp_path.iterdir() if path != out]
    assert left.name.startswith(".")
    if point == "after the exchange":
        assert tintc.load(out).config.inner_lr == 0.25 and contents(left) == before
    else:
        assert contents(out) == before and is_artefact(left) == (point == "before the renaming")
    tintc.compile(one_layer, inner_lr=0.75, output=out, force=True)
    assert list(tmp_path.iterdir()) == [out] and tintc.load(out).config.inner_lr == 0.75


@pytest.mark.slow
def test_killed_at_any_time(tmp_path: Path, one_layer: Path) -> None:
    """Over as long as a compile takes: there is no simulator, or a whole one."""
    out = tmp_path / "sim"
    start = time.perf_counter()
    assert finished(process("compile", one_layer, "-o", tmp_path / "first")).code == 0
    whole = time.perf_counter() - start
    shutil.rmtree(tmp_path / "first")
    found = set()
    for tenths in range(1, 13):
        running = process("compile", one_layer, "-o", out, "--force")
        time.sleep(whole * tenths / 10)
        running.send(signal.SIGKILL)
        finished(running)
        found.add(out.exists())
        if out.exists():
            assert tintc.load(out)(tiny_models.token_ids(1, 8)).logits.isfinite().all()
            shutil.rmtree(out)
    assert found == {False, True}
    tintc.compile(one_layer, output=out)
    assert list(tmp_path.iterdir()) == [out]


def test_living_writers_are_left_alone(tmp_path: Path) -> None:
    """Another writer removes what is not locked any more, and nothing else: other names, other targets."""
    (tmp_path / ".sim.tintc-dead").mkdir()
    (tmp_path / ".sim.tintc-dead" / "model.safetensors").write_text("half of it")
    (tmp_path / ".sim.notes").mkdir()
    (tmp_path / ".simulator.tintc-dead").mkdir()
    with staged(tmp_path / "sim") as folder:
        (folder / "file").write_text("being written")
        remove_abandoned(tmp_path / "sim")
        assert {path.name for path in tmp_path.iterdir()} == {".sim.notes", ".simulator.tintc-dead", folder.name}
    assert (tmp_path / "sim" / "file").read_text() == "being written"
