"""docs/refusals.md: every sentence that it explains is one of the code's."""

from __future__ import annotations

import ast
import re
from functools import cache

from command import ROOT

from tintc.frontend.graph import obstacle_words

PAGE = (ROOT / "docs" / "refusals.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(?=[^`]*\s)([^`]+)` \| (.+) \|$", re.MULTILINE)
"""A row whose first cell is a sentence or a part of one, not a single word."""
VALUE = "\0"


def written(node: ast.AST) -> str | None:
    """The text of a string, with `VALUE` for whatever is put into it; None for other expressions."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else VALUE for part in node.values)  # type: ignore[misc]
    return None


@cache
def sentences() -> list[str]:
    """Every string of the code."""
    texts: list[str] = []
    for path in [path for folder in ("tintc", "tintc_cli") for path in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = written(node)
            if text is not None:
                texts.append(text)
    return texts


def is_said(message: str) -> bool:
    """Whether one string of the code has these words in this order, with anything where the page has dots."""
    pattern = ".*".join(re.escape(part.strip()) for part in message.split("...") if part.strip())
    return any(re.search(pattern, text, re.DOTALL) for text in sentences())


def test_what_is_explained_is_said() -> None:
    rows = ROW.findall(PAGE)
    assert len(rows) > 50
    assert [message for message, _ in rows if not is_said(message)] == []


def test_every_kind_of_layer_is_explained() -> None:
    words = [word for name, word in vars(obstacle_words).items() if name.isupper() and name != "NO_RULE"]
    assert len(words) > 15 and [word for word in words if f"| `{word}` |" not in PAGE] == []


def test_other_words_are_not_said() -> None:
    assert not is_said("... cannot be compiled on Sundays")


def test_every_kind_of_error_has_a_section() -> None:
    tree = ast.parse((ROOT / "tintc" / "errors.py").read_text(encoding="utf-8"))
    kinds = {node.name for node in tree.body if isinstance(node, ast.ClassDef) and node.name.endswith("Error")}
    assert len(kinds) > 6 and not [kind for kind in kinds if kind not in PAGE]
