"""The documentation builds as a site, without a warning; skipped where Sphinx is not installed."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pages
import pytest
from command import ROOT

from tintc.options import Options

Sphinx = pytest.importorskip("sphinx.application", reason="Sphinx is not installed: pip install '.[docs]'").Sphinx
for needed in ("furo", "myst_nb", "latex2mathml"):
    pytest.importorskip(needed, reason="a part of the extra docs is missing: pip install '.[docs]'")
pytestmark = pytest.mark.filterwarnings("ignore:'myst_parser")  # what it uses of Sphinx goes in Sphinx 11
OUTSIDE = {"README.md", "docs/package.md"}
"""Pages that the site does not have: what a repository and a package index show first."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder of the site, and what Sphinx warned of."""
    folder = tmp_path_factory.mktemp("site")
    warnings = io.StringIO()
    app = Sphinx(ROOT, ROOT / "docs" / "site", folder, folder / ".doctrees", "html", status=None, warning=warnings)
    builder: Any = app.builder
    index = builder.index_page
    builder.index_page = lambda name, *rest: name != "docs/index" or index(name, *rest)  # no test searches the others
    app.build()
    yield folder, warnings.getvalue()


def page(site: tuple[Path, str], name: str) -> str:
    return (site[0] / name).with_suffix(".html").read_text(encoding="utf-8")


def test_nothing_is_warned_of(site: tuple[Path, str]) -> None:
    assert site[1] == ""


def test_every_page_is_there_and_in_the_tree(site: tuple[Path, str]) -> None:
    front = page(site, "docs/index")
    assert (site[0] / "index.html").read_text(encoding="utf-8").count("docs/index.html") == 2
    for place in set(pages.pages()) - OUTSIDE - {"docs/index.md"}:
        name = Path(place).with_suffix(".html")
        assert (site[0] / name).exists(), place
        href = name.name
        if name.parent.name != "docs":
            href = f"../{name}"
        assert f'href="{href}"' in front, place


def test_every_formula_is_drawn(site: tuple[Path, str]) -> None:
    """As MathML, none left as TeX, and no command unknown to what draws them."""
    text = pages.text_of("docs/construction.md")
    displayed = [body for language, body in pages.blocks("docs/construction.md") if language == "math"]
    inline = re.findall(r"\$[^$]+\$", re.sub(r"`[^`\n]+`", "", pages.FENCE.sub("", text)))
    drawn = page(site, "docs/construction")
    assert len(displayed) == drawn.count('class="formula"') > 20
    assert len(inline) == drawn.count("<math") - len(displayed) > 300
    assert "$" not in re.sub(r"<pre>.*?</pre>|<script.*?</script>", "", drawn, flags=re.DOTALL)
    assert [one for one in re.findall(r"<m[io][^>]*>([^<]*)</m[io]>", drawn) if "\\" in html.unescape(one)] == []


def test_every_option_has_a_row(site: tuple[Path, str]) -> None:
    drawn = page(site, "docs/options")
    for one in fields(Options):
        assert f">{one.name}<" in drawn and f"--{one.name.replace('_', '-')}" in drawn, one.name


def test_every_command_has_a_section(site: tuple[Path, str]) -> None:
    drawn = page(site, "docs/commands")
    for name in ("compile", "run", "verify", "rates", "eval ppl", "report"):
        assert f"<h2>tintc {name}<" in drawn, name
    assert drawn.count("--train-fraction") >= 3 and "--momentum" not in drawn


def test_the_reference_has_signatures_and_docstrings(site: tuple[Path, str]) -> None:
    drawn = page(site, "docs/api")
    for name in ("tintc.compile", "tintc.TintForCausalLM.forward", "tintc.AdaptedState.export", "tintc.masks.few_shot"):
        assert f'id="{name}"' in drawn, name
    assert "Compile a decoder into a TinT simulator." in drawn


def test_links_within_the_site_lead_somewhere(site: tuple[Path, str]) -> None:
    """Also to a place on a page, which Sphinx does not check where a link is HTML."""
    folder = site[0]
    ids: dict[Path, set[str]] = {}
    broken: list[str] = []
    for path in [*folder.glob("docs/**/*.html"), *folder.glob("*.html"), *folder.glob("benchmarks/*.html")]:
        for link in re.findall(r'href="([^"]+)"', path.read_text(encoding="utf-8")):
            place, _, anchor = html.unescape(link).partition("#")
            if ":" in place or link.startswith(("data:", "#")) or "_static" in place:
                continue
            target = (path.parent / place.partition("?")[0]).resolve()
            if not target.exists():
                broken.append(f"{path.name}: {link}")
            elif anchor and target.suffix == ".html":
                if target not in ids:
                    ids[target] = set(re.findall(r'\bid="([^"]+)"', target.read_text(encoding="utf-8")))
                if anchor not in ids[target]:
                    broken.append(f"{path.name}: {link}")
    assert broken == []
