"""`sim.attention_backward`: dv_j = sum_t a_tj dy_t, the scores taken as constants (Def. E.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from tintc.ir.core import Value, register
from tintc.ir.functions import merge_heads, split_heads
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.base import Interpretation
from tintc.ir.simulator.interface.cost_model import CostModel
from tintc.ir.simulator.interface.fused_base import FusedRun
from tintc.ir.simulator.interface.literal_base import LiteralRun, Tiles
from tintc.ir.simulator.shared.attention_common import ROWS, AttentionOp
from tintc.ir.structure import AttentionSpec, StructuralBlock


@register("sim.attention_backward")
@dataclass(eq=False, kw_only=True)
class AttentionBackward(AttentionOp):
    """(dy, q, k) -> dv. Literally the forward module's attention, computed again from q and k and used transposed, see
    `structure`."""

    def verify(self) -> None:
        self.expect(len(self.operands) == 3, "takes dy, q and k")
        dy, q, k = (value.type.width for value in self.operands)
        wanted = (self.n_heads * self.value_width, self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim)
        self.expect((dy, q, k) == wanted, f"dy, q and k have the widths {(dy, q, k)}, not {wanted}")
        self.expect(self.result.type.width == self.n_kv_heads * self.value_width, f"the result is {self.result.type}")

    def interpret(self, run: Interpretation, *operands: Tensor) -> Tensor:
        dy, q, k = operands
        dv = self.probabilities(run, q, k).transpose(-1, -2) @ split_heads(dy, self.n_heads)
        return merge_heads(dv.unflatten(1, (self.n_kv_heads, -1)).sum(2))

    def fused(self, run: FusedRun, *operands: Tensor) -> Tensor:
        dy, q, k = operands
        heads, group, length = split_heads(dy, self.n_heads), self.n_heads // self.n_kv_heads, k.shape[1]
        dv = None
        for rows, stop, weights in self.weights_by_rows(run, *self.rotated(run, q, k)):
            part = weights.transpose(-1, -2) @ heads[:, :, rows]
            # Keys after the block's last query have seen none of its gradients.
            part = F.pad(part, (0, 0, 0, length - stop)) if stop < length else part
            dv = part if dv is None else dv + part
        assert dv is not None
        return merge_heads(dv if group == 1 else dv.unflatten(1, (self.n_kv_heads, -1)).sum(2))

    def multiply_adds(self, costs: CostModel, *operands: Value) -> int:
        """Count blocks of `ROWS` queries with every key up to the block's last."""
        n = costs.lengths[self]
        seen = sum((min(start + ROWS, n) - start) * min(start + ROWS, n) for start in range(0, n, ROWS))
        return seen * self.n_heads * (self.head_dim + self.value_width)

    def scratch(self, costs: CostModel, itemsize: int) -> int:
        n = costs.lengths[self]
        return (3 if self.slopes or self.sinks else 2) * itemsize * self.n_heads * min(n, ROWS) * n

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        """Return the module's attention, over the slots [dy | q | k].

        Claim: value head m of token j becomes ``sum_h sum_t a^h_tj dy^h_t`` over the query heads h that read m, which
        is the gradient with respect to v where the scores are constants.

        TinT head h < n_heads: W_q, W_k, the options of the scores and the mask are the forward module's, and so are the
        scores a^h. W_v brings head h of dy. `transpose` uses the scores transposed, after the softmax: at token j the
        head returns ``sum_t a^h_tj dy^h_t``. W_o adds the heads of a group into value head m (`give`). Forward,
        ``y^h_t = sum_j a^h_tj v_j`` is linear in v, so that this is the gradient of ``sum_t <dy_t, y_t>``. QED.

        Dropped are the gradients of q and k, through the scores. For e-hard heads (each position gives at least 1 - e
        to one token) the gradients of a position's scores add up to at most ``4 e |dy_t| max|v|``, so every entry of
        what is dropped is O(e) (Theorem E.5; construction.md, section 4.3; tests/theorems/test_hard_attention.py).
        """
        dy, q, k = self.starts(layout)
        spec = AttentionSpec(
            n_heads=self.chunks(layout),
            width=self.width,
            kind="softmax",
            w_q=self.take(layout, q, self.head_dim, grouped=False, factor=self.scale),
            w_k=self.take_keys(layout, k),
            w_v=self.take(layout, dy, self.value_width, grouped=False),
            w_o=self.give(layout, grouped=True),
            transpose=True,
            **self.score_options(),
        )
        return {self.block_name("attention_backward"): StructuralBlock(spec, "replace")}

    def literal(self, run: LiteralRun, *operands: Tiles) -> Tiles:
        dy, q, k = operands
        e = run.apply(self.block_name("attention_backward"), run.embed([*dy, *q, *k]), mask=run.token_mask(self.window))
        return [run.slot(e, i) for i in range(run.layout.tiles(self.result.type.width))]
