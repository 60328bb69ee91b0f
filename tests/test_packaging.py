"""What a distribution holds and says: everything in the source one, no link that leads nowhere, no name to be had
elsewhere."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from command import ROOT
from setuptools.command.egg_info import FileList

import tintc
from tintc.runtime.artefact.card import model_card
from tintc.runtime.artefact.config import TintConfig

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LINK = re.compile(r"\]\(([^)#\s]+)")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
PLACE = re.compile(r"`((?:tintc|tests|tools|benchmarks|docs|examples)/[\w./{},-]*)`")
"""A file or folder of the repository, as pages name it."""
BESIDE = ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", ".pre-commit-config.yaml")


def test_the_source_distribution_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """The patterns of MANIFEST.in take every file of tests, docs, benchmarks and examples, and no byte code."""
    monkeypatch.chdir(ROOT)
    taken = FileList()
    for line in (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines():
        taken.process_template_line(line)
    kept = {str(Path(name)) for name in taken.files}
    there = {
        str(path.relative_to(ROOT))
        for folder in ("tests", "docs", "benchmarks", "examples")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert len(there) > 100 and there <= kept, sorted(there - kept)[:5]
    assert {"Makefile", "constraints.txt", *BESIDE} <= kept and not [name for name in kept if "__pycache__" in name]


def test_the_package_page_has_no_relative_link() -> None:
    """An index shows it alone. Addresses name hosts that are known."""
    text = (ROOT / PROJECT["readme"]).read_text(encoding="utf-8")
    links = [*LINK.findall(text), *PROJECT["urls"].values()]
    assert links and all(link.startswith("https://arxiv.org/") for link in links), links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    relative = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in relative if not (page.parent / link).exists()] == []


def spelled_out(place: str) -> list[str]:
    """Every path that ``a/{b,c}`` stands for."""
    braces = re.search(r"\{([^}]*)\}", place)
    if braces is None:
        return [place]
    return [place[: braces.start()] + choice + place[braces.end() :] for choice in braces[1].split(",")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_are_there(page: Path) -> None:
    places = [path for place in PLACE.findall(page.read_text(encoding="utf-8")) for path in spelled_out(place)]
    assert page.name != "CONTRIBUTING.md" or len(places) > 10
    assert [path for path in places if not (ROOT / path).exists()] == []


def test_nothing_is_installed_by_a_name_that_is_not_published() -> None:
    """Neither by pages and errors nor by model cards."""
    card = model_card(TintConfig(provenance={"source": "a/b"}))
    assert "pip install ." in card
    sources = [path.read_text(encoding="utf-8") for path in (*PAGES, *(ROOT / "tintc").rglob("*.py"))]
    told = [line for text in (card, *sources) for line in text.splitlines() if "pip install" in line]
    assert told and not [line for line in told if re.search(r"pip install\s+(-U\s+)?'?tintc", line)]


def test_one_version() -> None:
    """It stands in `tintc/__init__.py`, where the build reads it; the citation repeats it."""
    assert "version" not in PROJECT and "version" in PROJECT["dynamic"]
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited is not None and cited[1] == tintc.__version__ == version("tintc")
