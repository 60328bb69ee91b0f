"""Compiling to a folder, tensor by tensor: the folder is the one that building in memory and saving gives."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
from command import contents, model_folder
from safetensors import safe_open
from safetensors.torch import save_file

import tintc
from tintc.errors import ArtefactError, OptionError
from tintc.frontend.source.load import load_auxiliary
from tintc.mapped import MAPS, MappedWeights
from tintc.runtime.artefact.safetensors_writer import INDEX, parse_size
from tintc.runtime.load import write_artefact

needs_linux = pytest.mark.skipif(not MAPS.exists(), reason="only Linux says what is mapped")


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (tiny_models.gpt2, None),
        pytest.param(tiny_models.opt, "float64", marks=pytest.mark.slow),
        (lambda: tiny_models.llama(n_layers=1), "bfloat16"),
    ],
    ids=["gpt2", "opt", "llama"],
)
def test_same_files(tmp_path: Path, make: Callable[[], Any], dtype: str | None) -> None:
    """Byte for byte."""
    model = model_folder(tmp_path / "model", make())
    write_artefact(tintc.compile(model, n_steps=2, dtype=dtype), tmp_path / "saved")
    sim = tintc.compile(model, n_steps=2, dtype=dtype, output=tmp_path / "streamed")
    assert contents(tmp_path / "streamed") == contents(tmp_path / "saved")
    assert sim.config.provenance["source"] == "model" and sim.tokenizer is not None


def test_shards(one_layer: Path, tmp_path: Path) -> None:
    """No file of several tensors is larger than asked for, each tensor is in one, and they load as one file does.
    Sharded sources are read, too."""
    tiny_models.gpt2(n_layers=1).save_pretrained(tmp_path / "model", max_shard_size="20KB")
    assert (tmp_path / "model" / INDEX).exists()
    whole = tintc.compile(one_layer, output=tmp_path / "whole")
    sharded = tintc.compile(tmp_path / "model", output=tmp_path / "sharded", max_shard_size="40KB")
    found: dict[str, Path] = {}
    for file in (tmp_path / "sharded").glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            names = list(tensors.keys())
            sizes = [tensors.get_tensor(name).nbytes for name in names]
        assert len(names) == 1 or sum(sizes) <= 40_000
        assert not found.keys() & set(names)
        found |= dict.fromkeys(names, file)
    index = json.loads((tmp_path / "sharded" / INDEX).read_text())
    assert len(set(found.values())) > 3
    assert index["weight_map"] == {name: file.name for name, file in found.items()}
    ids = tiny_models.token_ids(1, 10)
    with torch.no_grad():
        assert torch.equal(whole(ids).logits, sharded(ids).logits) and sharded.last_executor == "fused"
    assert sharded.config.digests == whole.config.digests


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("1.5 mb", 1_500_000), ("2GiB", 2**31), (7700, 7700), ("7700", 7700)]
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "0GB", "-1GB", "5 apples", "nan", "nanGB", "infGB", "5"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(OptionError, match="5GB"):
        parse_size(text)


def test_no_room(one_layer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused from the plan, before any tensor is computed."""
    usage = SimpleNamespace(total=10**9, used=10**9 - 1000, free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr("tintc.runtime.artefact.streaming.write_files", lambda *_: pytest.fail("something was written"))
    with pytest.raises(ArtefactError, match="make room"):
        tintc.compile(one_layer, output=tmp_path / "sim")
    assert not list(tmp_path.iterdir())


def test_output_exists(one_layer: Path, tmp_path: Path) -> None:
    tintc.compile(one_layer, output=tmp_path / "sim")
    with pytest.raises(ArtefactError, match="--force"):
        tintc.compile(tmp_path / "no such model", output=tmp_path / "sim")
    assert tintc.compile(one_layer, inner_lr=0.5, output=tmp_path / "sim", force=True).config.inner_lr == 0.5
    assert [path.name for path in tmp_path.iterdir()] == ["sim"]


@needs_linux
def test_loading_maps(one_layer: Path, tmp_path: Path) -> None:
    """What a loaded simulator holds lies in its files."""
    sim = tintc.compile(one_layer, output=tmp_path / "sim")
    held = [p for name in ("tables", "prefixes") for p in sim.get_submodule(name).parameters()]
    assert held and all(MappedWeights([tensor]).nbytes for tensor in held)


def resident(path: Path) -> int:
    """Bytes of a mapped file in this process's memory; what else is mapped comes and goes."""
    found, own = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            own = line.endswith(f" {path}")
        elif own and line.startswith("Rss:"):
            found += int(line.split()[1]) << 10
    return found


@needs_linux
def test_pages_are_given_back(tmp_path: Path) -> None:
    """64 MB are read from a mapped file, and do not stay; what is in memory keeps its values."""
    save_file({"w": torch.ones(4000, 4000)}, tmp_path / "one.safetensors")
    with safe_open(tmp_path / "one.safetensors", framework="pt") as file:
        mapped = file.get_tensor("w")
    own = torch.ones(1000, 1000)
    weights, place = MappedWeights([mapped, own]), tmp_path / "one.safetensors"
    assert mapped.sum() == 16e6 and resident(place) > 50e6
    weights.release()
    assert resident(place) < 10e6
    assert mapped.sum() == 16e6 and own.sum() == 1e6


@needs_linux
def test_tensors_are_read_sparingly(tmp_path: Path) -> None:
    """Four tensors of 16 MB, as the probe and calibration read them: one at a time is in memory."""
    save_file({name: torch.full((2000, 2000), float(ord(name))) for name in "abcd"}, tmp_path / "four.safetensors")
    with safe_open(tmp_path / "four.safetensors", framework="pt") as file:
        mapped = {name: file.get_tensor(name) for name in "abcd"}
    tensors = MappedWeights(mapped.values()).read_sparingly(mapped)
    for name in tensors:
        assert tensors[name].mean() == ord(name) and resident(tmp_path / "four.safetensors") < 25e6
    assert tensors.keys() == mapped.keys() and "e" not in tensors and tensors.get("e") is None


@needs_linux
def test_a_mapped_model_runs_sparingly(one_layer: Path) -> None:
    """The same logits, and no hook stays."""
    source, ids = load_auxiliary(one_layer), tiny_models.token_ids(1, 9)
    assert source.weights.nbytes > 1000
    with torch.no_grad():
        wanted = source.model(ids).logits
        with source.weights.sparing(source.model):
            assert torch.equal(source.model(ids).logits, wanted)
    assert not any(module._forward_hooks for module in source.model.modules())
    assert not load_auxiliary(tiny_models.gpt2()).weights.nbytes
