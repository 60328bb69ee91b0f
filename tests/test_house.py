"""Checks over the sources: which folder may import which, how large folders, files and functions are, and how the code
speaks.

Imports are counted wherever they stand: at the top of a file, for annotations only, and inside functions.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tintc"
UPSTAIRS = ("tintc.runtime", "tintc.evaluation", "tintc.reference")
BELOW = {
    "tintc.ir": (
        "tintc.frontend",
        "tintc.lowering",
        "tintc.analysis",
        "tintc.runtime",
        "tintc.evaluation",
        "tintc.reference",
    ),
    "tintc.frontend": ("tintc.lowering", "tintc.analysis", "tintc.runtime", "tintc.evaluation", "tintc.reference"),
    "tintc.lowering": ("tintc.analysis", "tintc.runtime", "tintc.evaluation", "tintc.reference"),
    "tintc.analysis": ("tintc.runtime", "tintc.evaluation", "tintc.reference"),
    "tintc.runtime.artefact": ("tintc.runtime.execution", "tintc.runtime.adaptation", "tintc.runtime.model"),
    "tintc.runtime.execution": ("tintc.runtime.adaptation", "tintc.runtime.model"),
    "tintc.runtime.adaptation": ("tintc.runtime.model",),
    "tintc.runtime": ("tintc.evaluation", "tintc.reference", "tintc.cli"),
}
"""For every folder, the folders above it, which it may not import."""


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes(path: Path) -> list[ast.AST]:
    """All that a file is made of."""
    return [*ast.walk(tree_of(path))]


@cache
def files() -> dict[str, Path]:
    """Every file of the package, by the name of its module."""
    return {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def imports() -> dict[str, set[str]]:
    """The package's own modules that each module imports; a package does not count as importing its parts."""
    return {name: set(_imported(name, path)) for name, path in files().items()}


def _imported(name: str, path: Path) -> Iterator[str]:
    for node in nodes(path):
        named: list[str] = []
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            named = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (one for one in named if one in files() and one != name and not name.startswith(f"{one}."))


def reachable(start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for name in imports()[waiting.pop()] - seen:
            seen.add(name)
            waiting.append(name)
    return seen


@pytest.mark.parametrize("folder", BELOW)
def test_no_folder_imports_one_above_it(folder: str) -> None:
    wrong = [
        f"{name} imports {other}"
        for name, others in imports().items()
        if name == folder or name.startswith(f"{folder}.")
        for other in sorted(others)
        if any(other == above or other.startswith(f"{above}.") for above in BELOW[folder])
    ]
    assert not wrong


PAIRS = {
    frozenset({"tintc.ir.simulator.interface.base", "tintc.ir.simulator.interface.fused_base"}),
}
"""Files that know each other's types."""


def test_no_circle_of_imports() -> None:
    """No files import each other, but these."""
    far = {name: reachable(name) for name in imports()}
    groups = {frozenset(other for other in far[name] if name in far[other]) for name in far}
    assert {group for group in groups if len(group) > 1} == PAIRS


def test_no_folder_has_more_than_25_files() -> None:
    counts: dict[Path, int] = {}
    for path in PACKAGE.rglob("*.py"):
        counts[path.parent] = counts.get(path.parent, 0) + 1
    assert {str(folder): count for folder, count in counts.items() if count > 25} == {}


MOST_LINES = 250
LONG_FILES = {
    "tintc/options.py": "every option stands there, once",
}
"""Files that are longer, each with its reason."""


def sources() -> list[Path]:
    """Return the files of the package, of the command and of the tools."""
    return [path for folder in ("tintc", "tintc_cli", "tools") for path in sorted((ROOT / folder).rglob("*.py"))]


def test_files_are_short() -> None:
    """A file is of one subject; one that outgrows this has two."""
    counts = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    long = {name: count for name, count in counts.items() if count > MOST_LINES}
    assert long.keys() == LONG_FILES.keys(), long


MOST_LINES_OF_A_FUNCTION = 45
LONG_FUNCTIONS = {
    "tintc/runtime/artefact/config.py __init__": "a configuration of transformers names each field as often as that",
}
"""Functions that are longer, each with its reason."""


def test_functions_are_short() -> None:
    """Without their docstrings; what they do in turn can be read off them."""
    counts: dict[str, int] = {}
    for path in sources():
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{path.relative_to(ROOT)} {node.name}"
                counts[name] = max(own_lines(node), counts.get(name, 0))
    long = {name: count for name, count in counts.items() if count > MOST_LINES_OF_A_FUNCTION}
    assert long.keys() == LONG_FUNCTIONS.keys(), long


def own_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines from a function's name to its end that are not its docstring's."""
    count = (node.end_lineno or 0) - node.lineno + 1
    if ast.get_docstring(node) is not None:
        text = node.body[0]
        count -= (text.end_lineno or 0) - text.lineno + 1
    return count


def lines() -> int:
    return sum(path.read_text(encoding="utf-8").count("\n") for path in PACKAGE.rglob("*.py"))


def test_few_conditional_expressions() -> None:
    """At most 12 in a thousand lines: a plain statement reads better."""
    count = sum(isinstance(node, ast.IfExp) for path in files().values() for node in nodes(path))
    assert count <= 12 * lines() / 1000


def test_no_word_says_nothing() -> None:
    """A name says what a value is: not that it was found, made or given."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    assert len(re.findall(r"\bfound\b", text)) <= 58


def test_docstrings_begin_with_what_is_done() -> None:
    """With a verb: neither a noun nor a relative clause, of which a reader must ask what is done with it."""
    wrong = []
    for name, path in files().items():
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                if re.match(r"(What|Whether|Which|How|Where|The|An?|All|As|True|Part)\b|`", text):
                    wrong.append(f"{name}.{node.name}: {text.splitlines()[0]}")
    assert not wrong


def test_an_option_of_the_command_is_written_once() -> None:
    """No text of help stands twice: what commands share is in `tintc_cli/groups.py`."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tintc_cli").glob("*.py")]
    calls = [node for source in sources for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    texts = [ast.unparse(one.value) for call in calls for one in call.keywords if one.arg == "help"]
    assert len(texts) > 60 and len(texts) == len(set(texts)), [one for one in texts if texts.count(one) > 1]


PRINTERS = ("tintc.cli",)
"""What a command shows is printed there; everything else logs, as `tintc`, or warns."""


def test_only_commands_print() -> None:
    """The package logs by one name, and never by the root logger, which is the user's."""
    wrong: list[str] = []
    for name, path in files().items():
        for node in nodes(path):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            prints = called in ("print", "sys.stdout.write", "sys.stderr.write")
            roots = called in {f"logging.{level}" for level in ("debug", "info", "warning", "error", "basicConfig")}
            unnamed = called == "logging.getLogger" and not node.args
            if (prints and not name.startswith(PRINTERS)) or roots or unnamed:
                wrong.append(f"{name}:{node.lineno} {called}")
    assert not wrong
