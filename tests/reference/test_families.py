"""The sweep: a representative dozen of types, and how outcomes become tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command import Command

from tintc.frontend.graph.obstacle_words import LOOPED_EXPERTS
from tintc.known_families import DATA, Data, read_data
from tintc.reference.family_table import KINDS, shown_obstacles, shown_operations, shown_reasons, summary
from tools.sweep.family import Outcome, check_family
from tools.sweep.features import Features
from tools.sweep.page import DOCUMENT, to_data, to_markdown, with_outcomes
from tools.sweep.run import all_jobs
from tools.sweep.tiny import registered_types, tiny_config
from tools.sweep.variants import DENSE, DOZEN, VARIANTS

ROOT = Path(__file__).parents[2]


OFTEN = ("falcon", "gemma2", "gpt_neox", "granite", "opt")
"""Types of the dozen that are checked with every commit: norms, positions, attentions and residuals of every kind."""
SMALLER: dict[str, dict[str, int]] = {
    "falcon": {"num_hidden_layers": 1, "ffn_hidden_size": 75},
    "gemma2": {"intermediate_size": 75},  # layers of two kinds
    "gpt_neox": {"num_hidden_layers": 1, "intermediate_size": 75},
    "granite": {"num_hidden_layers": 1, "intermediate_size": 75},
    "opt": {"num_hidden_layers": 1, "ffn_dim": 75},
}
"""Two tiles in place of three, and one layer in place of two, for some of these."""


@pytest.mark.parametrize(
    ("model_type", "variant"),
    [case if case[0] in OFTEN else pytest.param(*case, marks=pytest.mark.slow) for case in DOZEN],
)
def test_a_representative_dozen(model_type: str, variant: str) -> None:
    options = VARIANTS[model_type][variant] if variant else {}
    outcome = check_family(model_type, variant, **options | SMALLER.get(model_type, {}))
    assert outcome.passed, (outcome.stage, outcome.reasons)
    assert set(outcome.errors) == {"graph", "eager", "gradient", "executors"}


def test_a_check_that_fails_is_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.sweep.family.EAGER", 1e-12)
    outcome = check_family("llama", num_hidden_layers=1)
    assert (outcome.passed, outcome.stage) == (False, "logits") and "eager" in outcome.reasons[0]


def test_types_that_cannot_be_built_or_compiled_say_why() -> None:
    unbuilt = check_family("llama", num_key_value_heads=0)
    assert unbuilt.stage == "build" and unbuilt.reasons
    refused = check_family("longcat_flash", num_layers=1)
    assert refused.stage == "capture" and refused.obstacles == [LOOPED_EXPERTS]


def test_every_registered_type_is_a_job() -> None:
    jobs = all_jobs()
    assert {name for name, _ in jobs} == set(registered_types()) and len(jobs) == len(set(jobs))
    assert set(DENSE) <= set(registered_types()) and len(DENSE) == 68
    assert set(VARIANTS) <= set(registered_types()) and set(DOZEN) <= set(jobs)


def test_widths_are_odd() -> None:
    config = tiny_config("llama")
    assert (config.hidden_size, config.num_attention_heads, config.num_key_value_heads) == (60, 3, 1)
    assert config.intermediate_size % config.hidden_size and config.head_dim == 20


def test_tables() -> None:
    data = example()
    assert (data["dense_passed"], data["dense"]) == (1, 2), "of those that were checked"
    assert summary(data) == (
        "Passed: 1 of 2 dense decoder types, 0 of 1 types with other token mixers, 0 of 1 other types "
        "(of 1 more no tiny model could be made)."
    )
    assert shown_reasons(data["families"][2]) == "no rule takes this operation"
    assert shown_reasons(data["families"][3]) == "the logits differ."
    assert shown_reasons(data["families"][4]) == "not checked: no tiny model could be made (TypeError: no)"
    assert shown_obstacles(data["families"][2]) == "a; b, c" and shown_obstacles(data["families"][1]) == "a | b"
    assert shown_operations(data["families"][2]) == "no rule takes this operation"
    assert shown_operations(data["families"][1]) == "", "its sentence says what it has"
    page = to_markdown(data)
    used = "- 1 pass: llama.\n- 3 are refused:\n  - mamba: a | b.\n  - opt: a; b, c.\n  - bart: the logits differ.\n"
    assert used in page, "dbrx has no entry of other tools"
    assert "| opt | import | a; b, c | no rule takes this operation |" in page
    assert "| llama | RMSNorm | rotary, half | grouped | gated silu |" in page and "a \\| b" in page
    assert page.index("Other types, refused") < page.index("| bart |") < page.index("## Not checked")


def example() -> Data:
    passed = Outcome("llama", stage="passed", features=Features("RMSNorm", "rotary, half", "grouped", "gated silu"))
    same = "aten.sort in layers.{}: no rule takes this operation"
    refused = Outcome("opt", stage="import", reasons=[same.format(0), same.format(1)], obstacles=["a", "b, c"])
    other = Outcome("mamba", stage="capture", reasons=["a | b"])
    differs = Outcome("bart", stage="probe", reasons=["bart is not compiled: the logits differ. Please report it."])
    unbuilt = Outcome("dbrx", stage="build", reasons=["TypeError: no"])
    return to_data([outcome.to_json() for outcome in (passed, other, refused, differs, unbuilt)])


@pytest.mark.skipif(not DATA.exists(), reason="no sweep has been run in this checkout")
def test_the_page_is_the_table() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == to_markdown(read_data())


@pytest.mark.skipif(not DATA.exists(), reason="no sweep has been run in this checkout")
def test_the_readme_has_the_numbers_of_the_table() -> None:
    families = [family for family in read_data()["families"] if not family["variant"] and family["stage"] != "build"]
    of_kind = {kind: [family for family in families if family["kind"] == kind] for kind in KINDS}
    passed = {kind: [family for family in rows if family["passed"]] for kind, rows in of_kind.items()}
    both = sum("experts" in family["feed_forward"] for family in passed["mixers"])
    assert both == 9, "the page says it in words"
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"{len(passed['dense'])} of the {len(of_kind['dense'])} dense types" in readme
    assert f"{len(passed['experts']) + both} types with [experts]" in readme
    assert f"{len(passed['mixers'])} of {len(of_kind['mixers'])} with [other token mixers]" in readme
    assert "nine of them with experts" in readme


def test_single_types_are_put_into_the_table() -> None:
    """In the place of what is there of them, their variants included; the rest stays."""
    data = example()
    again = Outcome("opt", stage="passed", features=Features("LayerNorm", "table", "multi-head", "relu"))
    renewed = with_outcomes(data, [again.to_json()])
    assert [family["type"] for family in renewed["families"]] == ["bart", "dbrx", "llama", "mamba", "opt"]
    assert renewed["families"][-1]["passed"] and renewed["dense_passed"] == 2
    assert renewed["families"][0] == data["families"][3]
    with pytest.raises(ValueError, match="sweep all types"):
        with_outcomes(data | {"checked_on": "transformers 4.0.0 and torch 2.0.0"}, [])


def test_the_command_prints_the_table(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tintc.known_families.DATA", tmp_path / "families.json")
    missing = command("families")
    assert missing.code == 2 and "make sweep" in missing.err
    (tmp_path / "families.json").write_text(json.dumps(example()), encoding="utf-8")
    assert command("families", "--json").json == example()
    shown = command("families")
    assert shown.code == 0 and "1 of 2 dense decoder types" in shown.out and "gated silu" in shown.out
    assert command("families", "opt", "--json").json["families"] == example()["families"][2:3]
    of_one = command("families", "opt").out
    assert "  - it has b, c\n  - aten.sort in layers.0-1: no rule takes this operation\n" in of_one
    assert "llama (dense) compiles" in command("families", "llama").out
    assert "dbrx (experts) is not checked" in command("families", "dbrx").out
    unknown = command("families", "lama")
    assert unknown.code == 2 and "did you mean llama?" in unknown.err


@pytest.mark.slow
def test_the_sweep_runs_types_in_processes_of_their_own() -> None:
    """Two types, one of which is refused; no table is written."""
    before = DATA.stat().st_mtime_ns if DATA.exists() else None
    command = [sys.executable, "-m", "tools.sweep.run", "--only", "gpt2", "mamba", "--fresh"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert found.returncode == 0, found.stderr
    assert "gpt2 " in found.stdout and "Passed: 1 of 1 dense decoder types" in found.stdout
    assert before == (DATA.stat().st_mtime_ns if DATA.exists() else None)
