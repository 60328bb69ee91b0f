"""`sim.attention_full_backward`: dq, dk and dv of softmax attention, its scores differentiated by perturbed heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tintc.ir.block_specs import InverseRootSpec, LinearSpec, ProductSpec
from tintc.ir.core import Value, register
from tintc.ir.functions import at_least_fp32, merge_heads, split_heads
from tintc.ir.layout import Layout
from tintc.ir.scores import attention_gradients
from tintc.ir.simulator.interface.cost_model import CostModel
from tintc.ir.simulator.interface.fused_base import FusedRun
from tintc.ir.simulator.interface.literal_base import LiteralRun, Tiles
from tintc.ir.simulator.interface.semantics import Interpretation
from tintc.ir.simulator.ops.attention_backward import seen_pairs, values_block
from tintc.ir.simulator.shared.attention_common import AttentionOp, ScoredRows, stored_name
from tintc.ir.simulator.shared.first_order import (
    DifferenceOp,
    mean,
    mean_block,
    named_by,
    product,
    quotient,
    slot_map,
    widened,
)
from tintc.ir.simulator.shared.matrix_stages import Ones, matrix_blocks, matrix_product, ones_by_tile
from tintc.ir.simulator.shared.perturbed_heads import beside, perturbed_heads, score_products
from tintc.ir.simulator.shared.softmax_slopes import softmax_slopes
from tintc.ir.structure import StructuralBlock

SCRATCH = 10
"""Tensors of scores that exist at one time in the fused form."""


@register("sim.attention_full_backward")
@dataclass(eq=False, kw_only=True)
class AttentionFullBackward(AttentionOp, DifferenceOp):
    """(dy, q, k, v) -> (dq, dk, dv), see `structure`; defined by `tintc.ir.scores.attention_gradients`."""

    scheme: str
    fd_step: float

    def verify(self) -> None:
        super().verify()
        self.check_difference()
        self.expect(len(self.operands) == 4 and len(self.results) == 3, "takes dy, q, k and v; gives dq, dk and dv")
        dy, *inputs = (value.type.width for value in self.operands)
        q, k = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        self.expect(dy == self.n_heads * self.value_width, f"dy has the width {dy}")
        wanted = [q, k, self.n_kv_heads * self.value_width]
        self.expect(inputs == wanted, f"q, k and v have the widths {inputs}, not {wanted}")
        self.expect([value.type.width for value in self.results] == wanted, "the gradients have the widths of q, k, v")

    def interpret(self, run: Interpretation, dy: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        vectors = {key: run.tensors[stored_name(name)] for key, name in self.vectors().items()}
        scored_by = (run.inputs.allowed, run.inputs.position_ids, vectors)
        return attention_gradients(self, self.difference, dy, q, k, v, *scored_by)

    def fused(self, run: FusedRun, dy: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        dtype = q.dtype
        dy, q, k, v = (at_least_fp32(value) for value in (dy, q, k, v))
        queries, keys = self.rotated(run, q, k)
        heads = split_heads(dy, self.n_heads)
        values = self.by_query_head(split_heads(v, self.n_kv_heads))
        read = self.by_query_head(keys)
        dq: list[Tensor] = []
        dk = torch.zeros_like(read)
        dv = torch.zeros_like(values)
        for block in self.scored_by_rows(run, queries, keys):
            dy_rows = heads[:, :, block.rows]
            slopes = self._slopes(block, dy_rows @ values[:, :, : block.stop].transpose(-1, -2))
            dq.append(slopes @ read[:, :, : block.stop])
            # Keys after the block's last query have seen none of its gradients.
            missing = (0, 0, 0, keys.shape[2] - block.stop)
            dk = dk + F.pad(slopes.transpose(-1, -2) @ queries[:, :, block.rows], missing)
            dv = dv + F.pad(block.weights.transpose(-1, -2) @ dy_rows, missing)
        of_queries = run.apply_rotary(self.weighed(run, torch.cat(dq, 2)), *self.rotation, back=True)
        of_keys = run.apply_rotary(self.by_key_head(dk), *self.rotation, back=True)
        return tuple(merge_heads(heads).to(dtype) for heads in (of_queries, of_keys, self.by_key_head(dv)))

    def _slopes(self, block: ScoredRows, c: Tensor) -> Tensor:
        """Return the gradients of the products of queries and keys, ``[B, n_heads, n, m]``. c: ``<dy_t, v_j>``."""
        if block.seen is None:
            c = c.tril(block.stop - c.shape[2])
        else:
            c = c.masked_fill(~block.seen, 0.0)
        slopes = softmax_slopes(self.difference, block.weights, c, bool(self.sinks)) * self.scale
        if block.capped is not None:
            slopes = slopes * (1 - (block.capped / self.soft_cap).square())
        return slopes

    def multiply_adds(self, costs: CostModel, *operands: Value) -> int:
        return seen_pairs(costs.lengths[self]) * self.n_heads * (3 * self.head_dim + 2 * self.value_width)

    def scratch(self, costs: CostModel, itemsize: int) -> int:
        return SCRATCH * max(itemsize, 4) * self.n_heads * self.score_entries(costs.lengths[self])

    def head_dims(self) -> set[int]:
        return {self.width, self.value_width}

    def slots(self, layout: Layout) -> int:
        dy, q, k, v = (layout.tiles(value.type.width) for value in self.operands)
        return max(2, dy + q + k + v + q)

    def scores(self, layout: Layout, run: Interpretation, *operands: Tensor) -> tuple[Tensor, ...]:
        dy, _, _, v = operands
        values = self.by_query_head(split_heads(v, self.n_kv_heads))
        return (split_heads(dy, self.n_heads) @ values.transpose(-1, -2),)

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        """Return the blocks of the literal form, by name.

        Claim: with ``c_tj = <dy_t, v_j>`` and ``h_t = eps / |c_t|`` for every head, where |c_t| is over the tokens that
        t sees, they give ``dq_t = sum_j d_tj k_j`` and ``dk_j = sum_t d_tj q_t`` for
        ``d_tj = scale (P(s + h c) - P(s - h c))_tj / 2 h_t``, P being the softmax of the scores s; and dv as
        `sim.attention_backward`. (One-sided differences: P(s) in place of P(s - h c), and h.)

        *Steps.* ``attention_products``, over [dy | v], is a linear attention with the scores ``<dy_t, v_j>`` of tokens
        that t sees and the values v_j: it gives ``u_t = sum_j c_tj v_j``. The product ``dy u`` and a mean over each
        head's D coordinates make ``m = <dy_t, u_t> / D = |c_t|^2 / D``, in every one of them. ``inverse_root`` makes
        ``m^(-1/2)``; its products with dy and with m are ``p = sqrt(D) dy / |c|`` and ``r = |c| / sqrt(D)``.
        ``score_steps`` makes ``p eps / sqrt(D) = h dy`` and its negative (zero for one-sided ones). Where steps are
        fixed, p is dy, and h eps. dy = 0 has p = 0.

        *Perturbed heads*: those of `perturbed_heads`, on [h dy | q | k | v | a], with ``a = r q`` (q where steps are
        fixed), are applied twice, to plus and minus; ``score_difference`` subtracts and divides by
        ``2 eps / sqrt(D)``. So dk is ``sum_t (P+ - P-)_tj sqrt(D) r_t q_t / 2 eps``, and ``sqrt(D) r / eps = 1/h``; of
        dq, the product with r comes last. Where keys and values have different widths, ``widths`` writes coordinate 0
        of a head of r to all of a head of q. QED.

        *Error.* Every score moves by at most eps against the others' mean twice that, since ``|h c_tj| <= eps``: with
        x the move against the mean, d is off by a factor of ``1 + O(x^2)``, second order in eps (first order for
        one-sided ones; construction.md, section 4.4).
        """
        dv = {self.block_name("attention_backward"): values_block(self, layout, beside(self, layout, "dy", "q", "k"))}
        blocks = {"product_0_1": StructuralBlock(ProductSpec(0, 1))} | dv
        for of in ("queries", "keys"):
            blocks[self.block_name(f"attention_{of}")] = StructuralBlock(perturbed_heads(self, layout, of), "replace")
        per_root = 1.0
        if self.difference.per_token:
            per_root = self.value_width**-0.5
            blocks[self.block_name("attention_products")] = StructuralBlock(score_products(self, layout), "replace")
            blocks |= mean_block(layout, self.value_width, self._groups(layout))
            blocks["inverse_root"] = StructuralBlock(InverseRootSpec())
            if self.value_width != self.head_dim:
                blocks |= matrix_blocks(layout, self._width_name, self._widths(layout))
        eps = self.fd_step * per_root
        steps = {(0, 0): eps}
        if self.difference.central:
            steps[1, 0] = -eps
        blocks[self._named("score_steps", layout)] = StructuralBlock(LinearSpec((slot_map(layout, steps),)))
        between = eps * (1 + self.difference.central)
        blocks[self._named("score_difference", layout)] = StructuralBlock(LinearSpec((quotient(layout, between),)))
        return blocks

    def _named(self, block: str, layout: Layout) -> str:
        """Return the name of a block whose tensors depend on the difference and on the width of values."""
        return named_by(f"{block}_{self.scheme}_{self.value_width}", self.fd_step)

    def _groups(self, layout: Layout) -> int:
        """Return the number of heads of dy in one slot."""
        return min(self.n_heads, layout.pitch // self.value_width)

    def literal(self, run: LiteralRun, dy: Tiles, q: Tiles, k: Tiles, v: Tiles) -> tuple[Tiles, Tiles, Tiles]:
        dtype = q[0].dtype
        dy, q, k, v = (widened(tiles) for tiles in (dy, q, k, v))
        mask = run.token_mask(self.window)
        e = run.apply(self.block_name("attention_backward"), run.embed([*dy, *q, *k]), mask=mask)
        dv = [run.slot(e, i) for i in range(len(v))]
        steps = dy
        sizes: Tiles = []
        if self.difference.per_token:
            steps, sizes = self._steps(run, dy, v)
        moves = [run.apply(self._named("score_steps", run.layout), run.embed([tile])) for tile in steps]
        ahead, behind = ([run.slot(e, i) for e in moves] for i in range(2))
        a = q
        if sizes:
            sizes = self._resized(run, sizes, len(q))
            a = [product(run, tile, size) for tile, size in zip(q, sizes, strict=True)]
        gradients: list[Tiles] = []
        for of, tiles in (("queries", len(q)), ("keys", len(k))):
            block = self.block_name(f"attention_{of}")
            both = [run.apply(block, run.embed([*p, *q, *k, *v, *a]), mask=mask) for p in (ahead, behind)]
            pairs = [[run.slot(e, i) for e in both] for i in range(tiles)]
            name = self._named("score_difference", run.layout)
            gradients.append([run.slot(run.apply(name, run.embed(pair))) for pair in pairs])
        dq, dk = gradients
        if sizes:
            dq = [product(run, tile, size) for tile, size in zip(dq, sizes, strict=True)]
        dq, dk, dv = ([tile.to(dtype) for tile in tiles] for tiles in (dq, dk, dv))
        return dq, dk, dv

    def _steps(self, run: LiteralRun, dy: Tiles, v: Tiles) -> tuple[Tiles, Tiles]:
        """Return the tiles of ``sqrt(D) dy / |c|`` and of ``|c| / sqrt(D)``, head by head; both are 0 where c is."""
        name = self.block_name("attention_products")
        e = run.apply(name, run.embed([*dy, *v]), mask=run.token_mask(self.window))
        steps: Tiles = []
        sizes: Tiles = []
        for i, tile in enumerate(dy):
            m = mean(run, product(run, tile, run.slot(e, i)), self.value_width, self._groups(run.layout))
            root = run.slot(run.apply("inverse_root", run.embed([m])))
            steps.append(product(run, tile, root))
            sizes.append(product(run, m, root))
        return steps, sizes

    def _widths(self, layout: Layout) -> Ones:
        """Return the matrix that writes coordinate 0 of each head of `value_width` to all coordinates of a head of
        `head_dim`."""
        places = range(self.n_heads * self.head_dim)
        return ones_by_tile(((place, place // self.head_dim * self.value_width) for place in places), layout.pitch)

    @property
    def _width_name(self) -> str:
        return f"widths_{self.n_heads}_{self.value_width}_{self.head_dim}"

    def _resized(self, run: LiteralRun, sizes: Tiles, count: int) -> Tiles:
        """Return `count` tiles of one number for each head, in all coordinates of heads of `head_dim`."""
        if self.value_width == self.head_dim:
            return sizes
        return matrix_product(run, self._width_name, self._widths(run.layout), sizes, count)
