"""Lowering rules: one for every auxiliary op, and no list of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tintc.ir import auxiliary as aux
from tintc.ir.text import parse_program
from tintc.lowering import rules
from tintc.lowering.passes.differentiate import differentiate
from tintc.lowering.rules.base import RULES
from tintc.options import Options

PRODUCT = """aux.program {n_layers=1, vocab_size=4, width=2}

parameter @e {source="e"} : 4x2

%x = aux.embedding() {table="e"} : tokens<2>
%y = aux.multiply(%x, %x) {} : tokens<2>
%z = aux.logits(%y) {weight="e"} : logits<4>

return logits = %z
"""


def test_every_op_has_a_rule_and_every_file_holds_some() -> None:
    files = {file.stem for file in Path(rules.__file__).parent.glob("*.py")} - {"__init__", "base", "sweep"}
    assert {f"{rules.__name__}.{name}" for name in files} == {type(rule).__module__ for rule in RULES.values()}
    ops = {kind for kind in vars(aux).values() if isinstance(kind, type) and issubclass(kind, aux.AuxOp)}
    assert ops - set(RULES) == {aux.AuxOp, aux.Concat, aux.Multiply}, "canonicalisation removes these"


def test_ops_without_a_rule_are_named() -> None:
    with pytest.raises(NotImplementedError, match=r"aux\.multiply has no simulator module; canonicalise first"):
        differentiate(parse_program(PRODUCT), Options())
