"""The gradient of the loss in literal execution, as modules (Appendix H).

    p_t = E^T h(E x_t + b)              an MLP whose hidden layer is the vocabulary, with (capped) softmax activation
    n_t = E[token t + 1]                every token looks itself up; an attention shifts by one
    dx_t = p_t - rho_t n_t              a dimension-wise operation on slots; the same attention keeps what counts

Claim: slot 0 of every token that counts becomes the gradient of its loss at x_t, and that of other tokens zero. By the
claim of `sim.loss_gradient`, the gradient is ``E^T (dz/ds * (softmax(z) - e_n))``, which is ``E^T h - (dz_n/ds_n) E_n``
for ``h = dz/ds * softmax(z)`` (``dz/ds * z`` for ``quad``), E^T e_n being row n of E. The MLP gives the first term, and
n_t is row n.

For plain logits ``dz_n/ds_n`` is the constant rho, the head's scale. With a soft cap c it is ``rho (1 - u^2)`` at
``u = tanh(rho (<x_t, n_t> + b_n) / c)``: a product of slots and a sum, an activation, two products and a map of slots;
rho_t is 1 and n_t is multiplied by it. For ``mse``, p_t is x_t and rho is 1. QED.

The attention has constant scores, 1 between tokens, and the mask says who sees whom: the next token for the shift, a
token itself for what counts. (One-hots of positions as queries and keys could not do it, since a head's width bounds
the rank of its scores.) The table E is stored D wide and once.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from tintc.ir.block_specs import (
    ActivationSpec,
    AttentionSpec,
    LinearSpec,
    Positions,
    ProductSpec,
    SplitStage,
    TensorSpec,
    VocabularySpec,
)
from tintc.ir.layout import Layout
from tintc.ir.losses import LogitMap
from tintc.ir.simulator.interface.literal_base import LiteralRun
from tintc.ir.simulator.shared.first_order import product, slot_map
from tintc.ir.structure import StructuralBlock, chunk_map, indicator


@cache
def pick_block(layout: Layout) -> StructuralBlock:
    """Return the attention that hands slot 0 from token to token.

    Claim: slot 0 of token t becomes the sum of slot 0 of the tokens that the mask lets it see.

    Heads 0 .. S'-1: query and key e_0 for tokens (P_q = P_k of tokens, lam = 1, W_q = W_k = 0), 0 for prefixes: score 1
    between tokens. W_v and W_o are the identity on these heads' chunks, which are slot 0. QED.
    """
    heads = layout.n_heads
    width = layout.d_h
    used = range(layout.shards)
    same = chunk_map(heads, width, {(chunk, chunk): 1.0 for chunk in used})
    spec = AttentionSpec(
        n_heads=heads,
        width=width,
        kind="linear",
        w_q=None,
        w_k=None,
        w_v=(same,),
        w_o=(same,),
        positions_q=Positions("tokens", indicator(heads, used)),
        positions_k=Positions("tokens", indicator(heads, used)),
        constant=range(heads),
    )
    return StructuralBlock(spec, "replace")


def sum_stages(layout: Layout, factor: float) -> tuple[SplitStage, SplitStage]:
    """Return stages that take a sum: split-wise, dimension-wise.

    Claim: every coordinate of slot 0 becomes `factor` times the sum of all coordinates of slots 0 and 1.

    Split-wise: each chunk times the all-ones matrix, which puts its sum into all its columns. Dimension-wise: every
    chunk of slot 0 receives `factor` times those of both slots. QED.
    """
    heads = layout.n_heads
    d_h = layout.d_h
    shards = layout.shards
    split = SplitStage("split", heads, d_h, TensorSpec((heads, d_h, d_h), lambda: torch.ones(heads, d_h, d_h).double()))
    entries = {(to, source): factor for to in range(shards) for source in range(2 * shards)}
    return split, chunk_map(heads, d_h, entries)


def loss_blocks(
    layout: Layout, loss: str, head: str, bias: str, logit_map: LogitMap, width: int
) -> dict[str, StructuralBlock]:
    """Return the blocks of `loss_slot`, by name."""
    pull = logit_map.scale
    if loss == "mse" or logit_map.softcap:
        pull = 1.0
    difference = slot_map(layout, {(0, 0): 1.0, (0, 1): -pull})
    blocks = {"loss_pick": pick_block(layout), f"loss_difference_{loss}": StructuralBlock(LinearSpec((difference,)))}
    if loss == "mse":
        return blocks
    blocks[f"loss_vocabulary_{loss}"] = StructuralBlock(VocabularySpec(loss, head, bias, logit_map, width), "replace")
    if logit_map.softcap:
        slope = slot_map(layout, {(0, 1): logit_map.scale, (0, 0): -logit_map.scale})
        blocks |= {
            "product_0_1": StructuralBlock(ProductSpec(0, 1)),
            "loss_target": StructuralBlock(LinearSpec(sum_stages(layout, logit_map.scale / logit_map.softcap))),
            "loss_tanh": StructuralBlock(ActivationSpec("tanh", (0,))),
            "loss_slope": StructuralBlock(LinearSpec((slope,))),
        }
    return blocks


def loss_slot(run: LiteralRun, loss: str, head: str, bias: str, logit_map: LogitMap, x: Tensor, step: int) -> Tensor:
    """Return the gradient with respect to ``x [B, T, P]``, of the same shape, zero where the loss does not count."""
    ids = run.inputs.input_ids
    target = _shifted(run, run.look_up(head, ids))
    pulled = x
    if loss != "mse":
        pulled = run.slot(run.apply(f"loss_vocabulary_{loss}", run.embed([x])))
        if logit_map.softcap:
            terms = [product(run, x, target)]
            if bias:
                terms.append(_shifted(run, run.look_up(bias, ids)))
            score = run.apply("loss_target", run.embed(terms))
            u = run.slot(run.apply("loss_tanh", score))
            lost = product(run, product(run, u, u), target)
            target = run.slot(run.apply("loss_slope", run.embed([lost, target])))
    dx = run.apply(f"loss_difference_{loss}", run.embed([pulled, target]))
    return run.slot(run.apply("loss_pick", dx, mask=run.counted_mask(step)))


def _shifted(run: LiteralRun, slot: Tensor) -> Tensor:
    """Return the next token's slot at every token ``[B, T, P]``; zeros at the last."""
    return run.slot(run.apply("loss_pick", run.embed([slot]), mask=run.next_mask()))
