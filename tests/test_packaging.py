"""What a distribution holds and says: everything in the source one, no link that leads nowhere, no name to be had
elsewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from command import ROOT, STORY
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


EXTRAS = (
    "altair",
    "captum",
    "circuitsvis",
    "fast_sugiyama",
    "furo",
    "ipykernel",
    "latex2mathml",
    "lm_eval",
    "matplotlib",
    "myst_nb",
    "myst_parser",
    "nbclient",
    "nnsight",
    "sphinx",
    "transformer_lens",
    "triton",
)
"""What the extras bring."""
BARE = f"""
import sys
sys.modules.update(dict.fromkeys({EXTRAS}))  # importing any of these fails
import tintc_cli
tintc_cli.main()
"""


@pytest.mark.slow
def test_wheel_and_source_distribution_install_and_run(one_layer: Path, tmp_path: Path) -> None:
    """Both are built from a copy of what is tracked; the wheel, which is made of the source distribution, has all that
    the package has, and compiles and runs from where it was installed, with nothing of the extras."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("this is no checkout")
    for name in tracked:
        target = tmp_path / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    build = "import sys, setuptools.build_meta as meta; print(getattr(meta, 'build_' + sys.argv[1])(sys.argv[2]))"
    made: dict[str, Path] = {}
    folder = tmp_path / "source"
    for kind in ("sdist", "wheel"):
        run = [sys.executable, "-c", build, kind, str(tmp_path)]
        done = subprocess.run(run, cwd=folder, capture_output=True, text=True, check=True)
        made[kind] = tmp_path / done.stdout.split()[-1]
        if kind == "sdist":
            with tarfile.open(made[kind]) as archive:
                archive.extractall(tmp_path / "unpacked", filter="data")
            (folder,) = (tmp_path / "unpacked").iterdir()
    wanted = {name for name in tracked if name.startswith(("tintc/", "tintc_cli/"))}
    with zipfile.ZipFile(made["wheel"]) as wheel:
        assert wanted == {name for name in wheel.namelist() if ".dist-info/" not in name}
        wheel.extractall(tmp_path / "installed")
    (tmp_path / "text.txt").write_text(STORY, encoding="utf-8")
    for command in (
        ["compile", str(one_layer), "-o", "sim"],
        ["run", "sim", "--file", "text.txt", "--block-size", "12"],
    ):
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "HF_HUB_OFFLINE": "1"}
        run = [sys.executable, "-c", BARE, *command]
        done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert "perplexity_after" in done.stdout


def test_all_extras_are_known_to_the_test_of_the_bare_package() -> None:
    """What the commands must do without."""
    extras = {name: wanted for name, wanted in PROJECT["optional-dependencies"].items() if name not in ("dev", "demo")}
    names = {re.split(r"[\s>=;\[]", one)[0].replace("-", "_") for wanted in extras.values() for one in wanted}
    assert names - {"vl_convert_python"} <= set(EXTRAS)
