"""Programs as text: printing and parsing are inverses, and what does not parse says where."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import gpt_like, llama_like

from tintc.errors import IRError
from tintc.ir import auxiliary as aux
from tintc.ir import simulator as sim
from tintc.ir.core import Block, Op, Parameter, Program, Type, Value, logits, tokens
from tintc.ir.text import parse_program, print_program
from tintc.lowering.passes.differentiate import differentiate
from tintc.lowering.passes.unroll_steps import unroll_steps
from tintc.options import Options

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.\-]{0,12}", fullmatch=True)
FLOATS = st.floats(allow_nan=False, allow_infinity=False, min_value=1e-300, max_value=1e300)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(1 - 10**18, 10**18 - 1) | FLOATS | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
QUICK = settings(max_examples=60, deadline=None, derandomize=True)


def tree(ops: list[Op]) -> list[object]:
    """What a list of ops says, values by name and type."""
    found: list[object] = []
    for op in ops:
        body = getattr(op, "body", None)
        values = [[(v.name, v.type) for v in vs] for vs in (op.operands, op.results)]
        nested = (tree(body.ops), [v.name for v in body.arguments], [v.name for v in body.yields]) if body else None
        found.append((op.opname, op.attributes(), values, nested))
    return found


def round_trip(program: Program) -> None:
    text = print_program(program)
    again = parse_program(text)
    assert print_program(again) == text
    assert again.attributes == json.loads(json.dumps(program.attributes)) and again.parameters == program.parameters
    assert tree(again.ops) == tree(program.ops)
    assert {k: v.name for k, v in again.outputs.items()} == {k: v.name for k, v in program.outputs.items()}


@st.composite
def auxiliary_programs(draw: st.DrawFn) -> Program:
    """Ops in a chain, with attributes of any value their type allows."""
    width = draw(st.integers(1, 9))
    names = draw(st.lists(NAMES, min_size=6, max_size=6, unique=True))
    rows = draw(st.none() | st.just(((0, 1), (2, 5))))
    parameters = {n: Parameter(draw(st.text(max_size=9)), (width, 7), draw(st.booleans()), rows) for n in names[:2]}
    values = [Value(name, tokens(width)) for name in names]
    layer, role = draw(st.integers(-1, 99)), draw(st.text(max_size=6))
    ops: list[Op] = [
        aux.Embedding(results=(values[0],), table=draw(st.text(max_size=9)), layer=layer, role=role),
        aux.Activation(operands=(values[0],), results=(values[1],), fn=draw(st.sampled_from(["relu", "silu"]))),
        aux.Norm(operands=(values[1],), results=(values[2],), kind="rms", eps=draw(FLOATS), weight=names[0]),
        aux.Add(operands=(values[0], values[2]), results=(values[3],)),
        aux.Select(operands=(values[3],), results=(values[4],), columns=((0, width),)),
    ]
    z = Value(names[5], logits(draw(st.integers(1, 99))))
    ops.append(aux.Logits(operands=(values[4],), results=(z,), weight=names[1]))
    attributes = draw(st.dictionaries(st.from_regex(r"[a-z_]{1,6}", fullmatch=True), JSON, max_size=3))
    return Program("aux", attributes, parameters, ops, {"logits": z}).verify()


@QUICK
@given(auxiliary_programs())
def test_auxiliary_round_trip(program: Program) -> None:
    round_trip(program)


@QUICK
@given(
    st.lists(NAMES, min_size=7, max_size=7, unique=True),
    st.integers(1, 9),
    st.floats(0.1, 9),
    st.sampled_from(["", "bias3"]),
)
def test_simulator_round_trip_with_a_repeat(names: list[str], count: int, scale: float, part: str) -> None:
    kind = Type("linear", (3, 4), (part,) if part else ())
    x, dy = Value(names[0], tokens(4)), Value(names[1], tokens(3))
    w, argument, inner, out = (Value(name, kind) for name in names[2:6])
    attributes = {"target": names[6], "rate_scale": scale, "tiles": (1, 2), "phase": "descent"}
    descent = sim.LinearDescent(operands=(argument, dy, x), results=(inner,), **attributes)
    body = Block((argument,), [descent], (inner,))
    ops: list[Op] = [
        sim.Embedding(results=(x,), table="x", write=((0,),)),
        sim.Embedding(results=(dy,), table="dy"),
        sim.StoredWeights(results=(w,), name=names[6]),
        sim.Repeat(operands=(w,), results=(out,), count=count, body=body),
    ]
    round_trip(Program("sim", {"width": 4}, {}, ops, {"w": out}).verify())


@pytest.mark.parametrize("make", [gpt_like, llama_like])
@pytest.mark.parametrize("semantics", ["exact", "paper-code"])
def test_lowered_programs_round_trip(make: type, semantics: str) -> None:
    program, _ = make()
    round_trip(program)
    simulated = differentiate(program, Options(n_steps=2, semantics=semantics))
    round_trip(simulated)
    round_trip(unroll_steps(simulated))


TEXT = """aux.program {width=4}

parameter @e {source="e"} : 5x4

%x = aux.embedding() {table="e"} : tokens<4>
%y = aux.activation(%x) {fn="relu"} : tokens<4>  // a comment

return y = %y
"""


def test_strings_may_hold_what_looks_like_syntax() -> None:
    for name in ("a//b", 'quote " and // slashes', "brace } : tokens<3>", "back\\slash", "line\nbreak\u2028", ""):
        x = Value("x", tokens(4))
        round_trip(Program("aux", {"note": name}, {}, [aux.Embedding(results=(x,), table=name)], {"x": x}).verify())


def test_comments_and_empty_lines_are_skipped() -> None:
    program = parse_program(TEXT)
    assert [op.opname for op in program.ops] == ["aux.embedding", "aux.activation"]


@pytest.mark.parametrize(
    ("old", "new", "line", "why"),
    [
        ("aux.program {width=4}", "program", 1, "starts with"),
        ("{width=4}", "{width=four}", 1, "not JSON"),
        ("{width=4}", "{width=4,b=1}", 1, "separated by"),
        (" : 5x4", "", 3, "parameter @name"),
        ('{source="e"}', '{from="e"}', 3, "'source'"),
        ("aux.embedding", "aux.embeding", 5, "there is no op 'aux.embeding'"),
        (' {table="e"}', "", 5, "missing attributes ['table']"),
        ('{table="e"}', '{table="e", size=3}', 5, "unknown attributes ['size']"),
        ('{table="e"}', '{table=["e"]}', 5, "'table' must be of type str"),
        ('{table="e"}', '{table="e", layer="top"}', 5, "'layer' must be of type int"),
        ("(%x)", "(%z)", 6, "%z is not defined"),
        ("%y = aux", "%y, %z = aux", 6, "2 results but 1 types"),
        ("{fn=", "fn=", 6, "after the operands"),
        ("return y = %y", "return y = %z", 8, "return label"),
        ("return y = %y", "return y = %y\nwhat", 9, "unexpected text"),
    ],
)
def test_parse_errors_name_the_line(old: str, new: str, line: int, why: str) -> None:
    assert old in TEXT
    with pytest.raises(IRError, match=f"line {line}: ") as caught:
        parse_program(TEXT.replace(old, new, 1))
    assert why in str(caught.value)


def junk(row: tuple[str, str, str]) -> str:
    return row[1][:40]


JUNK = [
    # Types: every character of the list is read.
    ('"relu"} : tokens<4>', '"relu"} : tokens<4> oops>', "types are separated by ', '"),
    ('"relu"} : tokens<4>', '"relu"} : tokens<4>, junk>', "expected a type"),
    ('"relu"} : tokens<4>', '"relu"} : tokens<4>, , tokens<4>', "expected a type"),
    ('"relu"} : tokens<4>', '"relu"} : tokens<4>tokens<4>', "types are separated by ', '"),
    ('"relu"} : tokens<4>', '"relu"} : tokens<4,bias>', "expected a type"),
    ('"relu"} : tokens<4>', '"relu"} : tokens<4x>', "expected a type"),
    ('"relu"} : tokens<4>', '"relu"} : tokens<-4>', "expected a type"),
    ('"relu"} : tokens<4>', '"relu"} : words<4>', "expected a type"),
    ('"relu"} : tokens<4>', '"relu"} : tokens<٤>', "expected a type"),
    ('"relu"} : tokens<4>', f'"relu"}} : tokens<{"4" * 5000}>', "expected a type"),
    (" : 5x4", f" : {'5' * 5000}x4", "parameter @name"),
    # Values.
    ("(%x)", "(%x, )", "expected '%result"),
    ("(%x)", "(x)", "expected '%result"),
    ("(%x)", "(%x %x)", "expected '%result"),
    ("(%x)", "(%x,, %x)", "expected '%result"),
    # Attributes.
    ('{fn="relu"}', '{fn="relu", }', "attributes read"),
    ('{fn="relu"}', '{fn="relu", fn="silu"}', "'fn' stands there twice"),
    ('{fn="relu"}', '{fn="relu", layer=true}', "'layer' must be of type int"),
    ('{fn="relu"}', f'{{fn="relu", layer={"1" * 5000}}}', "not finite, or of over 18 digits"),
    ('{fn="relu"}', f"{{fn={'[' * 100000}}}", "nests more than 8"),
    ("{width=4}", f"{{width={'[' * 9}{']' * 9}}}", "nests more than 8"),
    ("{width=4}", "{width=NaN}", "not finite"),
    ("{width=4}", "{width=-Infinity}", "not finite"),
    ("{width=4}", "{width=1e999}", "not finite"),
    # Parameters and outputs.
    ('{source="e"}', "{source=3}", "is a string"),
    ('{source="e"}', '{source="e", transpose=1}', "true or false"),
    ('{source="e"}', '{source="e", rows=[[0]]}', "runs [start, stop]"),
    (" : 5x4", ' : 5x4\nparameter @e {source="e"} : 5x4', "@e stands there twice"),
    ("return y = %y", "return y = %y\nreturn y = %x", "'y' stands there twice"),
]


@pytest.mark.parametrize(("old", "new", "why"), JUNK, ids=map(junk, JUNK))
def test_junk_is_refused_in_a_sentence(old: str, new: str, why: str) -> None:
    """A text that users edit is read whole: nothing in it is skipped, and nothing in it is too large to be said."""
    assert old in TEXT
    with pytest.raises(IRError, match="line ") as caught:
        parse_program(TEXT.replace(old, new, 1))
    assert why in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("columns", "fits"),
    [
        ("[[0, 4]]", True),
        ("[[0, 4.0]]", False),
        ("[0, 4]", False),
        ("[[[0], 4]]", False),
        ("[[0, 2, 2]]", True),
        ('[["0", 4]]', False),
    ],
)
def test_lists_hold_what_their_field_says(columns: str, fits: bool) -> None:
    text = TEXT.replace('aux.activation(%x) {fn="relu"}', f"aux.select(%x) {{columns={columns}}}")
    if fits:
        parse_program(text)
    else:
        with pytest.raises(IRError, match="'columns' must be of type tuple"):
            parse_program(text)


REPEAT = """sim.program {}

%w = sim.weights() {name="a"} : norm<4, gain>
%out = sim.repeat(%w) {count=2} : norm<4, gain>
(%arg) {
  yield %arg
}

return w = %out
"""


def test_a_block_parses() -> None:
    assert print_program(parse_program(REPEAT)) == REPEAT.replace("sim.program {}", "sim.program {}")


@pytest.mark.parametrize(
    ("old", "new", "line", "why"),
    [
        ("(%arg) {", "%arg {", 5, "(%argument, ...) {"),
        ("(%arg) {", "(%arg, %b) {", 5, "1 operands but 2 block arguments"),
        ("yield %arg", "yield %none", 6, "%none is not defined"),
        ("  yield %arg\n", "", 6, "a block ends in"),
        ("}\n\nreturn", "return", 7, "expected '}'"),
    ],
)
def test_block_errors_name_the_line(old: str, new: str, line: int, why: str) -> None:
    assert old in REPEAT
    with pytest.raises(IRError, match=f"line {line}: ") as caught:
        parse_program(REPEAT.replace(old, new, 1))
    assert why in str(caught.value)
