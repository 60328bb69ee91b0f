"""What docs/adding-an-op.md and docs/own-decoders.md show of the code is the code, and what they add to it works."""

from __future__ import annotations

import ast
import textwrap
from dataclasses import replace
from typing import Any

from command import ROOT
from pages import blocks, text_of
from programs import Sketch

from tintc.ir.auxiliary import Add, Scale
from tintc.ir.core import Op, Program

PAGE = "docs/adding-an-op.md"
FILES = (
    "tintc/ir/auxiliary/elementwise.py",
    "tintc/frontend/rules/arithmetic.py",
    "tintc/ir/simulator/ops/scale.py",
    "tintc/lowering/rules/elementwise.py",
)


def parts(text: str) -> set[str]:
    """Every statement of a source that is not made of others, and the first line of every function and class."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(textwrap.dedent(text))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            node.body = [ast.Pass()]
            found.add(ast.unparse(node))
        elif isinstance(node, ast.stmt) and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            found.add(ast.unparse(node))
    return found


def statements(text: str) -> set[str]:
    """The same, where the bodies of functions count as well."""
    tree = ast.parse(textwrap.dedent(text))
    inner = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    simple = [node for node in inner if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Expr)]
    return {ast.unparse(node) for node in simple} | parts(text)


def python_blocks() -> list[str]:
    return [text for language, text in blocks(PAGE) if language == "python"]


def test_excerpts_are_the_code() -> None:
    code = set().union(*(statements((ROOT / file).read_text(encoding="utf-8")) for file in FILES))
    *excerpts, _ = python_blocks()
    assert len(excerpts) == 5
    for text in excerpts:
        shown = statements(text)
        assert shown and shown <= code, sorted(shown - code)


def test_other_code_is_noticed() -> None:
    code = set().union(*(statements((ROOT / file).read_text(encoding="utf-8")) for file in FILES))
    assert not statements("def evaluate(self, context: Context, x: Tensor) -> Tensor:\n    return 2 * x") <= code


def test_the_module_of_ones_own_is_the_tested_one() -> None:
    _, _, source = (ROOT / "tests" / "nano_gpt.py").read_text(encoding="utf-8").partition("annotations\n\n")
    assert source and source in text_of("docs/own-decoders.md")


def test_its_pass_merges_doubles() -> None:
    names: dict[str, Any] = {"Op": Op, "Add": Add, "Scale": Scale, "Program": Program, "replace": replace}
    exec(compile(python_blocks()[-1], PAGE, "exec"), names)
    make = Sketch(12)
    x = make.embedding("wte", 11)
    x = make.sum("doubled", x, x)
    program, _ = make.finish(make.norm("lnf", x, "final"), 11, 1)
    merged = names["merge_doubles"](program)
    kinds = [type(op) for op in merged.ops]
    assert Scale in kinds and Add not in kinds and Add in [type(op) for op in program.ops]
