"""The page without a browser: it is well formed, needs nothing from outside, and says what the simulator is."""

from __future__ import annotations

import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from command import STORY, Command

import tintc
from tintc.ir.simulator import LinearDescent, LinearForward, SimOp, StoredWeights
from tintc.report.modules import short
from tintc.report.page import Page
from tintc.report.proofs import proof_of
from tintc.report.sections import sections_of

VOID = {"meta", "link", "br", "img", "input"}
LARGEST = 5_000_000


class Reader(HTMLParser):
    """Reads a page, and complains of tags that do not match."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing, line {self.getpos()[0]}"

    def handle_data(self, data: str) -> None:
        tag = self.open[-1] if self.open else ""
        self.texts[tag] = self.texts.get(tag, "") + data

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


@pytest.fixture(scope="module")
def read(page: Page) -> Reader:
    reader = Reader()
    reader.feed(page.html)
    reader.close()
    assert reader.open == [], "every element is closed"
    return reader


@pytest.fixture(scope="module")
def data(page: Page) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.html, re.DOTALL)
    return json.loads(text)


def test_it_needs_nothing_from_outside(page: Page, read: Reader) -> None:
    links = [value for name in ("src", "href", "xlink:href", "action") for value in read.values(name)]
    assert links and all(link.startswith(("#", "data:")) for link in links)
    assert "default-src 'none'" in page.html
    assert not re.findall(r"@import|url\((?!['\"]?(?:#|data:))", read.texts["style"])
    assert len(page.html.encode()) < LARGEST
    assert "$schema" not in page.html.partition('id="data">')[2].partition("</script>")[0]


def test_links_and_names_agree(read: Reader) -> None:
    names = read.values("id")
    assert len(names) == len(set(names))
    targets = [link[1:] for link in read.values("href") if link.startswith("#")]
    assert targets and set(targets) <= set(names)
    nodes = set(read.values("data-node"))
    assert nodes == {name.removeprefix("about-") for name in names if name.startswith("about-")}
    for list_of_figures in read.values("data-figures"):
        assert {f"figure-{name}" for name in list_of_figures.split()} <= set(names)


def test_every_figure_has_its_place_and_its_data(page: Page, read: Reader, data: dict[str, Any]) -> None:
    wanted = {"losses", "gains", "rates", "teaching", "gradients", "costs", "layouts", "against"}
    wanted |= {"against-rates", "against-gradients"}
    assert wanted <= set(data["figures"]) == set(page.figures)
    places = {name.removeprefix("figure-") for name in read.values("id") if name.startswith("figure-")}
    assert places == set(data["figures"])
    for name, spec in data["figures"].items():
        assert all(spec["datasets"].values()), name


def test_every_module_is_there_with_its_proof(llama_sim: Path, page: Page, read: Reader) -> None:
    program = tintc.load(llama_sim).program
    nodes = [node for section in sections_of(program) for node in section.nodes]
    shown = {op for node in nodes for ops in node.lanes.values() for op in ops}
    modules = [op for op in program.ops if isinstance(op, SimOp) and not isinstance(op, StoredWeights)]
    first = {op for op in modules if op.step == 0}
    assert shown == first, "of one layer and one step every module is drawn, and once"
    assert len(set(read.values("data-node"))) == len(nodes)
    plain = re.sub(r"\s+", " ", "".join(read.texts.values()))
    for kind in (LinearForward, LinearDescent):
        formula = proof_of(kind).formula
        assert formula in plain, formula
    assert "is the gradient of" in plain, "proofs are the templates' own"


def test_another_simulator_stands_beside_it(page: Page, data: dict[str, Any]) -> None:
    assert "n steps</td><td><code>1</code></td><td><code>2</code>" in page.html
    gradients = data["figures"]["against-gradients"]["datasets"]["rows"]
    assert gradients and all(abs(row["cosine"] - 1) < 1e-6 for row in gradients), "the first step is the same, in fp32"
    gains = data["figures"]["against"]["datasets"]["rows"]
    assert len({row["simulator"] for row in gains}) == 2


def test_simulators_of_other_vocabularies_are_refused(
    command: Command, llama_sim: Path, one_layer_sim: Path, tmp_path: Path
) -> None:
    shown = command("report", llama_sim, "--text", STORY, "--against", one_layer_sim, "-o", tmp_path / "page.html")
    assert shown.code == 2 and "reads this text as other tokens" in shown.err
    assert list(tmp_path.iterdir()) == []


def test_a_notebook_shows_a_small_one(llama_sim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without altair, and with nothing unescaped or unclosed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    sim = tintc.load(llama_sim)
    sim.config.provenance["source"] = "<b>name"
    reader = Reader()
    reader.feed(sim._repr_html_())
    reader.close()
    assert reader.open == [] and "<b>name" in reader.texts["td"]
    assert len(sim._repr_html_()) < 5000
    for line in repr(sim).splitlines()[1:-1]:
        assert line.partition(":")[0].strip() in reader.texts["th"]


def test_proofs_are_found_for_every_op() -> None:
    """An op's template says what it computes; what applies blocks also claims that they do."""
    from tintc.ir import simulator

    ops = [getattr(simulator, name) for name in simulator.__all__]
    kinds = [kind for kind in ops if isinstance(kind, type) and issubclass(kind, SimOp) and kind is not SimOp]
    assert len(kinds) > 20
    unclaimed = {kind.__name__ for kind in kinds if not proof_of(kind).claim}
    assert unclaimed <= {"Add", "Constant", "KeptWeights", "PositionEmbedding", "Repeat", "StoredWeights", "Zeros"}
    assert all("\n" not in proof_of(kind).formula for kind in kinds)


def test_values_have_short_names() -> None:
    assert short("model.layers.3.mlp.up_proj.f0") == "up_proj"
    assert short("model.layers.3.mlp.up_proj.g1") == "gradient from up_proj"
    assert short("tables.model.embed_tokens.weight") == "embed_tokens"


def test_the_command(command: Command, llama_sim: Path, tmp_path: Path) -> None:
    page, images = tmp_path / "page.html", tmp_path / "images"
    shown = command("report", llama_sim, "--text", STORY, "-o", page, "--png", images, "--json").json
    assert shown["output"] == str(page) and shown["bytes"] == page.stat().st_size < LARGEST
    assert shown["tokens"] > shown["train_tokens"] > 0 and shown["loss_before"] != shown["loss_after"]
    files = sorted(images.iterdir())
    assert sorted(shown["images"]) == [str(file) for file in files] and len(files) >= 5
    assert all(file.read_bytes().startswith(b"\x89PNG\r\n") for file in files)
    assert "How good its gradient is" not in page.read_text(), "that needs the model"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["images", "page.html"]


MISTAKES = {
    "a folder": (("-o", "{there}"), "it must be a file in a folder that exists"),
    "no such folder": (("-o", "{there}/no/page.html"), "it must be a file in a folder that exists"),
    "two texts": (("--text", "a cat", "--file", "b.txt"), "either with --text or with --file"),
    "a short text": (("--text", "cat"), "pass at least"),
    "images into a file": (("--text", STORY, "--png", "{there}/taken"), "it must be a folder"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_a_sentence(command: Command, llama_sim: Path, tmp_path: Path, mistake: str) -> None:
    arguments, words = MISTAKES[mistake]
    (tmp_path / "taken").write_text("")
    given = [argument.format(there=tmp_path) for argument in arguments]
    if "-o" not in given:
        given += ["-o", str(tmp_path / "page.html")]
    shown = command("report", llama_sim, *given)
    assert shown.code == 2 and words in shown.err and shown.err.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]


def test_without_the_packages(command: Command, llama_sim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    shown = command("report", llama_sim)
    assert shown.code == 2 and shown.err.count("\n") == 1
    assert "pip install '.[report]'" in shown.err
