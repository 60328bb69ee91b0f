"""What stands between attention and its output projection, and heads put together in unusual ways, in hand-written
decoders. fp64, 1e-9 beside the exported graph."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tiny_models import relative, token_ids
from torch import Tensor, nn

from tintc.frontend.graph.trace_model import capture
from tintc.frontend.importer import import_graph
from tintc.ir.auxiliary import AuxOp
from tintc.ir.auxiliary.interpreter import forward, load
from tintc.ir.core import Program
from tintc.ir.functions import ACTIVATIONS
from tintc.ir.inputs import resolve_inputs
from tintc.lowering.passes.assign_layers import assign_layers
from tintc.lowering.passes.canonicalise import canonicalise
from tintc.reference.captured import run_captured

D, HEADS, VOCAB = 24, 4, 29
WIDE = D // HEADS


class Decoder(nn.Module):
    """Embedding, attention, output projection, sum, head. `mix` makes the projection's input ``[B, T, D]`` of queries,
    keys and values ``[B, H, T, d]`` and of the stream."""

    def __init__(self, mix: Callable[[Decoder, Tensor, Tensor, Tensor, Tensor], Tensor]):
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(max_position_embeddings=16)
        self.embed, self.qkv, self.gate = nn.Embedding(VOCAB, D), nn.Linear(D, 3 * D), nn.Linear(D, D, bias=False)
        self.shared = nn.Parameter(torch.randn(HEADS))
        self.gains = nn.ParameterList(nn.Parameter(torch.rand(WIDE) + 0.5) for _ in range(HEADS))
        self.out, self.head = nn.Linear(D, D), nn.Linear(D, VOCAB, bias=False)
        self.mix = mix

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        x = self.embed(input_ids)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return (self.head(x + self.out(self.mix(self, q, k, v, x))),)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def imported(model: nn.Module) -> Program:
    """The canonical program, checked against the exported graph."""
    graph = capture(model)
    program = assign_layers(canonicalise(import_graph(graph)))
    ids = token_ids(2, 11, VOCAB)
    found = forward(program, load(program, graph.tensors), resolve_inputs(ids))
    assert relative(found, run_captured(graph, ids)) < 1e-9
    return program


def ops(program: Program, opname: str) -> list[AuxOp]:
    return [op for op in program.ops if isinstance(op, AuxOp) and op.opname == f"aux.{opname}"]


GATES: dict[str, Callable[[Decoder, Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "before the heads are merged": lambda m, q, k, v, x: (
        attend(q, k, v).transpose(1, 2) * m.gate(x).view(*x.shape[:2], HEADS, -1).sigmoid()
    ).flatten(2),
    "before they are transposed": lambda m, q, k, v, x: (
        (m.gate(x).unflatten(-1, (HEADS, -1)).transpose(1, 2).sigmoid() * attend(q, k, v)).transpose(1, 2).flatten(2)
    ),
    "after they are merged": lambda m, q, k, v, x: attend(q, k, v).transpose(1, 2).flatten(2) * m.gate(x).sigmoid(),
}


@pytest.mark.parametrize("place", GATES)
def test_gates_on_heads(place: str) -> None:
    program = imported(Decoder(GATES[place]))
    (gate,) = ops(program, "gate")
    assert gate.attributes()["fn"] == "sigmoid"
    assert sorted(op.role for op in ops(program, "linear")) == ["ffn", "key", "output", "query", "value"]


@pytest.mark.parametrize(("name", "transposed"), [("sigmoid", True), ("softplus", False)])
def test_a_number_for_each_head(name: str, transposed: bool) -> None:
    """Every coordinate of a head is multiplied by the head's own."""
    function = ACTIVATIONS[name]

    def mix(m: Decoder, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        factors = function(m.gate(x)[..., 3 : 3 + HEADS]).unsqueeze(-1)
        heads = attend(q, k, v)
        if transposed:
            return (heads * factors.transpose(1, 2)).transpose(1, 2).flatten(2)
        return (heads.transpose(1, 2) * factors).flatten(2)

    (gate,) = ops(imported(Decoder(mix)), "gate")
    assert gate.attributes()["fn"] == name


CLIPPED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "above": lambda a, b: a.clamp(max=0.3),
    "below": lambda a, b: a.clamp(min=-0.2),
    "shifted": lambda a, b: (a + 1) * b,
    "shifted down": lambda a, b: b * (a - 0.5),
    "steeper": lambda a, b: a * torch.sigmoid(2.5 * a),
    "every other column": lambda a, b: torch.cat((b, a), -1)[..., ::2],
    "by one number a token": lambda a, b: torch.sigmoid(b[..., :1]) * a,
}


def test_clipped_and_shifted() -> None:
    """What gates of experts need is taken anywhere: one after the other in one decoder."""

    def mix(m: Decoder, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        heads, gate = attend(q, k, v).transpose(1, 2).flatten(2), m.gate(x)
        for change in CLIPPED.values():
            heads = change(heads, gate)
        return heads

    imported(Decoder(mix))


def test_a_bias_that_the_coordinates_of_a_head_share() -> None:
    def mix(m: Decoder, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        heads = attend(q, k, v).transpose(1, 2)
        return (heads * torch.sigmoid(m.gate(x).view_as(heads) + m.shared[None, None, :, None])).flatten(2)

    program = imported(Decoder(mix))
    (constant,) = ops(program, "constant")
    assert constant.attributes()["table"] == "constant.vector.0"


def test_a_vector_that_is_added_at_every_token() -> None:
    def mix(m: Decoder, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        return attend(q, k, v).transpose(1, 2).flatten(2) + torch.cat(tuple(m.gains)).expand_as(x).contiguous()

    assert len(ops(imported(Decoder(mix)), "constant")) == 1


def test_a_weight_for_every_coordinate() -> None:
    def mix(m: Decoder, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        return torch.cat(tuple(m.gains)) * attend(q, k, v).transpose(1, 2).flatten(2)

    program = imported(Decoder(mix))
    assert [op.opname for op in program.ops][-5:-2] == ["aux.constant", "aux.gate", "aux.linear"]


@pytest.mark.parametrize("first", [1, 14])
def test_what_is_added_changes_from_some_token_on(first: int) -> None:
    """So it is a table of positions."""

    def mix(m: Decoder, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])[:, None] // first
        return attend(q, k, v).transpose(1, 2).flatten(2) + torch.cat(tuple(m.gains)) * places

    assert len(ops(imported(Decoder(mix)), "position_embedding")) == 1, "the decoder itself has none"


def test_differences_of_two_attentions() -> None:
    """Values shared by both, half of the heads each, and a norm of pairs of heads (differential attention)."""

    def mix(m: Decoder, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        found = [attend(q, k, part.repeat(1, 2, 1, 1)) for part in v.chunk(2, 1)]
        one, two = torch.cat([part.transpose(1, 2) for part in found], -1).chunk(2, 2)
        return 0.2 * F.rms_norm(one - m.shared.sum().exp() * two, (2 * WIDE,), eps=1e-5).flatten(2)

    program = imported(Decoder(mix))
    assert program.attributes["n_layers"] == 1 and len(ops(program, "attention")) == 2
    assert [op.attributes().get("groups") for op in ops(program, "norm")] == [HEADS // 2]
    roles = [op.role for op in ops(program, "linear")]
    assert sorted(roles) == ["key", "output", "query", "value", "value"]


def test_heads_normalised_one_by_one() -> None:
    def mix(m: Decoder, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        pairs = zip(q.unbind(1), m.gains, strict=True)
        q = torch.stack([F.layer_norm(head, (WIDE,), gain) for head, gain in pairs], 1)
        return attend(q, k, v).transpose(1, 2).flatten(2)

    program = imported(Decoder(mix))
    assert [op.role for op in ops(program, "norm")] == ["qk"] * HEADS
    assert {op.role for op in ops(program, "linear")} == {"query", "key", "value", "output"}


def test_halves_of_which_some_coordinates_do_not_turn() -> None:
    """Coordinates i and i + d / 2 turn together, the last pair by nothing."""

    def turn(heads: Tensor) -> Tensor:
        rates = torch.tensor([1.0, 0.3, 0.0], dtype=torch.float64)
        angles = torch.cat((torch.arange(heads.shape[2])[:, None] * rates,) * 2, -1)
        half = torch.cat((-heads[..., WIDE // 2 :], heads[..., : WIDE // 2]), -1)
        return heads * angles.cos().to(heads) + half * angles.sin().to(heads)

    program = imported(Decoder(lambda m, q, k, v, x: attend(turn(q), turn(k), v).transpose(1, 2).flatten(2)))
    (attention,) = ops(program, "attention")
    assert attention.attributes()["rotary_style"] == "half" and not ops(program, "select")
