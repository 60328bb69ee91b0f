"""A type of which no model compiles is refused before anything is loaded or captured; what may compile is tried."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import transformers
from command import Command
from tiny_models import llama
from transformers import LlamaConfig, LlamaForCausalLM

import tintc
from tintc.errors import UnsupportedModelError
from tintc.frontend.graph.obstacle_words import TWO_WAY
from tintc.frontend.source.known_types import refuse_known_configuration
from tintc.known_families import DATA, known_obstacles, read_data
from tools.sweep.tiny import tiny_config, tiny_model

WORDS = "layers that dream"
DREAMS = ["aten.sleep in model.layers.0.mlp: no rule takes this operation", "LlamaForCausalLM cannot be compiled."]
TIED = {"variant": "tied", "options": {"tie_word_embeddings": True}}


class Captured(Exception):
    """Raised in the place of an export."""


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(*_: object) -> None:
        raise Captured

    monkeypatch.setattr("tintc.stages.capture", capture)


def known(folder: Path, monkeypatch: pytest.MonkeyPatch, *entries: dict[str, Any], version: str = "") -> None:
    """Let the sweep have written these entries about Llama."""
    failed = {"type": "llama", "variant": "", "options": {}, "passed": False, "obstacles": [WORDS], "reasons": DREAMS}
    families = [failed | entry for entry in entries]
    data = {"transformers": version or transformers.__version__, "families": families}
    file = folder / "families.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    monkeypatch.setattr("tintc.known_families.DATA", file)


@pytest.mark.usefixtures("no_export")
def test_a_type_of_which_no_variant_compiles_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(tmp_path, monkeypatch, {}, TIED | {"passed": True})
    model = llama(n_layers=1, tie_word_embeddings=False)
    with pytest.raises(UnsupportedModelError) as refused:
        tintc.compile(model)
    message = str(refused.value)
    assert message.startswith(f"LlamaForCausalLM cannot be compiled: it has {WORDS}, which tintc does not support; ")
    first, *places = message.splitlines()
    assert "`tintc families llama`" in first and "try_anyway=True" in first
    assert places == ["  - aten.sleep in model.layers.0.mlp: no rule takes this operation"]
    assert [reason.what for reason in refused.value.reasons] == ["aten.sleep"]
    with pytest.raises(Captured):
        tintc.compile(model, try_anyway=True)


@pytest.mark.usefixtures("no_export")
@pytest.mark.parametrize(
    ("entries", "version"),
    [
        (({}, TIED | {"passed": True, "obstacles": []}), ""),
        (({"obstacles": []},), ""),
        (({}, TIED | {"obstacles": []}), ""),
        (({"type": "opt"},), ""),
        (({},), "4.0.0"),
        ((), ""),
    ],
    ids=[
        "its variant passes",
        "no kind of layer",
        "of its variant no kind of layer",
        "another type",
        "version",
        "nothing",
    ],
)
def test_what_may_compile_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: tuple[dict[str, Any], ...], version: str
) -> None:
    known(tmp_path, monkeypatch, *entries, version=version)
    with pytest.raises(Captured):
        tintc.compile(llama(n_layers=1, tie_word_embeddings=True))


def test_a_list_of_kinds_is_a_variants_if_the_kinds_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_full = {"variant": "full", "options": {"layer_types": ["full", "full"]}, "passed": True, "obstacles": []}
    known(tmp_path, monkeypatch, {}, of_full)
    version = transformers.__version__
    assert known_obstacles({"model_type": "llama", "layer_types": ["full"] * 5}, version) == ()
    for others in ({}, {"layer_types": ["full", "linear"]}, {"layer_types": []}, {"layer_types": None}):
        assert known_obstacles({"model_type": "llama"} | others, version) == (WORDS,)


class Own(LlamaForCausalLM):
    """A class of somebody else's, of a type that transformers has too."""


@pytest.mark.usefixtures("no_export")
def test_code_of_somebody_else_is_not_of_the_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known(tmp_path, monkeypatch, {})
    with pytest.raises(Captured):
        tintc.compile(Own(cast(LlamaConfig, llama(n_layers=1).config)))
    entries = {"model_type": "llama", "auto_map": {"AutoModelForCausalLM": "own.Own"}}
    refuse_known_configuration("own", entries, trusted=True)
    with pytest.raises(UnsupportedModelError, match=WORDS):
        refuse_known_configuration("own", entries, trusted=False)


def test_a_wrapper_is_of_its_decoders_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known(tmp_path, monkeypatch, {})
    with pytest.raises(UnsupportedModelError, match="model of type llama"):
        refuse_known_configuration("one", {"model_type": "llava", "text_config": {"model_type": "llama"}}, False)


@pytest.mark.usefixtures("no_export")
@pytest.mark.skipif(not DATA.exists(), reason="no sweep has been run in this checkout")
def test_a_real_type_is_refused_without_an_export(command: Command, tmp_path: Path) -> None:
    """As an object, and as a folder of which nothing but the configuration is read: there are no weights in it."""
    (obstacle,) = known_obstacles({"model_type": "longcat_flash"}, read_data()["transformers"])
    with pytest.raises(UnsupportedModelError) as refused:
        tintc.compile(tiny_model("longcat_flash"))
    assert f"it has {obstacle}, which" in str(refused.value) and refused.value.obstacles == (obstacle,)
    folder = tmp_path / "model"
    tiny_config("longcat_flash").save_pretrained(folder)
    done = command("compile", folder, "-o", tmp_path / "sim")
    assert (done.code, done.out) == (2, "") and f"it has {obstacle}, which" in done.err.replace("\n", " ")
    assert command("plan", folder).code == 2
    tried = command("compile", folder, "-o", tmp_path / "sim", "--try-anyway")
    assert tried.code == 2 and "has no weights" in tried.err and not (tmp_path / "sim").exists()


@pytest.mark.skipif(not DATA.exists(), reason="no sweep has been run in this checkout")
def test_a_switch_that_makes_a_decoder_of_a_type_is_looked_at() -> None:
    data = read_data()
    encoder = {"model_type": "bert-generation"}
    assert known_obstacles(encoder, data["transformers"]) == (TWO_WAY,)
    assert known_obstacles(encoder | {"is_decoder": True}, data["transformers"]) == ()
