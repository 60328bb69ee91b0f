"""The compiled folder: written in one step, read back as it was, checked when read."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from command import contents, model_folder
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import tintc
from tintc.errors import ArtefactError, OptionError
from tintc.runtime.artefact.beside import text_digest
from tintc.runtime.artefact.folder_writer import check_output
from tintc.runtime.artefact.structure_file import structure_digest
from tintc.runtime.load import write_artefact

IDS = tiny_models.token_ids(2, 12)


@pytest.fixture(scope="module")
def sim(tmp_path_factory: pytest.TempPathFactory) -> tintc.TintForCausalLM:
    return tintc.compile(model_folder(tmp_path_factory.mktemp("model"), tiny_models.gpt2(n_layers=1)), inner_lr=0.02)


def run(sim: tintc.TintForCausalLM) -> torch.Tensor:
    sim.executor = "literal"
    with torch.no_grad():
        return sim(IDS).logits


def test_round_trips(sim: tintc.TintForCausalLM, tmp_path: Path) -> None:
    """Bit for bit through our own functions, transformers' and the Auto classes, twice."""
    wanted = run(sim)
    write_artefact(sim, tmp_path / "a")
    again = tintc.load(tmp_path / "a")
    assert torch.equal(run(again), wanted)
    again.save_pretrained(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    auto = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    assert isinstance(auto, tintc.TintForCausalLM) and torch.equal(run(auto), wanted)
    assert AutoConfig.from_pretrained(tmp_path / "b").n_prefixes == sim.layout.n_prefixes
    assert AutoTokenizer.from_pretrained(tmp_path / "b")("the cat")["input_ids"] == [2, 3]


def test_the_model_is_not_needed_again(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model", tiny_models.gpt2(n_layers=1))
    write_artefact(tintc.compile(model), tmp_path / "sim")
    for file in model.iterdir():
        file.unlink()
    assert str(tmp_path) not in "".join(
        file.read_text() for file in (tmp_path / "sim").iterdir() if file.suffix != ".safetensors"
    )
    assert run(tintc.load(tmp_path / "sim")).isfinite().all()


def test_load_converts(sim: tintc.TintForCausalLM, tmp_path: Path) -> None:
    """Rates stay fp32 or better. Of the largest logit, fp64 agrees with fp32 to 1e-3, bf16 to 5e-2."""
    write_artefact(sim, tmp_path / "sim")
    wanted = run(sim)
    for dtype, tolerance in (("float64", 1e-3), (torch.bfloat16, 5e-2)):
        other = tintc.load(tmp_path / "sim", dtype=dtype)
        assert str(other.dtype).endswith(str(dtype).removeprefix("torch."))
        assert all(rate.dtype != torch.bfloat16 for rate in other.rates.parameters())
        assert tiny_models.relative(run(other).double(), wanted.double()) < tolerance


def test_digests(sim: tintc.TintForCausalLM, tmp_path: Path) -> None:
    write_artefact(sim, tmp_path / "sim")
    again = tintc.load(tmp_path / "sim")
    assert again.config.digests["program"] == text_digest((tmp_path / "sim" / "program.tint").read_text())
    assert again.config.digests["structure"] == structure_digest(again.state_dict().items())
    with torch.no_grad():
        next(iter(again.structure.parameters())).add_(1)
    assert again.config.digests["structure"] != structure_digest(again.state_dict().items())


def test_replacing_leaves_one_folder(sim: tintc.TintForCausalLM, tmp_path: Path) -> None:
    target = write_artefact(sim, tmp_path / "sim")
    with pytest.raises(ArtefactError, match="--force"):
        write_artefact(sim, target)
    (target / "notes.txt").write_text("of the old one")
    write_artefact(sim, target, force=True)
    assert not (target / "notes.txt").exists() and [path.name for path in tmp_path.iterdir()] == ["sim"]


def test_replacing_where_paths_cannot_be_exchanged(
    sim: tintc.TintForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tintc.runtime.artefact.disk._renameat2", lambda *_: errno.ENOSYS)
    target = write_artefact(sim, tmp_path / "sim")
    write_artefact(sim, target, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["sim"] and run(tintc.load(target)).isfinite().all()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("broken"), KeyboardInterrupt()])
def test_failing_writes_change_nothing(
    sim: tintc.TintForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    target = write_artefact(sim, tmp_path / "sim")
    before = contents(tmp_path)

    def fail(folder: Path) -> None:
        (folder / "config.json").write_text("half of it")
        raise error

    monkeypatch.setattr(sim, "write_into", fail)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ArtefactError):
        write_artefact(sim, target, force=True)
    assert contents(tmp_path) == before


def test_permissions_follow_the_umask(sim: tintc.TintForCausalLM, tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        target = write_artefact(sim, tmp_path / "sim")
    finally:
        os.umask(old)
    assert stat.S_IMODE(target.stat().st_mode) == 0o750
    assert {stat.S_IMODE(file.stat().st_mode) for file in target.iterdir()} == {0o640}


def test_an_empty_folder_may_be_filled_with_force(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtefactError):
        check_output(tmp_path / "empty", force=False)
    assert check_output(tmp_path / "empty", force=True) == tmp_path / "empty"


def test_options_of_load(sim: tintc.TintForCausalLM, tmp_path: Path) -> None:
    target = write_artefact(sim, tmp_path / "sim")
    wrong: list[dict[str, Any]] = [{"dtype": "int4"}, {"device": "abacus"}, {"executor": "fastest"}]
    for options in wrong:
        with pytest.raises(OptionError):
            tintc.load(target, **options)
