"""docs/construction.md: the code cites sections that exist, and the worked example is what compiled blocks do. fp64."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tintc.ir.block_specs import AttentionSpec
from tintc.ir.layout import Layout
from tintc.ir.simulator.ops.linear_backward import backward_block
from tintc.ir.simulator.ops.linear_descent import descent_block
from tintc.ir.simulator.ops.linear_forward import forward_block
from tintc.ir.structure import StructuralBlock, block_tensors, shared_tensors
from tintc.runtime.execution.literal.attention import TintAttention
from tintc.runtime.execution.module_tree import refer_to

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "construction.md").read_text(encoding="utf-8")
CITATION = re.compile(r"construction\.md,\s+section\s+(\d+(?:\.\d+)*)")
SECTION = re.compile(r"\bsections?\s+\d")
PYTHON = sorted(path for folder in ("tintc", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


def headings() -> list[str]:
    return re.findall(r"^#{2,3} (\d+(?:\.\d+)*)\.? ", TEXT, re.MULTILINE)


def test_every_heading_has_an_anchor_of_its_own() -> None:
    anchors = re.findall(r'^<a id="section-([\d-]+)"></a>$', TEXT, re.MULTILINE)
    assert anchors == [number.replace(".", "-") for number in headings()]
    assert len(set(anchors)) == len(anchors)
    assert set(re.findall(r"\(#section-([\d-]+)\)", TEXT)) <= set(anchors)


def cited(text: str) -> str:
    """The text without comment signs, so that a citation may be broken over two lines."""
    return re.sub(r"\n\s*#?\s*", " ", text)


def test_cited_sections_exist() -> None:
    found = {number for path in PYTHON for number in CITATION.findall(cited(path.read_text(encoding="utf-8")))}
    assert len(found) > 5
    assert found <= set(headings())


@pytest.mark.parametrize("folder", ["tintc", "tests", "benchmarks"])
def test_no_section_is_cited_without_its_document(folder: str) -> None:
    """``section 3`` alone says nothing: which document?"""
    for path in PYTHON:
        if path.relative_to(ROOT).parts[0] == folder and path != Path(__file__):
            text = CITATION.sub("", cited(path.read_text(encoding="utf-8")))
            assert not SECTION.search(text), f"{path} cites a section of an unnamed document"


LAYOUT = Layout(d_aux=4, stack=2, shards=2, d_h=2, n_heads=6, max_length=1)
WEIGHT = torch.tensor([[1, 0, 2, 0], [0, 1, 0, 1], [3, 0, 0, 1], [0, 2, 1, 0]], dtype=torch.float64)
BIAS, X, DY = (torch.tensor(v, dtype=torch.float64) for v in ([1, 0, 0, 2], [1, 2, 3, 4], [1, 0, 2, 1]))


def embedding(*slots: Tensor) -> Tensor:
    """``[1, 3, 12]``: the example's two prefixes, and slots of the one token."""
    prefixes = torch.cat((WEIGHT.view(2, 8), torch.stack((BIAS, torch.zeros(4).double()))), 1)
    token = torch.cat((*slots, torch.zeros(12 - 4 * len(slots)).double()))
    return torch.cat((prefixes, token[None]))[None]


def run(block: StructuralBlock, e: Tensor, mask: Tensor | None = None) -> Tensor:
    """What the block gives before its gate, ``[3, 12]``."""
    assert isinstance(block.spec, AttentionSpec)
    module: Any = TintAttention(block.spec, LAYOUT.sim_seq_len).double()
    module.load_state_dict({name: spec.build() for name, spec in block_tensors(block.spec).items()})
    shared = shared_tensors(LAYOUT)
    matrices = {letter: getattr(block.spec, f"positions_{letter}") for letter in "qkv"}
    for letter, term in matrices.items():
        if term is not None:
            holder = nn.ParameterDict({"matrix": shared[f"positions.{term.kind}"].build()})
            module.references[f"p_{letter}"] = refer_to(holder, "matrix")
    with torch.no_grad():
        return module(e, torch.arange(3)[None], mask)[0]


def vector(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_the_worked_example_forward() -> None:
    y = run(forward_block(LAYOUT, bias=True), embedding(X))[2, :4]
    torch.testing.assert_close(y, vector([8, 6, 7, 9]), rtol=0, atol=0)
    assert "$y = (8, 6, 7, 9)$" in TEXT


def test_the_worked_example_backward() -> None:
    dx = run(backward_block(LAYOUT), embedding(DY))[2, :4]
    torch.testing.assert_close(dx, vector([7, 2, 3, 2]), rtol=0, atol=0)
    assert "$dx = (7, 2, 3, 2) = W^T dy$" in TEXT


def test_the_worked_example_descent() -> None:
    """The prefixes after a step of rate 0.1, as the document prints them; to the rounding of decimals."""
    e, mask = embedding(DY, X), torch.zeros(1, 3, 3, dtype=torch.float64)
    mask[:, :2, 2] = 1
    updated = (e[0] + 0.1 * run(descent_block(LAYOUT, main=True, bias=True), e, mask))[:2]
    printed = re.findall(r"^prefix [01] {8}([-0-9. |]+)$", TEXT, re.MULTILINE)
    shown = [vector([float(number) for number in row.replace("|", " ").split()]) for row in printed]
    torch.testing.assert_close(updated, torch.stack(shown), rtol=0, atol=1e-15)
    torch.testing.assert_close(updated[:, :8].reshape(4, 4), WEIGHT - 0.1 * torch.outer(DY, X), rtol=0, atol=1e-15)


SIMULATOR = ROOT / "tintc" / "ir" / "simulator"
TEMPLATES = sorted(
    path for path in (SIMULATOR / "ops").glob("*.py") if "def structure(" in path.read_text(encoding="utf-8")
)
VERBS = {"Add", "Check", "Count", "Emit", "Exchange", "Hand", "Note", "Raise", "Return", "Yield"}


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_every_template_proves_itself(path: Path) -> None:
    """An op that emits blocks says in its file what they compute, and why."""
    text = path.read_text(encoding="utf-8")
    assert "Claim: " in text and "QED" in text, f"{path} emits blocks without a claim"


@pytest.mark.parametrize("folder", ["ir", "lowering/rules", "lowering/emission", "analysis"])
def test_docstrings_of_functions_begin_with_a_verb(folder: str) -> None:
    """A clause ("Whether ...", "What ...") leaves the reader to find out what is returned."""
    for path in sorted((ROOT / "tintc" / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)):
                first = text.split()[0]
                assert first in VERBS, f"{path.name}, {node.name}: {first!r} is no verb of {', '.join(sorted(VERBS))}"


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.stem)
def test_links_of_the_documents_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []
