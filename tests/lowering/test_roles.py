"""Layers and roles from structure alone, on graphs in which no name says anything."""

from __future__ import annotations

import pytest

from tintc.errors import UnsupportedModelError
from tintc.ir.auxiliary import AuxOp
from tintc.ir.text import parse_program
from tintc.lowering.passes.assign_layers import assign_layers


class Text:
    """Builds a program of width 8 line by line, every value and parameter named by a number."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.parameters = ['parameter @t {source="t"} : 5x8', 'parameter @w {source="w"} : 8x8']

    def op(self, name: str, *operands: str, attributes: str = "", type_: str = "tokens<8>") -> str:
        result = f"%{len(self.lines)}"
        shown = f" {{{attributes}}}" if attributes else ""
        self.lines.append(f"{result} = aux.{name}({', '.join(operands)}){shown} : {type_}")
        return result

    def embed(self) -> str:
        return self.op("embedding", attributes='table="t"')

    def linear(self, x: str) -> str:
        return self.op("linear", x, attributes='weight="w"')

    def norm(self, x: str) -> str:
        return self.op("norm", x, attributes='kind="rms", eps=1e-05')

    def attention(self, q: str, k: str, v: str) -> str:
        return self.op("attention", q, k, v, attributes="n_heads=2, n_kv_heads=2, head_dim=4, scale=0.5")

    def self_attention(self, x: str) -> str:
        return self.linear(self.attention(self.linear(x), self.linear(x), self.linear(x)))

    def mlp(self, x: str) -> str:
        return self.linear(self.op("activation", self.linear(x), attributes='fn="relu"'))

    def add(self, a: str, b: str) -> str:
        return self.op("add", a, b)

    def roles(self, x: str) -> list[tuple[str, int, str]]:
        """(op, layer, role) of every op in the program that ends in a head on x."""
        head = self.op("logits", x, attributes='weight="t"', type_="logits<5>")
        body = "\n".join(["aux.program {}", *self.parameters, *self.lines, f"return logits = {head}"])
        program = assign_layers(parse_program(body))
        found = [op for op in program.ops if isinstance(op, AuxOp)]
        return [(op.opname.removeprefix("aux."), op.layer, op.role) for op in found]


ATTENTION = [("linear", "query"), ("linear", "key"), ("linear", "value"), ("attention", ""), ("linear", "output")]
FFN = [("linear", "ffn"), ("activation", ""), ("linear", "ffn")]
NORM, ADD = ("norm", "layer"), ("add", "")


def in_layer(layer: int, *ops: tuple[str, str]) -> list[tuple[str, int, str]]:
    return [(name, layer, role) for name, role in ops]


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_pre_norm(n_layers: int) -> None:
    t = Text()
    x = t.embed()
    for _ in range(n_layers):
        x = t.add(x, t.self_attention(t.norm(x)))
        x = t.add(x, t.mlp(t.norm(x)))
    layers = [entry for i in range(n_layers) for entry in in_layer(i, NORM, *ATTENTION, ADD, NORM, *FFN, ADD)]
    ends = [("norm", -1, "final"), ("logits", -1, "")]
    assert t.roles(t.norm(x)) == [("embedding", -1, ""), *layers, *ends]


def test_post_norm_has_no_final_norm() -> None:
    t = Text()
    x = t.norm(t.embed())
    for _ in range(2):
        x = t.norm(t.add(x, t.self_attention(x)))
        x = t.norm(t.add(x, t.mlp(x)))
    layers = [entry for i in range(2) for entry in in_layer(i, *ATTENTION, ADD, NORM, *FFN, ADD, NORM)]
    assert t.roles(x) == [("embedding", -1, ""), ("norm", -1, "embedding"), *layers, ("logits", -1, "")]


def test_parallel_residual() -> None:
    t = Text()
    x = t.embed()
    for _ in range(2):
        y = t.norm(x)
        x = t.add(t.add(t.self_attention(y), t.mlp(y)), x)
    layers = [entry for i in range(2) for entry in in_layer(i, NORM, *ATTENTION, *FFN, ADD, ADD)]
    assert t.roles(t.norm(x))[1:-2] == layers


def test_sandwich_and_query_key_norms() -> None:
    t = Text()
    x = t.embed()
    for _ in range(2):
        y = t.norm(x)
        attended = t.attention(t.norm(t.linear(y)), t.norm(t.linear(y)), t.linear(y))
        x = t.add(x, t.norm(t.linear(t.norm(attended))))
        x = t.add(x, t.norm(t.mlp(t.norm(x))))
    first = [role for name, layer, role in t.roles(t.norm(x)) if layer == 0 and name in ("norm", "linear")]
    assert first == [
        "layer",
        "query",
        "qk",
        "key",
        "qk",
        "value",
        "layer",
        "output",
        *["layer"] * 2,
        *["ffn"] * 2,
        "layer",
    ]


def test_projections_outside_the_layers() -> None:
    t = Text()
    x = t.linear(t.embed())
    for _ in range(2):
        x = t.add(x, t.self_attention(t.norm(x)))
        x = t.add(x, t.mlp(t.norm(x)))
    found = t.roles(t.linear(x))
    assert found[1] == ("linear", -1, "projection") and found[-2] == ("linear", -1, "projection")
    assert {layer for _, layer, _ in found[2:-2]} == {0, 1}


def test_attentions_side_by_side_are_of_one_layer() -> None:
    t = Text()
    x = t.embed()
    for _ in range(2):
        x = t.add(x, t.add(t.self_attention(t.norm(x)), t.self_attention(t.norm(x))))
        x = t.add(x, t.mlp(t.norm(x)))
    found = t.roles(t.norm(x))
    assert [role for kind, layer, role in found if kind == "linear" and layer == 1] == [
        *["query", "key", "value", "output"] * 2,
        *["ffn"] * 2,
    ]


def test_attentions_that_form_no_chain_are_refused() -> None:
    t = Text()
    x = t.embed()
    towers = [t.add(x, t.self_attention(t.norm(x))) for _ in range(2)]
    once, twice = (t.add(tower, t.self_attention(t.norm(tower))) for tower in towers)
    with pytest.raises(UnsupportedModelError, match="chain"):
        t.roles(t.add(once, twice))


def test_layers_run_again_beside_a_slower_state() -> None:
    """z = f(z + s) twice, then s = g(s + z), and all of it again (recurrence in two cycles)."""
    t = Text()
    state = t.embed()
    z = state
    for _ in range(2):
        for _ in range(2):
            z = t.add(z, state)
            z = t.norm(t.add(z, t.self_attention(t.norm(z))))
        state = t.add(state, z)
        state = t.norm(t.add(state, t.self_attention(t.norm(state))))
    found = t.roles(state)
    assert [layer for _, layer, role in found if role == "output"] == list(range(6))
    assert [layer for _, layer, role in found if role == "layer"] == sorted(2 * list(range(6)))[:-1]


def test_what_serves_several_layers_is_of_none() -> None:
    t = Text()
    x = t.embed()
    shared = t.linear(x)
    for _ in range(2):
        x = t.add(x, t.self_attention(t.norm(x)))
        x = t.add(x, t.linear(t.add(t.linear(x), shared)))
    found = t.roles(t.norm(x))
    assert found[1] == ("linear", -1, "projection")
    assert [layer for _, layer, role in found if role == "ffn"] == [0, 0, 1, 1]


def test_a_decoder_without_attention_is_refused() -> None:
    t = Text()
    with pytest.raises(UnsupportedModelError, match="at least one"):
        t.roles(t.mlp(t.embed()))


def test_one_layer_for_keys_and_values_descends_as_values() -> None:
    """Scores count as constants, so its gradient is that of the values."""
    t = Text()
    x = t.embed()
    both = t.linear(x)
    found = t.roles(t.add(x, t.linear(t.attention(t.linear(x), both, both))))
    assert found[1] == ("linear", 0, "value")


def test_one_layer_for_values_and_something_else_is_refused() -> None:
    t = Text()
    x = t.embed()
    both = t.linear(x)
    attended = t.linear(t.attention(t.linear(x), t.linear(x), both))
    with pytest.raises(UnsupportedModelError, match="different kind"):
        t.roles(t.add(x, t.add(attended, t.linear(both))))
