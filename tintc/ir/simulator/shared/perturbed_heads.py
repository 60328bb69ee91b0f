"""The heads that differentiate scores: those of softmax attention, with a step added to every score."""

from __future__ import annotations

from tintc.ir.block_specs import AttentionSpec
from tintc.ir.layout import Layout
from tintc.ir.simulator.shared.attention_heads import AttentionHeads


def beside(op: AttentionHeads, layout: Layout, *names: str) -> tuple[int, ...]:
    """Return the first chunks of operands side by side; ``a`` stands for q once more. op: reads dy, q, k and v."""
    dy, q, k, v = op.operands
    values = {"dy": dy, "q": q, "k": k, "v": v, "a": q}
    return tuple(op.starts(layout, [values[name] for name in names]))


def score_products(op: AttentionHeads, layout: Layout) -> AttentionSpec:
    """Return the linear attention ``u_t = sum_j <dy_t, v_j> v_j``, over [dy | v]."""
    dy, v = beside(op, layout, "dy", "v")
    values = op.take(layout, v, op.value_width, grouped=True)
    return AttentionSpec(
        n_heads=op.chunks(layout),
        width=op.width,
        kind="linear",
        w_q=op.take(layout, dy, op.value_width, grouped=False),
        w_k=values,
        w_v=values,
        w_o=op.give(layout, grouped=False, dim=op.value_width),
    )


def perturbed_heads(op: AttentionHeads, layout: Layout, of: str) -> AttentionSpec:
    """Return the perturbed heads for the gradient of queries or keys, over [h dy | q | k | v | a].

    Claim: with P the softmax of the scores s and ``c_tj = <dy_t, v_j>``, they give ``sum_j P(s + h c)_tj k_j`` at t for
    queries, and ``sum_t P(s + h c)_tj a_t`` at j for keys, both times `scale` and turned back by the rotation. Where
    scores have a soft cap, its derivative ``1 - (s / cap)^2`` multiplies P.

    W_q, W_k, mask, rotation, soft cap, ALiBi and sinks are the forward module's. W_p brings head h of h dy and W_r head
    ``h // group`` of v, so that ``<h dy_t, v_j> = h c_tj`` is added to the score: a head with query [scale q ; h dy]
    and key [k ; v]. For queries the values are keys at their positions, times `scale`, and what comes out at t is
    weighed as queries are and turned back by t's angle: a rotation's transpose is its inverse. For keys the head is
    transposed, the values are a at their positions, times `scale`, and what comes out at j is turned back by j's angle.
    QED.
    """
    dy, q, k, v, a = beside(op, layout, "dy", "q", "k", "v", "a")
    if of == "queries":
        weighed = op.take(layout, k, op.head_dim, grouped=True, factor=op.scale)
    else:
        weighed = op.take(layout, a, op.head_dim, grouped=False, factor=op.scale)
    return AttentionSpec(
        n_heads=op.chunks(layout),
        width=op.width,
        kind="softmax",
        w_q=op.take(layout, q, op.head_dim, grouped=False, factor=op.scale),
        w_k=op.take_keys(layout, k),
        w_v=weighed,
        w_o=op.give(layout, grouped=of == "keys", dim=op.head_dim),
        w_p=op.take(layout, dy, op.value_width, grouped=False),
        w_r=op.take(layout, v, op.value_width, grouped=True),
        transpose=of == "keys",
        gradient=of,
        **op.spec_options(),
    )
