"""Canonical form: each rule on a few lines of text."""

from __future__ import annotations

import pytest
import torch
from tiny_models import token_ids

from tintc.errors import UnsupportedModelError
from tintc.ir.auxiliary.interpreter import forward, load
from tintc.ir.columns import compose
from tintc.ir.inputs import resolve_inputs
from tintc.ir.text import parse_program, print_program
from tintc.lowering.passes.assign_layers import assign_layers
from tintc.lowering.passes.canonicalise import canonicalise


def program(body: str, parameters: str = "") -> str:
    """A program with embedding ``%x`` of width 8, a body that defines ``%y`` of width 8, and a head."""
    return f"""aux.program {{width=8, vocab_size=5}}
parameter @embed {{source="embed"}} : 5x8
parameter @head {{source="head"}} : 5x8
{parameters}
%x = aux.embedding() {{table="embed"}} : tokens<8>
{body}
%z = aux.linear(%y) {{weight="head"}} : tokens<5>
return logits = %z
"""


FUSED = 'parameter @l.w {source="l.w", transpose=true} : 24x8\nparameter @l.b {source="l.b"} : 24'
GATE = 'parameter @l.w {source="l.w"} : 16x8'
SPLIT = '%p = aux.linear(%x) {weight="l.w"} : tokens<16>\n'


def canonical(text: str) -> str:
    """The canonical text, after checking that it computes the same."""
    before = parse_program(text)
    after = canonicalise(before)
    assert print_program(before) == print_program(parse_program(text))
    torch.manual_seed(0)
    sources = {p.source: torch.randn(p.shape[::-1] if p.transpose else p.shape) for p in before.parameters.values()}
    inputs = resolve_inputs(token_ids(2, 6, 5))
    expected = forward(before, load(before, sources), inputs)
    torch.testing.assert_close(forward(after, load(after, sources), inputs), expected, rtol=1e-12, atol=1e-12)
    return print_program(after)


def roles_of(text: str) -> dict[str, str]:
    """Role of every op, by its weight."""
    ops = [op.attributes() for op in assign_layers(parse_program(text)).ops]
    return {op.get("weight", ""): op.get("role", "") for op in ops}


def test_heads_of_two_layers_are_a_sum_of_both_with_zero_rows() -> None:
    """Keys as multi-head latent attention makes them: their last column is one head's, which all share."""
    parameters = 'parameter @a.w {source="a.w"} : 14x8\nparameter @b.w {source="b.w"} : 9x8'
    body = """%a = aux.linear(%x) {weight="a.w"} : tokens<14>
%b = aux.linear(%x) {weight="b.w"} : tokens<9>
%q = aux.select(%b) {columns=[[0, 8]]} : tokens<8>
%both = aux.concat(%a, %b) : tokens<23>
%k = aux.select(%both) {columns=[[0, 3], [22, 23], [3, 6], [22, 23]]} : tokens<8>
%v = aux.select(%a) {columns=[[6, 14]]} : tokens<8>
%y = aux.attention(%q, %k, %v) {n_heads=2, n_kv_heads=2, head_dim=4, scale=0.5} : tokens<8>"""
    text = canonical(program(body, parameters))
    assert 'parameter @a.k.w {source="a.w", rows=[[0, 3], [-1, 0], [3, 6], [-1, 0]]} : 8x8' in text
    assert 'parameter @b.k.w {source="b.w", rows=[[-3, 0], [8, 9], [-3, 0], [8, 9]]} : 8x8' in text
    roles = roles_of(text)
    assert roles["a.k.w"] == roles["b.k.w"] == "key" and roles["a.v.w"] == "value" and roles["b.q.w"] == "query"


def test_one_head_of_two_layers() -> None:
    body = """%a = aux.linear(%x) {weight="a.w"} : tokens<3>
%b = aux.linear(%x) {weight="b.w"} : tokens<5>
%k = aux.concat(%a, %b) : tokens<8>
%y = aux.attention(%x, %k, %x) {n_heads=1, n_kv_heads=1, head_dim=8, scale=0.5} : tokens<8>"""
    text = canonical(program(body, 'parameter @a.w {source="a.w"} : 3x8\nparameter @b.w {source="b.w"} : 5x8'))
    assert 'parameter @a.k.w {source="a.w", rows=[[0, 3], [-5, 0]]} : 8x8' in text


def test_a_row_that_descends_belongs_to_one_layer() -> None:
    body = (
        SPLIT
        + """%k = aux.select(%p) {columns=[[0, 8]]} : tokens<8>
%v = aux.select(%p) {columns=[[7, 15]]} : tokens<8>
%y = aux.attention(%x, %k, %v) {n_heads=2, n_kv_heads=2, head_dim=4, scale=0.5} : tokens<8>"""
    )
    text = canonical(program(body, GATE))
    assert 'parameter @l.rows.w {source="l.w", rows=[[0, 15]]} : 15x8' in text
    assert (
        "%k = aux.select(%k.rows) {columns=[[0, 8]]}" in text and "%v = aux.select(%k.rows) {columns=[[7, 15]]}" in text
    )
    assert roles_of(text)["l.rows.w"] == "value"


def test_rows_taken_twice_belong_to_one_layer() -> None:
    body = (
        SPLIT
        + """%a = aux.select(%p) {columns=[[12, 16], [12, 16]]} : tokens<8>
%b = aux.select(%p) {columns=[[4, 8], [-4, 0]]} : tokens<8>
%y = aux.add(%a, %b) : tokens<8>"""
    )
    text = canonical(program(body, GATE))
    assert 'parameter @l.rows2.w {source="l.w", rows=[[12, 16]]} : 4x8' in text
    assert "%a = aux.select(%a.rows) {columns=[[0, 4, 2]]}" in text
    assert 'parameter @l.rows.w {source="l.w", rows=[[4, 8]]} : 4x8' in text, "rows of zeros must not descend"
    assert "%b = aux.select(%b.rows) {columns=[[0, 4], [-4, 0]]}" in text


def test_what_makes_queries_and_keys_is_stored_once_for_the_full_gradient() -> None:
    """A key of one head that all heads read, and zeros beside another's."""
    body = (
        SPLIT
        + """%k = aux.select(%p) {columns=[[0, 4], [0, 4]]} : tokens<8>
%q = aux.select(%p) {columns=[[4, 8], [-4, 0]]} : tokens<8>
%y = aux.attention(%q, %k, %x) {n_heads=2, n_kv_heads=2, head_dim=4, scale=0.5} : tokens<8>"""
    )
    before = parse_program(program(body, GATE))
    paper, full = (print_program(canonicalise(before, full)) for full in (False, True))
    assert "rows=[[0, 4], [0, 4]]} : 8x8" in paper and "rows=[[4, 8], [-4, 0]]} : 8x8" in paper
    assert "rows=[[0, 4]]} : 4x8" in full and "rows=[[4, 8]]} : 4x8" in full and full.count("aux.select") == 2


def test_selects_of_a_projection_become_layers_named_after_what_they_feed() -> None:
    body = """%p = aux.linear(%x) {weight="l.w", bias="l.b"} : tokens<24>
%q = aux.select(%p) {columns=[[0, 8]]} : tokens<8>
%k = aux.select(%p) {columns=[[8, 12], [20, 24]]} : tokens<8>
%v = aux.select(%p) {columns=[[12, 20]]} : tokens<8>
%y = aux.attention(%q, %k, %v) {n_heads=2, n_kv_heads=2, head_dim=4, scale=0.5} : tokens<8>"""
    text = canonical(program(body, FUSED))
    assert 'parameter @l.q.w {source="l.w", transpose=true, rows=[[0, 8]]} : 8x8' in text
    assert 'parameter @l.k.w {source="l.w", transpose=true, rows=[[8, 12], [20, 24]]} : 8x8' in text
    assert '%v = aux.linear(%x) {weight="l.v.w", bias="l.v.b"} : tokens<8>' in text
    assert "select" not in text and "@l.w" not in text


def test_fused_gate_and_nested_selects() -> None:
    body = (
        SPLIT
        + """%all = aux.select(%p) {columns=[[0, 16]]} : tokens<16>
%u = aux.select(%all) {columns=[[0, 8]]} : tokens<8>
%g = aux.select(%all) {columns=[[8, 16]]} : tokens<8>
%a = aux.activation(%u) {fn="silu"} : tokens<8>
%y = aux.multiply(%a, %g) : tokens<8>"""
    )
    text = canonical(program(body, GATE))
    assert '%y = aux.gate(%g, %u) {fn="silu"} : tokens<8>' in text
    assert 'parameter @l.up.w {source="l.w", rows=[[8, 16]]}' in text
    assert 'parameter @l.gate.w {source="l.w", rows=[[0, 8]]}' in text


def test_products_of_all_kinds_are_gates() -> None:
    square = canonical(program("%y = aux.multiply(%x, %x) : tokens<8>", GATE))
    assert '%y = aux.gate(%x, %x) {fn="identity"} : tokens<8>' in square
    activated = '%a = aux.activation(%x) {{fn="{}"}} : tokens<8>\n%b = aux.multiply(%a, %x) : tokens<8>\n'
    twice = canonical(program(activated.format("relu") + "%y = aux.add(%a, %b) : tokens<8>", GATE))
    assert '%b = aux.gate(%a, %x) {fn="identity"} : tokens<8>' in twice
    gated = canonical(program(activated.format("sigmoid") + "%y = aux.add(%b, %x) : tokens<8>", GATE))
    assert '%b = aux.gate(%x, %x) {fn="sigmoid"} : tokens<8>' in gated


def test_other_parts_are_numbered() -> None:
    body = (
        SPLIT
        + """%b = aux.select(%p) {columns=[[8, 16]]} : tokens<8>
%a = aux.select(%p) {columns=[[0, 8]]} : tokens<8>
%y = aux.add(%b, %a) : tokens<8>"""
    )
    text = canonical(program(body, GATE))
    assert 'parameter @l.part0.w {source="l.w", rows=[[0, 8]]}' in text


def test_dead_code_goes_and_the_head_is_named() -> None:
    text = canonical(program(SPLIT + "%y = aux.add(%x, %x) : tokens<8>", GATE))
    assert "l.w" not in text and '%z = aux.logits(%y) {weight="head"} : logits<5>' in text


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('%y = aux.activation(%x) {fn="sigmoid"} : tokens<8>', "only as a factor"),
    ],
)  # fmt: skip
def test_what_remains_is_refused(body: str, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        canonicalise(parse_program(program(body, GATE)))


def test_compose_counts_runs_within_runs() -> None:
    assert compose(((10, 14), (20, 26)), ((2, 6),)) == ((12, 14), (20, 22))
    assert compose(((0, 4), (4, 8)), ((0, 8),)) == ((0, 8),)
    assert compose(((3, 5),), ((1, 2, 6), (-1, 0))) == ((4, 5, 6), (-1, 0))
    assert compose(((3, 4, 6),), ((0, 2), (2, 5))) == ((3, 4, 5),)
