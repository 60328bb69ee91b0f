"""`sim.attention_forward`: y_h = softmax(scale q_h k_h^T) v_h (Def. E.1)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tintc.ir.block_specs import AttentionSpec
from tintc.ir.core import Value, register
from tintc.ir.functions import merge_heads, split_heads
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.cost_model import CostModel
from tintc.ir.simulator.interface.fused_base import FusedRun
from tintc.ir.simulator.interface.literal_base import Applied, LiteralRun, Tiles
from tintc.ir.simulator.interface.semantics import Interpretation, Shape
from tintc.ir.simulator.interface.storage import TableCount, attention_cost
from tintc.ir.simulator.shared.attention_common import AttentionOp
from tintc.ir.structure import StructuralBlock


@register("sim.attention_forward")
@dataclass(eq=False, kw_only=True)
class AttentionForward(AttentionOp):
    """(q, k, v) -> y. Literally one TinT softmax attention over the slots [q | k | v], see `structure`."""

    CACHED_OPERANDS: ClassVar[tuple[int, ...]] = (1, 2)

    def verify(self) -> None:
        super().verify()
        self.expect(len(self.operands) == 3, "takes q, k and v")
        q, k, v = (value.type.width for value in self.operands)
        wanted = (self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim, self.n_kv_heads * self.value_width)
        self.expect((q, k, v) == wanted, f"q, k and v have the widths {(q, k, v)}, not {wanted}")
        self.expect(self.result.type.width == self.n_heads * self.value_width, f"the result is {self.result.type}")

    def interpret(self, run: Interpretation, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        values = self.by_query_head(split_heads(v, self.n_kv_heads))
        return merge_heads(self.probabilities(run, q, k) @ values)

    def fused(self, run: FusedRun, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attend(run, *self.rotated(run, q, k), split_heads(v, self.n_kv_heads))

    def attend(self, run: FusedRun, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return ``y [B, n, n_heads * d]`` of the last n tokens, from their query heads and all tokens' keys and
        values."""
        grouped = self.n_kv_heads != self.n_heads
        count = queries.shape[2]
        length = keys.shape[2]
        if self.has_own_scores:
            values = self.by_query_head(values)
            blocks = self.weights_by_rows(run, queries, keys)
            return merge_heads(torch.cat([weights @ values[:, :, :stop] for _, stop, weights in blocks], 2))
        mask = run.allowed(count, length, self.window)
        causal = mask is None and count == length
        # PyTorch's is_causal aligns the first query with the first key; here the last ones belong together.
        if mask is None and 1 < count < length:
            mask = F.pad(run.later(count), (length - count, 0))
        y = F.scaled_dot_product_attention(
            queries, keys, values, mask, is_causal=causal, scale=self.scale, enable_gqa=grouped
        )
        return merge_heads(y)

    def remember(self, run: FusedRun, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return the key heads at their positions, and the value heads."""
        return self.keys(run, k), split_heads(v, self.n_kv_heads)

    def continued(self, run: FusedRun, keys: Tensor, values: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attend(run, self.queries(run, q), keys, values)

    def extra_capture_points(self) -> dict[str, Shape]:
        return {f"layers.{self.layer}.attention": ("B", self.n_heads, "T", "T")}

    def show_fused(self, names: Collection[str], run: FusedRun, q: Tensor, k: Tensor, v: Tensor) -> dict[str, Tensor]:
        """Return the probabilities ``[B, n_heads, T, T]``, which the fused form itself never has in one piece."""
        probabilities = q.new_zeros(q.shape[0], self.n_heads, q.shape[1], q.shape[1])
        for rows, stop, weights in self.weights_by_rows(run, *self.rotated(run, q, k)):
            probabilities[:, :, rows, :stop] = weights
        return dict.fromkeys(names, probabilities)

    def fused_showing(self, run: FusedRun, shown: Mapping[str, Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (weights,) = shown.values()
        values = self.by_query_head(split_heads(v, self.n_kv_heads))
        return merge_heads(weights @ values)

    def shown_scores(self, layout: Layout) -> tuple[slice, ...]:
        """Return the places of the text's own scores: query head h is TinT head h, and prefixes are hidden."""
        tokens = slice(layout.n_prefixes, None)
        return slice(None), slice(self.n_heads), tokens, tokens

    def show_literal(self, names: Collection[str], layout: Layout, applied: Sequence[Applied]) -> dict[str, Tensor]:
        """Return the scores that `shown_scores` has cut out."""
        (scores,) = (application.scores for application in applied)
        assert scores is not None
        return dict.fromkeys(names, scores)

    def multiply_adds(self, costs: CostModel, q: Value, k: Value, v: Value) -> int:
        """Count every query with the keys up to its own."""
        n = costs.lengths[self]
        return n * (n + 1) * self.n_heads * (self.head_dim + self.value_width) // 2

    def scratch(self, costs: CostModel, itemsize: int) -> int:
        result = super().scratch(costs, itemsize)
        if not self.has_own_scores:
            return result
        return result + self.score_copies * itemsize * self.n_heads * self.score_entries(costs.lengths[self])

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        """Return the module's attention.

        Claim: with q, k and v in the slots of token t, the first slots become ``concat_h sum_j a^h_tj v_j`` with
        ``a^h_t = softmax_j(scale <q^h_t, k_j>)``, where k_j and v_j are of the head ``h // group`` that head h reads,
        and j runs over the tokens that t may see.

        TinT head h < n_heads: W_q brings head h of q, times `scale`; W_k and W_v bring head ``h // group`` of k and of
        v (`take`). So the score of t with j is ``scale <q^h_t, k_j>``: a chunk's zeros beside a narrower head add
        nothing. Rotation of q^h and k^h, soft cap, ALiBi and sinks are options of the scores, and act on them as in the
        auxiliary. The mask leaves t the tokens that the auxiliary lets it see, and hides prefixes, whose rows and
        columns are 0; the softmax runs over what is left. TinT heads from n_heads on have v = 0 and return 0. W_o
        writes the results side by side (`give`). QED. It is exact.
        """
        q, k, v = self.starts(layout)
        spec = AttentionSpec(
            n_heads=self.chunks(layout),
            width=self.width,
            kind="softmax",
            w_q=self.take(layout, q, self.head_dim, grouped=False, factor=self.scale),
            w_k=self.take_keys(layout, k),
            w_v=self.take(layout, v, self.value_width, grouped=True),
            w_o=self.give(layout, grouped=False, dim=self.value_width),
            **self.spec_options(),
        )
        return {self.block_name("attention_forward"): StructuralBlock(spec, "replace")}

    def literal(self, run: LiteralRun, q: Tiles, k: Tiles, v: Tiles) -> Tiles:
        e = run.apply(self.block_name("attention_forward"), run.embed([*q, *k, *v]), mask=run.token_mask(self.window))
        return [run.slot(e, i) for i in range(run.layout.tiles(self.result.type.width))]

    def table_count(self, layout: Layout) -> TableCount:
        q = attention_cost(layout)
        return TableCount(q, q, q)
