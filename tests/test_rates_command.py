"""`tintc rates`: losses over a grid of rates, the best of them, and storing it. fp32, 1e-6 relative."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
from command import STORY, Command

import tintc
from tintc.evaluation.rate_grid import grid

SIZE = ("--text", STORY, "--block-size", 20)


@pytest.fixture
def sim(one_layer_sim: Path, tmp_path: Path) -> Path:
    """A simulator that the test may change."""
    return Path(shutil.copytree(one_layer_sim, tmp_path / "sim"))


def test_losses_are_those_of_runs(command: Command, one_layer_sim: Path) -> None:
    found = command("rates", one_layer_sim, *SIZE, "--lr", "0.02,0.001,1e30", "--json").json
    assert [one["inner_lr"] for one in found["rates"]] == [0.001, 0.02, 1e30]
    for one in found["rates"][:2]:
        alone = command("run", one_layer_sim, *SIZE, "--lr", one["inner_lr"], "--json").json
        assert one["loss"] == pytest.approx(math.log(alone["perplexity_after"]), rel=1e-6)
        assert found["loss_before"] == pytest.approx(math.log(alone["perplexity_before"]), rel=1e-6)
        assert one["gain"] == pytest.approx(found["loss_before"] - one["loss"], abs=1e-12)
    assert found["rates"][2]["gain"] is None or found["rates"][2]["gain"] < 0
    assert found["best"] == min(found["rates"][:2], key=lambda one: one["loss"])["inner_lr"]
    assert not found["written"]


def test_the_best_is_stored(command: Command, sim: Path, tmp_path: Path) -> None:
    """In the configuration and in every layer, step by step; all other tensors stay as they are."""
    before = tintc.load(sim).state_dict()
    found = command("rates", sim, *SIZE, "--lr", "0.0001,0.002", "--png", tmp_path / "a.png", "--write", "--json")
    assert found.code == 0, found.err
    assert found.json["written"] and (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    after = tintc.load(sim)
    best = found.json["best"]
    assert after.config.inner_lr == best
    assert {name.partition(".")[0] for name, one in after.state_dict().items() if not one.equal(before[name])} == {
        "rates"
    }
    run = command("run", sim, *SIZE, "--json").json
    assert math.log(run["perplexity_after"]) == pytest.approx(min(o["loss"] for o in found.json["rates"]), rel=1e-6)
    after.train()
    assert after.why_literal() is None, "its tensors are still the compiler's own"


def test_nothing_is_stored_where_nothing_helps(command: Command, sim: Path) -> None:
    files = {path.name: path.read_bytes() for path in sim.iterdir()}
    found = command("rates", sim, *SIZE, "--lr", "0", "--write", "--json").json
    assert found["best"] == 0 and not found["written"] and "try smaller ones" in found["remark"]
    assert {path.name: path.read_bytes() for path in sim.iterdir()} == files


def test_what_is_printed(command: Command, one_layer_sim: Path) -> None:
    """A line for every rate of the grid, with bars for gains, and what to do next."""
    found = command("rates", one_layer_sim, *SIZE)
    assert found.code == 0, found.err
    assert all(f"{rate:g}" in found.out for rate in grid("sgd")) and "\u2588" in found.out
    assert "end of the grid" in found.out or "report on others" in found.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--lr", "fast"), "The learning rate is 'fast'"),
        (("--lr", "-1"), "rate"),
        (("--png", "nowhere/a.png"), "nowhere"),
        (("--block-size", 2), "block"),
    ],
)
def test_mistakes_are_one_sentence(
    command: Command, one_layer_sim: Path, arguments: tuple[object, ...], says: str
) -> None:
    found = command("rates", one_layer_sim, "--text", STORY, *arguments)
    assert found.code == 2 and says in found.err and "Traceback" not in found.err
