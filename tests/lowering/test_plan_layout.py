"""`plan_layout` writes the layout and every weight's tiles into the program."""

from __future__ import annotations

from programs import gpt_like, llama_like

from tintc.ir import simulator as sim
from tintc.ir.layout import Layout
from tintc.lowering.passes.differentiate import differentiate
from tintc.lowering.passes.eliminate_common import eliminate_common
from tintc.lowering.passes.plan_layout import plan_layout
from tintc.lowering.passes.unroll_steps import unroll_steps
from tintc.options import Options


def lowered(name: str, options: Options) -> sim.SimOp | object:
    program, _ = gpt_like(layers=1) if name == "gpt" else llama_like(layers=1, parallel=True)
    return eliminate_common(unroll_steps(differentiate(program, options)))


def test_tiles_cover_the_weights() -> None:
    options = Options(stack=1, shards=1)
    found = plan_layout(lowered("gpt", options), options, 24)  # pyright: ignore[reportArgumentType]
    tiles = {op.name: op.tiles for op in found.ops if isinstance(op, sim.StoredWeights)}
    assert tiles["h.0.ffn.up"] == (2, 1) and tiles["h.0.ffn.down"] == (1, 2) and tiles["h.0.attn.q"] == (1, 1)
    assert tiles["lnf"] == (1, 1)
    for op in found.ops:
        if isinstance(op, sim.LinearForward | sim.LinearBackward | sim.LinearDescent):
            assert op.tiles == tiles[op.origin]


def test_published_opt_125m_layout_is_feasible() -> None:
    """Section 3: D = 768, S = 3, K = 256 = d_h, S' = 3, D_sim = 3072."""
    layout = Layout(768, 3, 3, 256, 12, 2048).check(True, 3, {64})
    assert (layout.n_prefixes, layout.d_sim, layout.main_heads, layout.pitch) == (256, 3072, 9, 768)
