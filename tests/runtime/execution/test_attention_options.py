"""Windows, soft caps, ALiBi, sinks, scales, gains and norms of heads in four executions, which agree.

They are literal and fused ones, and the interpreters of simulator and auxiliary.
fp64, 1e-9 of the size of the update. Programs are written by hand; three heads of six, one or three key/value heads;
two layers where options come together, so that scores change with the update, else one.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_programs import VOCAB, decoder
from programs import Sketch, check_agreement, relative_to_update, simulator, three_ways

from tintc.errors import InputError
from tintc.ir import auxiliary as aux
from tintc.ir.auxiliary.interpreter import Descent, simulate
from tintc.ir.core import Program
from tintc.ir.inputs import resolve_inputs
from tintc.ir.simulator.shared import attention_common


def agree(made: tuple[Program, dict[str, torch.Tensor]], **options: Any) -> None:
    """Trained on seven of nine tokens, so that windows cut backward passes too."""
    program, tensors = made
    ids = torch.randint(0, VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))
    padding = torch.ones(2, 9, dtype=torch.long)
    padding[0, :2] = 0
    train = (torch.arange(9) < 7).expand(2, -1)
    for masks, n_steps in (({}, 2), ({"attention_mask": padding}, 1)):
        masks |= {"train_mask": train}
        sim = simulator(program, tensors, n_steps=n_steps, inner_lr=1e-2, **options)
        ways = three_ways(sim, program, tensors, ids, Descent(1e-2, n_steps), **masks)
        sim.trust()
        sim.executor = "fused"
        with torch.no_grad():
            out = sim(ids, return_before=True, **masks)
        check_agreement({**ways, "fused": (out.logits_before, out.logits)})


@pytest.mark.parametrize(
    ("kv_heads", "options"),
    [
        (1, {"window": 4}),
        (3, {"soft_cap": 0.7}),
        (1, {"slopes": (0.5, 0.25, 0.0625)}),
        (3, {"gained": True}),
        (1, {"scaled": True}),
        (3, {"sunk": True}),
        (1, {"sunk": True, "scaled": True, "window": 3, "soft_cap": 1.5, "slopes": (0.5, 0.25, -0.1)}),
        (3, {"sunk": True, "scaled": True, "window": 3, "soft_cap": 1.5, "slopes": (0.5, 0.25, -0.1)}),
        (1, {"window": 3, "soft_cap": 1.5, "slopes": (0.5, 0.25, -0.1), "gained": True}),
    ],
)
def test_options_of_scores(kv_heads: int, options: dict[str, Any]) -> None:
    agree(decoder(kv_heads, layers=1 + (len(options) > 1), **options))


def test_blocks_of_queries_see_the_sinks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_common, "ROWS", 4)
    agree(decoder(1, layers=1, sunk=True))


def test_positions_without_a_scale_are_refused() -> None:
    sim = simulator(*decoder(layers=1, scaled=True), n_steps=1, inner_lr=1e-2)
    with pytest.raises(InputError, match="Position 9 is out of range; the model has 9"):
        sim(torch.zeros(1, 4, dtype=torch.long), position_ids=torch.arange(6, 10)[None])


@pytest.mark.parametrize(
    "q_norm",
    [
        {"kind": "rms"},
        {"kind": "layer"},
        {"kind": "rms", "shared": False},
        {"kind": "layer", "shared": False},
        {"kind": "rms", "whole": True},
    ],
)
def test_norms_of_queries_and_keys(q_norm: dict[str, Any]) -> None:
    agree(decoder(3, layers=1, q_norm=q_norm))


@pytest.mark.parametrize("kv_heads", [1, 3])
def test_norms_of_value_heads_hand_gradients_on(kv_heads: int) -> None:
    program, tensors = decoder(kv_heads, layers=1, v_norm=True)
    agree((program, tensors))
    ids = torch.randint(0, VOCAB, (1, 8), generator=torch.Generator().manual_seed(0))
    _, _, updated = simulate(program, tensors, resolve_inputs(ids), Descent(1e-2))
    assert float((updated["h.0.v.weight"] - tensors["h.0.v.weight"]).abs().max()) > 0


@pytest.mark.parametrize("whole", [False, True])
def test_heads_together_are_wider_than_the_stream(whole: bool) -> None:
    """Values of 18 in slots of 12: a norm's tiles, with and without groups."""
    agree(decoder(3, width=12, layers=1, q_norm={"kind": "rms", "whole": whole}, v_norm=True))


@pytest.mark.parametrize(("kv_heads", "value_dim"), [(1, 9), (3, 4)])
def test_values_of_another_width_than_keys(kv_heads: int, value_dim: int) -> None:
    agree(decoder(kv_heads, value_dim=value_dim, layers=1, gained=kv_heads == 3 and value_dim == 4))


def test_a_norm_over_several_slots_hands_gradients_on() -> None:
    """A norm of a feed-forward's 20 coordinates where the stream has 12, in two slots."""
    make = Sketch(12, norm_kind="rms", bias=False)
    x = make.embedding("wte", VOCAB)
    make.layer = 0
    mid = make.sum("mid", x, make.attention("attn", make.norm("ln1", x), 2, 2))
    up = make.linear("up", mid, 20, "ffn")
    normed = make.add(aux.Norm, "inner", 20, up, kind="rms", eps=1e-5, weight=make.parameter("inner.weight", 20))
    make.ops[-1].role = "layer"
    x = make.sum("out", mid, make.linear("down", normed, 12, "ffn"))
    make.layer = -1
    agree(make.finish(make.norm("lnf", x, "final"), VOCAB, 1))


def test_a_window_as_long_as_the_text_is_none() -> None:
    ids = torch.randint(0, VOCAB, (1, 8), generator=torch.Generator().manual_seed(0))
    found = []
    for window in (0, 8, 7):
        program, tensors = decoder(window=window)
        before, after, _ = simulate(program, tensors, resolve_inputs(ids), Descent(1e-2))
        found.append((before, after))
    assert torch.equal(found[0][1], found[1][1])
    assert relative_to_update(found[2][1], found[0][1], found[0][0]) > 1e-6
