"""What decoders do to scores and with positions: masks, sinks, tables that are computed, scales of queries.

Hand-written decoders; fp64, 1e-9 relative to the exported graph.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from tiny_models import relative, token_ids
from torch import Tensor, nn

from tintc.errors import UnsupportedModelError
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.importer import import_graph
from tintc.ir.auxiliary import Activation, Attention, Linear, PositionEmbedding, Scale
from tintc.ir.auxiliary.interpreter import forward, load
from tintc.ir.core import Program
from tintc.ir.inputs import resolve_inputs
from tintc.lowering.passes.assign_layers import assign_layers
from tintc.lowering.passes.canonicalise import canonicalise
from tintc.reference.captured import run_captured
from tools.sweep.tiny import tiny_model
from tools.sweep.variants import VARIANTS

D, HEADS, VOCAB, LONGEST = 24, 3, 29, 16


def causal(scores: Tensor) -> Tensor:
    return torch.ones(scores.shape[-2:], dtype=torch.bool).tril()


def seen(scores: Tensor) -> Tensor:
    return causal(scores).to(scores)


def masked(scores: Tensor) -> Tensor:
    return scores.masked_fill(~causal(scores), -1e9)


class Decoder(nn.Module):
    """Embedding, attention written out, head.

    mask: what is done to the scores; place: to the embeddings; turn: to queries and, with `both`, to keys; attend: from
    masked scores, values and a parameter ``[HEADS]`` to what the heads give.
    """

    def __init__(
        self,
        mask: Callable[[Tensor], Tensor] = masked,
        place: Callable[[Tensor], Tensor] = lambda x: x,
        turn: Callable[[Tensor], Tensor] = lambda q: q,
        both: bool = False,
        attend: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda s, v, _: s.softmax(-1) @ v,
    ):
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(max_position_embeddings=LONGEST)
        self.embed, self.qkv = nn.Embedding(VOCAB, D), nn.Linear(D, 3 * D)
        self.head = nn.Linear(D, VOCAB, bias=False)
        self.sinks = nn.Parameter(torch.randn(HEADS))
        self.mask, self.place, self.turn, self.both, self.attend = mask, place, turn, both, attend

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        x = self.place(self.embed(input_ids))
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        k = self.turn(k) if self.both else k
        a = self.attend(self.mask(self.turn(q) @ k.transpose(-1, -2)), v, self.sinks)
        return (self.head(x + a.transpose(1, 2).flatten(2)),)


def imported(model: nn.Module) -> Program:
    """The program, checked against the exported graph."""
    graph = capture(model)
    program = import_graph(graph)
    ids = token_ids(2, 11, VOCAB)
    found = forward(program, load(program, graph.tensors), resolve_inputs(ids))
    assert relative(found, run_captured(graph, ids)) < 1e-9
    return program


def reasons(model: nn.Module) -> str:
    with pytest.raises(UnsupportedModelError) as error:
        import_graph(capture(model))
    return str(error.value)


def attention(program: Program) -> Attention:
    (op,) = [op for op in program.ops if isinstance(op, Attention)]
    return op


def window(scores: Tensor) -> Tensor:
    return causal(scores) & causal(scores).triu(-3)


MASKS: dict[str, Callable[[Tensor], Tensor]] = {
    "a product and a sum": lambda s: s * seen(s) - 1e4 * (1 - seen(s)),
    "a floor": lambda s: torch.maximum(s + (-1e9 * (1 - seen(s))), torch.tensor(-1e6)),
    "a clamp": lambda s: (s - 1e9 * (1 - seen(s))).clamp(min=-1e6),
    "two products": lambda s: (s * 0.5 * seen(s)) * 2 - 1e4 * (1 - seen(s)),
}


@pytest.mark.parametrize("spelling", MASKS)
def test_masks_that_multiply_and_floors(spelling: str) -> None:
    found = attention(imported(Decoder(MASKS[spelling])))
    assert (found.window, found.scale, found.slopes) == (0, 1.0, ())


def test_a_window_that_multiplies() -> None:
    found = imported(Decoder(lambda s: s * window(s).to(s) - 1e4 * (1 - window(s).to(s))))
    assert attention(found).window == 4


WRONG: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "scores of 0 are seen": ("other numbers than 1", lambda s: masked(s) * seen(s).tril(-1)),
    "what is masked is multiplied": ("other numbers than 1", lambda s: masked(s) * seen(s)),
    "a factor for each key": ("other numbers than 1", lambda s: masked(s * torch.arange(1.0, s.shape[-1] + 1))),
    "a floor within reach": ("aten.clamp", lambda s: masked(s.clamp(min=-1.0))),
    "a floor turned round": ("aten.clamp", lambda s: masked(-1.0 * s.clamp(min=1e9))),
    "a ceiling": ("aten.clamp", lambda s: masked(s.clamp(max=-1e6))),
}


@pytest.mark.parametrize("spelling", WRONG)
def test_what_changes_scores_that_are_seen_is_no_mask(spelling: str) -> None:
    reason, mask = WRONG[spelling]
    assert reason in reasons(Decoder(mask))


def sinusoidal(length: int) -> Tensor:
    angle = torch.arange(length)[:, None] * torch.exp(-0.3 * torch.arange(D // 2))
    return torch.cat((angle.sin(), angle.cos()), -1)


class Placed(Decoder):
    """Adds to the embeddings rows of a table."""

    def __init__(self, rows: Callable[[Tensor, int], Tensor], learned: bool = False):
        super().__init__(place=lambda x: x + rows(self.table, x.shape[1]))
        table = sinusoidal(LONGEST + 2)
        self.table: Tensor
        if learned:
            self.table = nn.Parameter(table)
        else:
            self.register_buffer("table", table)


ROWS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "index": lambda table, n: table[torch.arange(n)[None] + 2],
    "index_select": lambda table, n: table.index_select(0, torch.arange(n)).view(1, n, D),
    "slice": lambda table, n: 0.5 * table[None, :n],
}


@pytest.mark.parametrize(
    ("spelling", "learned"), [("index", False), ("index", True), ("index_select", False), ("slice", True)]
)
def test_rows_of_a_table(spelling: str, learned: bool) -> None:
    model = Placed(ROWS[spelling], learned)
    program = imported(model)
    (table,) = [op for op in program.ops if isinstance(op, PositionEmbedding)]
    assert (table.table, table.offset) == ("table", 0)
    assert program.parameters["table"].shape == (LONGEST, D)


def test_a_table_computed_on_the_spot() -> None:
    program = imported(Decoder(place=lambda x: x + sinusoidal(x.shape[1])[None]))
    (table,) = [op for op in program.ops if isinstance(op, PositionEmbedding)]
    assert table.table == "constant.positions.0"


def test_a_table_may_multiply_and_be_subtracted() -> None:
    program = imported(Decoder(place=lambda x: x * sinusoidal(x.shape[1])[None] - sinusoidal(x.shape[1])[None]))
    assert [op.opname for op in program.ops].count("aux.multiply") == 1


def test_what_depends_on_the_length_is_no_table() -> None:
    assert "length of the text" in reasons(Decoder(place=lambda x: x + sinusoidal(x.shape[1])[None] / x.shape[1]))


def beside(scores: Tensor, sinks: Tensor) -> Tensor:
    return torch.cat((scores, sinks[:, None, None].expand(*scores.shape[:-1], 1)), -1).softmax(-1)


def gate(scores: Tensor, sinks: Tensor) -> Tensor:
    return torch.sigmoid(scores.logsumexp(-1) - sinks[:, None])[..., None]


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
SINKS: dict[str, Attend] = {
    "a column": lambda s, v, sinks: beside(s, sinks)[..., :-1] @ v,
    "a column of zeros": lambda s, v, sinks: beside(s, 0 * sinks)[..., :-1] @ v,
    "a gate": lambda s, v, sinks: (s.softmax(-1) @ v) * gate(s, sinks),
    "a gate in another way": lambda s, v, sinks: (
        (1 - (sinks[:, None, None] - s.logsumexp(-1, keepdim=True)).sigmoid()) * (s.softmax(-1) @ v)
    ),
}


@pytest.mark.parametrize("spelling", SINKS)
def test_sinks(spelling: str) -> None:
    program = imported(Decoder(attend=SINKS[spelling]))
    name = attention(program).sinks
    assert program.parameters[name].shape == (HEADS,)
    assert name == "sinks"


def late(count: int) -> Tensor:
    """1, and 2 at the last two positions of the longest text."""
    return 1.0 + torch.arange(count) // (LONGEST - 2)


NO_SINKS: dict[str, Attend] = {
    "a column that changes late": lambda s, v, sinks: (
        torch.cat((s, (sinks[:, None] * late(s.shape[2]))[None, ..., None].expand(*s.shape[:-1], 1)), -1).softmax(-1)[
            ..., :-1
        ]
        @ v
    ),
    "a gate that changes in long texts": lambda s, v, sinks: (
        (s.softmax(-1) @ v) * gate(s, sinks * late(s.shape[2]).max())
    ),
    "a key is dropped": lambda s, v, sinks: beside(s, sinks)[..., 1:] @ v,
    "a column for each query": lambda s, v, _: torch.cat((s, s.sum(-1, keepdim=True)), -1).softmax(-1)[..., :-1] @ v,
    "a gate of something else": lambda s, v, sinks: (s.softmax(-1) @ v) * gate(s + 1, sinks),
    "a gate of the values": lambda s, v, sinks: (s.softmax(-1) @ v) * torch.sigmoid(v.sum(-1, keepdim=True)),
}


@pytest.mark.parametrize("spelling", NO_SINKS)
def test_what_is_no_sink(spelling: str) -> None:
    assert reasons(Decoder(attend=NO_SINKS[spelling]))


def by_position(heads: Tensor, step: int) -> Tensor:
    places = torch.arange(heads.shape[2])
    return heads * (1 + 0.3 * torch.log1p(torch.floor(places / step)))[:, None]


def test_scales_of_queries_by_position() -> None:
    program = imported(Decoder(turn=lambda q: by_position(q, 4)))
    scale = program.parameters[attention(program).query_scale]
    assert scale.source == "constant.query_scale.0" and scale.shape == (LONGEST,)


def test_a_scale_that_begins_beyond_the_longest_text_is_none() -> None:
    assert attention(imported(Decoder(turn=lambda q: by_position(q, LONGEST)))).query_scale == ""


def test_a_factor_that_only_long_texts_have() -> None:
    """The logarithm of the length, from 13 tokens on."""

    def lengthened(x: Tensor) -> Tensor:
        length = torch.arange(x.shape[1]).max() + 1.0
        return x * torch.clamp(torch.log(length) / torch.log(torch.tensor(13.0)), min=1.0)

    assert "nor a single number" in reasons(Decoder(place=lengthened))


def test_keys_are_not_scaled_by_position() -> None:
    assert "keys are scaled by their position" in reasons(Decoder(turn=lambda q: by_position(q, 4), both=True))


class Stretched(Decoder):
    """Rotary embedding by one of two sets of frequencies, for short and for long texts; the model keeps the last."""

    def __init__(self, short: int):
        super().__init__(turn=self.rotated, both=True)
        self.short = short
        self.register_buffer("frequencies", torch.zeros(4))
        self.frequencies: Tensor

    def rotated(self, heads: Tensor) -> Tensor:
        length = torch.arange(heads.shape[2]).max() + 1
        chosen = torch.where(
            length > self.short, torch.tensor([0.5, 0.1, 0.02, 0.0]), torch.tensor([1.0, 0.3, 0.1, 0.0])
        )
        self.frequencies.copy_(chosen)
        angle = torch.arange(heads.shape[2])[:, None] * self.frequencies
        a, b = heads.chunk(2, -1)
        return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)


def test_frequencies_for_texts_of_the_compiled_length() -> None:
    assert attention(imported(Stretched(LONGEST))).rotary_style == "half"
    assert "the position or the length" in reasons(Stretched(LONGEST - 1))


class Clipped(Decoder):
    def __init__(self, low: float, high: float):
        super().__init__()
        self.qkv = nn.Sequential(self.qkv, nn.Hardtanh(low, high))


def test_clipped_queries_keys_and_values() -> None:
    program = assign_layers(canonicalise(imported(Clipped(-0.3, 0.3))))
    assert [op.role for op in program.ops if isinstance(op, Linear)] == ["query", "key", "value"]
    assert [op.fn for op in program.ops if isinstance(op, Activation)] == ["hardtanh"] * 3
    assert sorted(op.factor for op in program.ops if isinstance(op, Scale)) == pytest.approx([0.3] * 3 + [1 / 0.3] * 3)
    assert "clipped from -1.0 to 2.0" in reasons(Clipped(-1.0, 2.0))


class Expanded(nn.Linear):
    """A linear layer that expands its bias before it adds it."""

    def forward(self, input: Tensor) -> Tensor:
        return input @ self.weight.T + self.bias.expand(*input.shape[:-1], -1)


def test_an_expanded_bias_is_no_table_of_positions() -> None:
    model = Decoder()
    model.qkv = Expanded(D, 3 * D)
    program = imported(model)
    assert [op.bias for op in program.ops if isinstance(op, Linear)] == ["qkv.bias", ""]
    assert not any(isinstance(op, PositionEmbedding) for op in program.ops)


def test_slopes_that_are_no_powers_of_two() -> None:
    """Falcon divides its slopes by the root of a head's width; at long texts' positions they must not be rounded."""
    program = import_graph(capture(tiny_model("falcon", num_hidden_layers=1, **VARIANTS["falcon"]["ALiBi"])))
    (slopes,) = (op.slopes for op in program.ops if isinstance(op, Attention))
    assert len(slopes) == 3 and all(slope > 0 for slope in slopes)
