"""`tintc plan`: the same choice as `tintc compile`, counts that are those of the layout, and mistakes in a sentence."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import tiny_models
from command import Command, model_folder
from transformers import PreTrainedModel

import tintc
from tintc.analysis.parameter_counts import unique_count, unrolled_count
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.importer import import_graph
from tintc.frontend.source.weightless import weightless_model
from tintc.ir.text import print_program
from tools.sweep.tiny import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 wide with 3 heads of 20, one key/value head, feed-forward 140."""
    decoder = tiny_models.llama(n_layers=1, n_heads=3, n_kv_heads=1, head_dim=20, d_ff=140)
    return model_folder(tmp_path_factory.mktemp("model") / "tiny", decoder)


def mixture() -> PreTrainedModel:
    """Return a model of one layer with eight experts."""
    return tiny_model("qwen3_moe", num_hidden_layers=1, num_experts=8)


def test_what_is_planned_is_compiled(command: Command, model: Path, tmp_path: Path) -> None:
    found = command("plan", model, "--max-length", 24, "--json").json
    sim = tintc.compile(model, max_length=24)
    layout, chosen = sim.layout, found["chosen"]
    assert (chosen["stack"], chosen["shards"], chosen["head_width"], chosen["heads"]) == (
        layout.stack,
        layout.shards,
        layout.d_h,
        layout.n_heads,
    )
    assert chosen["unique"] == unique_count(sim.program) == sum(t.numel() for t in sim.state_dict().values())
    assert chosen["unrolled"] == unrolled_count(sim.program)
    assert chosen["text_left"] == 24 - layout.n_prefixes and chosen["cost"] == 1
    assert [row for row in found["candidates"] if row["chosen"]] == [chosen]
    assert all(row["cost"] >= 1 for row in found["candidates"])
    other = command("plan", model, "--stack", 4, "--shards", 3, "--max-length", 24, "--json").json["chosen"]
    made = command("compile", model, "-o", tmp_path / "sim", "--stack", 4, "--shards", 3, "--max-length", 24, "--json")
    assert made.json["d_sim"] == other["d_sim"] and other["stack"] == 4
    counted = command("inspect", tmp_path / "sim", "--params", "--json").json["parameters"]
    assert counted == {name: other[name] for name in ("table", "unrolled", "unique")}


def test_refusals_and_all(command: Command, model: Path) -> None:
    found = command("plan", model, "--shards", 2, "--all", "--json").json
    assert {row["stack"] for row in found["candidates"]} == set(range(2, 17))
    (refused,) = found["refused"]
    assert refused["stack"] == 1 and "d_h = 30 must be at least K = 60" in refused["conditions"][0]
    pruned = command("plan", model, "--shards", 2, "--json").json["candidates"]
    assert 0 < len(pruned) < len(found["candidates"])


def test_for_people_and_picture(command: Command, model: Path, tmp_path: Path) -> None:
    shown = command("plan", model, "--png", tmp_path / "plan.png")
    assert shown.code == 0 and "feasible layouts" in shown.out and "must be at least K" in " ".join(shown.out.split())
    above, heading, first = shown.out.splitlines()[1:4]
    assert above.split() == ["text", "table,", "unrolled,", "unique,", "work,"]
    assert heading.startswith("S ") and heading.endswith("  cost"), "nothing is broken where there is no terminal"
    assert first.endswith("1.000")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.png"]


def test_mistakes(command: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = command("plan", model, "--stack", 1, "--shards", 3)
    assert (
        refused.code == 2 and "S = 1, S' = 3 is not a feasible layout: d_h = 20 must be at least K = 60" in refused.err
    )
    assert command("plan", model, "--png", tmp_path / "missing" / "plan.png").code == 2
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    refused = command("plan", model, "--png", tmp_path / "plan.png")
    assert refused.code == 2 and "pip install matplotlib" in refused.err and not list(tmp_path.iterdir())


HOLLOW: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": partial(tiny_models.gpt2, 1),
    "opt": partial(tiny_models.opt, 1),
    "llama": partial(tiny_models.llama, 1),
    "mixture": mixture,
}


@pytest.mark.parametrize("kind", HOLLOW)
def test_hollow_models_are_captured_as_whole_ones(kind: str) -> None:
    whole = HOLLOW[kind]()
    hollow = weightless_model(whole.config, "sdpa")
    assert all(parameter.untyped_storage().nbytes() <= 8 for parameter in hollow.parameters())
    assert print_program(import_graph(capture(hollow))) == print_program(import_graph(capture(whole)))


def test_a_mixture_is_looked_at_without_weights(command: Command, tmp_path: Path) -> None:
    """Plan, explain and inspect say the same as with weights, and count experts."""
    whole = model_folder(tmp_path / "whole", mixture())
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(whole / "config.json", bare)
    for name in ("plan", "explain", "inspect"):
        results = [command(name, path, "--json") for path in (whole, bare)]
        assert [result.code for result in results] == [0, 0], results[1].err
        with_weights, without = (result.json for result in results)
        for facts in (with_weights, without):
            facts.pop("model", None)
            facts.pop("provenance", None)
        assert with_weights == without
        if name == "inspect":
            assert without["modules"]["sim.experts_forward"] > 0
    refused = command("compile", bare, "-o", tmp_path / "sim")
    assert refused.code == 2 and "has no weights" in refused.err


def test_a_simulator_is_not_planned(command: Command, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "tint"}')
    for name in ("plan", "explain"):
        found = command(name, tmp_path)
        assert found.code == 2 and "is a simulator already" in found.err and len(found.err.splitlines()) == 1


def test_a_configuration_is_enough_to_look_at_a_model(command: Command, tmp_path: Path, model: Path) -> None:
    """As with weights, but for what the weights say; compiling asks for them."""
    shutil.copy(model / "config.json", tmp_path)
    for name in ("plan", "explain", "inspect"):
        whole, bare = (command(name, path, "--json").json for path in (model, tmp_path))
        if name == "plan":
            assert command("plan", tmp_path / "config.json", "--json").json == whole
        for facts in (whole, bare):
            facts.pop("model", None)
            facts.pop("provenance", None)
        assert whole == bare
    refused = command("compile", tmp_path, "-o", tmp_path / "sim")
    assert refused.code == 2 and "has no weights" in refused.err
