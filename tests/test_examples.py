"""The scripts in examples/ run, and show what they promise."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from command import ROOT, STORY

import tintc


def example(name: str) -> Any:
    spec = spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_meta_train(one_layer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Random weights learn a text that repeats itself: training raises the held-out gain of the step, each time."""
    (tmp_path / "a.txt").write_text(f"{STORY} {STORY}")
    script = example("meta_train")
    script.main(str(one_layer), [tmp_path / "a.txt"], 4, 16, 5, "normalized", tmp_path / "out")
    rows = [
        [float(number) for number in re.findall(r"-?\d\.\d{4}", line)] for line in capsys.readouterr().out.split("\n")
    ]
    compiled, rates, both = [row for row in rows if len(row) == 3]
    assert compiled[0] == rates[0] > both[0], "rates alone do not move the weights"
    assert compiled[2] < rates[2] and both[1] < rates[1]
    saved = tintc.load(tmp_path / "out")
    assert len({float(rate) for name, rate in saved.named_parameters() if name.startswith("rates.")}) > 1


def test_meta_train_needs_two_blocks(one_layer: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(STORY)
    with pytest.raises(SystemExit, match="The texts make 1 blocks of 30 tokens; two are needed"):
        example("meta_train").main(str(one_layer), [tmp_path / "a.txt"], 4, 30, 5, "normalized", None)
