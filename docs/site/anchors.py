"""Anchors that pages write as HTML, which is what a checkout's viewers understand, as targets of Sphinx."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ANCHOR = re.compile(r'^<a id="([\w-]+)"></a>$', re.MULTILINE)
LINK = re.compile(r"\]\([^()\s]*#([\w-]+)\)")


def anchors_of(root: Path) -> set[str]:
    """Return the anchors of all pages, each of which stands once."""
    return {name for page in root.glob("docs/*.md") for name in ANCHOR.findall(page.read_text(encoding="utf-8"))}


def as_targets(app: Sphinx, page: str, source: list[str]) -> None:
    """Put targets in the place of a page's anchors, and links to their names in the place of links to places."""
    known = anchors_of(Path(app.srcdir))

    def renamed(link: re.Match[str]) -> str:
        if link[1] in known:
            return f"](#{link[1]})"
        return link[0]

    if Path(app.env.doc2path(page)).suffix != ".md":
        return
    source[0] = LINK.sub(renamed, ANCHOR.sub(r"(\1)=", source[0]))


def setup(app: Sphinx) -> dict[str, Any]:
    """Read every page that way."""
    app.connect("source-read", as_targets)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
