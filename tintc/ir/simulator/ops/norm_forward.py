"""`sim.norm_forward`: y = gamma * f(x) + beta (Defs. F.1, J.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from tintc.ir.auxiliary.norm import per_token
from tintc.ir.core import register
from tintc.ir.functions import normalise_groups
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.base import Interpretation, TableCount, Weights, attention_cost
from tintc.ir.simulator.interface.fused_base import FusedRun, FusedWeights
from tintc.ir.simulator.interface.literal_base import LiteralRun, PrefixTiles, Tiles
from tintc.ir.simulator.ops.linear_forward import forward_blocks, forward_tiles
from tintc.ir.simulator.shared.linear_common import weight_tiles
from tintc.ir.simulator.shared.norm_common import NormOp, check_norm, has, vector_blocks, vectors
from tintc.ir.structure import StructuralBlock


def fused_norm(kind: str, eps: float, x: Tensor, gain: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return ``gain * f(x) + bias``, by one kernel where PyTorch has it.

    ``x [B, n, D]``; gain and bias, if any, ``[D]`` or, per example, ``[B, D]``.
    """
    # With one example its own vectors are everybody's, which the kernels take.
    gain, bias = (v[0] if v is not None and v.shape[:-1] == (1,) else v for v in (gain, bias))
    if gain is not None and gain.dim() == 2:
        y = fused_norm(kind, eps, x, None, None) * gain[:, None]
        return y if bias is None else y + per_token(bias)
    own = bias if bias is not None and bias.dim() == 1 else None
    shape = x.shape[-1:]
    if kind == "layer":
        y = F.layer_norm(x, shape, gain, own, eps)
    else:
        y = F.rms_norm(x, shape, gain, eps)
        y = y if own is None else y + own
    return y if bias is None or own is not None else y + bias[:, None]


@register("sim.norm_forward")
@dataclass(eq=False, kw_only=True)
class NormForward(NormOp):
    """(x) or (W, x) -> y = gain * f(x) + bias. Literally a group norm, then the affine part, see `structure`."""

    def verify(self) -> None:
        self.expect(len(self.operands) in (1, 2), "takes x, or weights and x")
        if len(self.operands) == 2:
            check_norm(self, self.operands[0], self.operands[1])
        self.expect(self.operands[-1].type == self.result.type, "keeps the width")

    def interpret(self, run: Interpretation, *operands: Weights | Tensor) -> Tensor:
        x = operands[-1]
        assert isinstance(x, Tensor)
        y = normalise_groups(self.kind, x, self.eps, self.groups)
        if len(operands) == 1:
            return y
        w = operands[0]
        assert isinstance(w, Weights)
        y = y * per_token(w.weight) if w.weight is not None else y
        return y + per_token(w.bias) if w.bias is not None else y

    def fused(self, run: FusedRun, *operands: FusedWeights | Tensor) -> Tensor:
        x = operands[-1]
        assert isinstance(x, Tensor)
        w = operands[0] if len(operands) == 2 else FusedWeights(None, None)
        assert isinstance(w, FusedWeights)
        if self.groups == 1:
            return fused_norm(self.kind, self.eps, x, w.weight, w.bias)
        y = fused_norm(self.kind, self.eps, x.unflatten(-1, (self.groups, -1)), None, None).flatten(-2)
        y = y if w.weight is None else y * w.weight
        return y if w.bias is None else y + w.bias

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        """Return the blocks of the literal form, by name.

        Claim: they give ``gamma * f(x) + beta`` at every token.

        The group norm turns the slots of x into those of f(x), and its gate keeps the prefixes. Then the affine part:

        A gain that stays is the linear layer ``diag(gamma)`` with the bias beta: by the claim of `forward_block`,
        coordinate r becomes ``<gamma_r e_r, f(x)> + beta_r``. Of a value in several tiles, tiles off the diagonal are
        zero, and add nothing.

        A gain that descends is a vector: `vectors_block` brings gamma and beta to slots of every token, the product of
        slots is ``f(x) * gamma``, and a residual connection adds beta. QED. It is exact.
        """
        blocks = {self.name("norm", layout): self.forward_block(layout)}
        if len(self.operands) == 2 and has(self.operands[0], "vector"):
            return blocks | vector_blocks(layout, self.operands[0])
        if len(self.operands) == 2:
            copies = 1 if has(self.operands[0], "bias") else 0
            blocks |= forward_blocks(layout, copies)
            if copies >= weight_tiles(layout, self.operands[0])[1]:
                del blocks["linear_forward"]
        return blocks

    def slots(self, layout: Layout) -> int:
        return max(self.spread(layout), 2 if has(self.operands[0], "vector") else 1)

    def scores(self, layout: Layout, run: Interpretation, *operands: Weights | Tensor) -> Sequence[Tensor]:
        """Return ``gamma_r f(x)_r`` for every r: row r of diag(gamma) has one entry. Vectors have constant scores
        only."""
        if len(operands) == 1 or has(self.operands[0], "vector"):
            return ()
        w, x = operands
        assert isinstance(w, Weights) and isinstance(x, Tensor)
        y = normalise_groups(self.kind, x, self.eps, self.groups)
        return (y if w.weight is None else y * per_token(w.weight),)

    def literal(self, run: LiteralRun, *operands: PrefixTiles | Tiles) -> Tiles:
        x = operands[-1]
        assert isinstance(x, list)
        if len(operands) == 1:
            return self.normalised(run, x)
        w = operands[0]
        assert isinstance(w, PrefixTiles)
        normed = self.normalised(run, x, w)
        if has(self.operands[0], "vector"):
            gain, bias = vectors(run, self.operands[0], w, normed[0])
            y = run.slot(run.apply("product_0_1", run.embed([normed[0], gain])))
            return [y if bias is None else y + bias]
        return forward_tiles(run, w, 1 if has(self.operands[0], "bias") else 0, normed)

    def table_count(self, layout: Layout) -> TableCount:
        q = attention_cost(layout)
        return TableCount(q, q + 2 * layout.d_sim * layout.n_heads, q)
