"""The full gradient in four executions, which agree: literal, fused, and the interpreters of simulator and auxiliary.

fp64, 1e-9 of the size of the update. Programs are written by hand; three heads of six, one or three key/value heads.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_programs import VOCAB, decoder
from fused_cases import check_fused
from programs import Sketch, check_agreement, simulator, three_ways

from tintc.errors import OptionError
from tintc.ir.auxiliary import Activation, Gate
from tintc.ir.auxiliary.interpreter import Descent
from tintc.ir.core import Program
from tintc.ir.functions import KINKED, FiniteDifference
from tintc.ir.simulator.shared import attention_common
from tintc.option_facts import FD_STEPS, GROUPS
from tintc.options import Options

IDS = torch.randint(0, VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))
PADDING = torch.ones(2, 9, dtype=torch.long)
PADDING[0, :2] = 0


def agree(made: tuple[Program, dict[str, torch.Tensor]], scheme: str = "central", **given: Any) -> None:
    """Two steps on whole texts, and one on texts of which one is padded on the left; trained on seven of nine tokens,
    so that windows cut backward passes too."""
    program, tensors = made
    difference = FiniteDifference(scheme, FD_STEPS[scheme])
    for masks, n_steps in (({}, 2), ({"attention_mask": PADDING}, 1)):
        masks |= {"train_mask": (torch.arange(9) < 7).expand(2, -1)}
        options = {"gradient": "full", "descend": "all", "difference": scheme, "inner_lr": 1e-2} | given
        sim = simulator(program, tensors, n_steps=n_steps, **options)
        groups = Options(**options).groups
        descent = Descent(1e-2, n_steps, groups=groups, difference=difference, full=True)
        ways = three_ways(sim, program, tensors, IDS, descent, **masks)
        sim.trust()
        sim.executor = "fused"
        with torch.no_grad():
            out = sim(IDS, return_before=True, **masks)
        check_agreement({**ways, "fused": (out.logits_before, out.logits)})


ALTOGETHER = {"sunk": True, "scaled": True, "window": 3, "soft_cap": 1.5, "slopes": (0.5, 0.25, -0.1)}


@pytest.mark.parametrize(
    ("kv_heads", "options"),
    [
        (1, {"window": 4}),
        (3, {"soft_cap": 0.7}),
        (1, {"gained": True}),
        (1, ALTOGETHER),
        (3, ALTOGETHER),
        (1, {"value_dim": 4}),
        (3, {"value_dim": 9, "width": 20}),
        (1, {"q_norm": {"kind": "rms"}}),
        (3, {"q_norm": {"kind": "layer", "shared": False}}),
        (3, {"q_norm": {"kind": "layer"}, "width": 12}),
    ],
)
def test_options_of_scores(kv_heads: int, options: dict[str, Any]) -> None:
    """Of two layers where options come together, else of one."""
    agree(decoder(kv_heads, layers=1 + (options is ALTOGETHER), **options))


@pytest.mark.parametrize("scheme", ["token", "fixed"])
def test_one_sided_differences(scheme: str) -> None:
    agree(decoder(1, layers=1, **ALTOGETHER), scheme)


@pytest.mark.parametrize("fn", KINKED)
def test_activations_with_kinks(fn: str) -> None:
    """Alone, in tiles, and as a gate."""
    make = Sketch(12, bias=False)
    x = make.embedding("wte", VOCAB)
    make.layer = 0
    wide = make.add(Activation, "act", 30, make.linear("up", x, 30, "ffn"), fn=fn)
    gated = make.add(Gate, "gate", 12, make.linear("a", x, 12, "ffn"), make.linear("b", x, 12, "ffn"), fn=fn)
    x = make.sum("out", make.sum("mid", x, make.linear("down", wide, 12, "ffn")), gated)
    make.layer = -1
    agree(make.finish(x, VOCAB, 1), descend="ffn")


def test_blocks_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused execution takes four queries at a time: keys collect the gradients of all blocks."""
    monkeypatch.setattr(attention_common, "ROWS", 4)
    agree(decoder(1, layers=1, sunk=True))


def test_queries_alone_descend() -> None:
    """Nothing but queries: keys and values receive no gradient that anybody needs."""
    agree(decoder(1), descend="queries")


def test_central_differences_of_the_paper_s_gradient() -> None:
    program, tensors = decoder(3, layers=1)
    sim = simulator(program, tensors, n_steps=1, inner_lr=1e-2, difference="central")
    sim.trust()
    check_fused(sim, IDS)


def test_a_zero_gradient_stays_zero_in_fp32() -> None:
    """The last train token's gradient is zero, since the token that it predicts is none; of a LayerNorm too."""
    for kind in ("rms", "layer"):
        program, tensors = decoder(1, layers=1, q_norm={"kind": kind})
        sim = simulator(program, tensors, n_steps=1, inner_lr=1e-2, gradient="full", descend="all")
        sim = sim.float()
        sim.trust()
        sim.executor = "fused"
        with torch.no_grad():
            assert bool(sim(IDS).logits.isfinite().all())


def test_what_receives_no_gradient_is_refused() -> None:
    with pytest.raises(OptionError, match="group queries receives no gradient with gradient paper; choose full"):
        Options(descend="values,queries")
    with pytest.raises(OptionError, match="paper-code has the paper's gradient; choose exact for the full one"):
        Options(gradient="full", semantics="paper-code")
    with pytest.raises(OptionError, match="gradient 'half' is unknown; choose one of paper, full"):
        Options(gradient="half")


def test_all_is_every_group_that_receives_a_gradient() -> None:
    paper = Options(descend="all").groups
    full = Options(gradient="full", descend="all", keep_adapters=True).groups
    assert full == set(GROUPS)
    assert full - paper == {"queries", "keys", "head-norm", "router", "lora"}
    assert Options(gradient="full").scheme == "central" and Options(gradient="full").fd_step == 3e-3
