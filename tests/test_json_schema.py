"""What the commands print with --json is what docs/json.md describes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import ROOT, STORY, Command
from jsonschema import Draft202012Validator
from typer.main import get_command

import tintc_cli


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    (text,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "json.md").read_text(encoding="utf-8"), re.DOTALL)
    found = json.loads(text)
    Draft202012Validator.check_schema(found)
    return found


def faults(schema: dict[str, Any], name: str, value: Any) -> list[str]:
    return [error.message for error in Draft202012Validator(schema | {"$ref": f"#/$defs/{name}"}).iter_errors(value)]


def story_file(path: Path) -> Path:
    path.write_text(STORY)
    return path


Case = Callable[[Path, Path, Path], tuple[object, ...]]
CASES: dict[str, tuple[str, Case]] = {
    "compile": ("compile", lambda model, sim, out: (model, "-o", out)),
    "plan": ("plan", lambda model, sim, out: (model,)),
    "inspect": ("summary", lambda model, sim, out: (sim,)),
    "inspect a model": ("summary", lambda model, sim, out: (model,)),
    "inspect --params": ("params", lambda model, sim, out: (sim, "--params")),
    "inspect --roles": ("roles", lambda model, sim, out: (sim, "--roles", "*mlp*")),
    "inspect --ir": ("program", lambda model, sim, out: (sim, "--ir", "sim")),
    "opt": ("opt", lambda model, sim, out: (model, "-p", "canonicalise")),
    "run": ("blocks", lambda model, sim, out: (sim, "--text", STORY, "--block-size", 16)),
    "run --stream": ("stream", lambda model, sim, out: (sim, "--text", STORY, "--stream", "--chunk-size", 16)),
    "rates": ("rates", lambda model, sim, out: (sim, "--text", STORY, "--block-size", 16, "--lr", "0.01,1e5")),
    "eval ppl": (
        "ppl",
        lambda model, sim, out: ("ppl", sim, "--dataset", story_file(out), "--block-size", 16, "--train-fraction", 0.5),
    ),
    "generate": ("generate", lambda model, sim, out: (sim, "--text", STORY[:20], "--max-new-tokens", 2)),
    "report": ("report", lambda model, sim, out: (sim, "--text", STORY, "-o", out)),
    "verify": ("beside_model", lambda model, sim, out: (sim, model, "--length", 16)),
    "verify --files": ("beside_digests", lambda model, sim, out: (sim, "--files")),
    "explain": ("explain", lambda model, sim, out: (model,)),
    "families": ("families", lambda model, sim, out: ()),
    "families of one": ("families", lambda model, sim, out: ("doge",)),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_as_described(
    command: Command,
    schema: dict[str, Any],
    one_layer: Path,
    one_layer_sim: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    monkeypatch.setattr("tintc.cli.report.chart_script", lambda: "")  # nobody looks at the report
    name, arguments = CASES[case]
    found = command(case.split()[0], *arguments(one_layer, one_layer_sim, tmp_path / "out"), "--json")
    assert found.code == 0, found.err
    assert faults(schema, name, found.json) == []
    assert faults(schema, case.split()[0], found.json) == [], "by the command's own name too"


def test_every_command_is_described(schema: dict[str, Any]) -> None:
    commands: Any = get_command(tintc_cli.app)
    with_json = {name for name, one in commands.commands.items() if any("--json" in p.opts for p in one.params)}
    groups = {name: {*one.commands} for name, one in commands.commands.items() if hasattr(one, "commands")}
    assert groups == {"eval": {"ppl", "icl"}}
    described = with_json | {*groups} | {name for one in groups.values() for name in one}
    assert with_json and described <= schema["$defs"].keys()
    assert {case.split()[0] for case in CASES} == with_json | {*groups}


def test_what_is_not_as_described_is_found(command: Command, schema: dict[str, Any], one_layer_sim: Path) -> None:
    found = command("generate", one_layer_sim, "--text", STORY[:20], "--max-new-tokens", 2, "--json").json
    assert faults(schema, "generate", found | {"ids": "none"}) and faults(schema, "generate", found | {"more": 1})
    assert faults(schema, "generate", {name: value for name, value in found.items() if name != "seconds"})
