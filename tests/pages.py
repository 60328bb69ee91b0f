"""The code blocks of the documentation, and how a test runs them.

A block's language says what it is. ``python`` and ``sh`` run, in order, on the models and texts that `prepare` puts
into the folder. ``console`` shows commands, behind ``$``, that a test has no means or time for, and what they print.
``text`` is output; ``math`` and ``json`` are what they are.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import typer
from command import ROOT, Command

import tintc_cli

MODEL = ROOT.parent / "shared" / "models" / "stories260K"
DATA = ROOT.parent / "shared" / "data" / "classification" / "sst2"
LANGUAGES = {"python", "sh", "console", "text", "math", "json", "{toctree}", "{eval-rst}"}
FENCE = re.compile(r"^( *)```([\w{}-]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
WRITTEN = re.compile(r"^<!-- (\w+):begin -->$.*?^<!-- \1:end -->$", re.MULTILINE | re.DOTALL)
"""A section that a benchmark writes: what it shows was run then."""
INDENTED = re.compile(r"(?:\A|\n)\n(?: {4}\S.*\n)")


def pages() -> list[str]:
    """Every page, by its place."""
    places = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
    return sorted(str(path.relative_to(ROOT)) for path in places)


def text_of(page: str) -> str:
    """A page without the sections that a benchmark writes."""
    return WRITTEN.sub("", (ROOT / page).read_text(encoding="utf-8"))


def blocks(page: str) -> list[tuple[str, str]]:
    """Language and text of every block, in order."""
    return [(language, text) for _, language, text in FENCE.findall(text_of(page))]


def lines(text: str) -> list[str]:
    """The lines of a shell block, where one that ends in a backslash goes on in the next."""
    return text.replace("\\\n", " ").splitlines()


def prepare(model: Path, simulator: Path, characters: int | None = None) -> None:
    """Put into the current folder what pages name: a model under two names, its simulator, a story, a data set.

    characters: how many of the story there are, from its beginning (None: all).
    """
    Path("path/to").mkdir(parents=True)
    links = {"path/to/model": model, "stories260K": model, "sst2": DATA, "sim": simulator}
    for name, target in links.items():
        Path(name).symlink_to(target)
    story = (ROOT / "benchmarks" / "data" / "story.txt").read_text(encoding="utf-8")
    Path("story.txt").write_text(story[:characters], encoding="utf-8")


def run_page(page: str, names: dict[str, Any], command: Command) -> str:
    """Run a page's blocks; names are what it takes for granted, and afterwards all that it has defined.

    Returns what its commands have printed on standard output.
    """
    shown = ""
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, page, "exec"), names)
        elif language == "sh":
            shown += "".join(run_line(line, command) for line in lines(text))
    return shown


def run_line(line: str, command: Command) -> str:
    """Run one line of a shell block as far as a test can, and return what it printed.

    `tintc` runs here, without a launcher before it. Of what is installed, and of the targets of make, it is checked
    that they exist.
    """
    words = shlex.split(line, comments=True)
    if words[:2] == ["accelerate", "launch"]:
        words = ["tintc", *words[words.index("tintc_cli") + 1 :]]
    if words[0] == "tintc":
        result = command(*words[1:])
        assert result.code == 0, f"{line}\n{result.err}"
        return result.out
    check_line(words)
    return ""


def check_line(words: list[str]) -> None:
    """Check a command that is not run: that what it names exists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), f"make {words[1]}"
    elif words[:2] == ["pip", "install"]:
        extras = re.findall(r"\.\[(\w+)\]", words[2])
        assert words[2] == "." or (extras and set(extras) <= set(project["optional-dependencies"])), words
    elif words[0] == "python":
        assert (ROOT / words[1]).exists(), words
    else:
        raise AssertionError(f"{' '.join(words)}: a test neither runs nor checks this; it is no `sh`")


def check_console(text: str) -> None:
    """Check the commands of a ``console`` block: the commands and options of `tintc` exist."""
    asked = [line[2:] for line in lines(text) if line.startswith("$ ")]
    assert asked, text
    for line in asked:
        words = shlex.split(line, comments=True)
        if words[0] != "tintc":
            continue
        known: Any = typer.main.get_command(tintc_cli.app)
        rest = words[1:]
        while rest and rest[0] in getattr(known, "commands", {}):
            known = known.commands[rest.pop(0)]
        assert not hasattr(known, "commands"), line
        options = {name for one in known.params for name in one.opts}
        given = {word.partition("=")[0] for word in rest if word.startswith("-")}
        assert given <= options or known.name == "lm-eval", f"{line}: {given - options}"
