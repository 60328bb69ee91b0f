"""`sim.norm_forward`: y = gamma * f(x) + beta (Defs. F.1, J.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tintc.ir.auxiliary.norm import per_token
from tintc.ir.core import register
from tintc.ir.functions import normalise_groups
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.fused_base import FusedRun, FusedWeights
from tintc.ir.simulator.interface.literal_base import LiteralRun, PrefixTiles, Tiles, residual
from tintc.ir.simulator.interface.semantics import Interpretation, Weights
from tintc.ir.simulator.interface.storage import TableCount, attention_cost
from tintc.ir.simulator.ops.linear_forward import forward_blocks, forward_name, forward_tiles
from tintc.ir.simulator.shared.first_order import product
from tintc.ir.simulator.shared.linear_common import copies_of_bias, weight_tiles
from tintc.ir.simulator.shared.norm_common import NormOp, check_norm, for_all_heads, has, vector_blocks, vectors
from tintc.ir.simulator.shared.shared_vectors import spread_blocks, spread_out
from tintc.ir.structure import StructuralBlock


def fused_norm(kind: str, eps: float, x: Tensor, gain: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return ``gain * f(x) + bias``, by one kernel where PyTorch has it.

    ``x [B, n, D]``; gain and bias, if any, ``[D]`` or, per example, ``[B, D]``.
    """
    gain = _shared_by_examples(gain)
    bias = _shared_by_examples(bias)
    if gain is not None and gain.dim() == 2:
        return _plus(fused_norm(kind, eps, x, None, None) * per_token(gain), bias)
    shape = x.shape[-1:]
    if kind == "rms":
        return _plus(F.rms_norm(x, shape, gain, eps), bias)
    if bias is not None and bias.dim() == 2:
        return _plus(F.layer_norm(x, shape, gain, None, eps), bias)
    return F.layer_norm(x, shape, gain, bias, eps)


def _shared_by_examples(vector: Tensor | None) -> Tensor | None:
    """Return the vector, without the batch dimension of one example: its own vectors are everybody's, which the kernels
    take."""
    if vector is not None and vector.shape[:-1] == (1,):
        return vector[0]
    return vector


def _plus(y: Tensor, bias: Tensor | None) -> Tensor:
    """Return y ``[B, n, D]`` plus the bias ``[D]`` or ``[B, D]``, if there is one."""
    if bias is None:
        return y
    return y + per_token(bias)


@register("sim.norm_forward")
@dataclass(eq=False, kw_only=True)
class NormForward(NormOp):
    """(x) or (W, x) -> y = gain * f(x) + bias. Literally a group norm, then the affine part, see `structure`."""

    def verify(self) -> None:
        self.expect(len(self.operands) in (1, 2), "takes x, or weights and x")
        if len(self.operands) == 2:
            check_norm(self, self.operands[0], self.operands[1])
        self.expect(self.operands[-1].type == self.result.type, "keeps the width")

    def interpret(self, run: Interpretation, *operands: Any) -> Tensor:
        w, x = self.weights_and(operands, Weights(None, None))
        y = normalise_groups(self.kind, x, self.eps, self.groups)
        return self._affine(y, w.weight, w.bias)

    def _affine(self, y: Tensor, gain: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return ``gain * y + bias``; heads may share them."""
        width = self.result.type.width
        if gain is not None:
            y = y * for_all_heads(gain, width)
        if bias is not None:
            y = y + for_all_heads(bias, width)
        return y

    def fused(self, run: FusedRun, *operands: Any) -> Tensor:
        w, x = self.weights_and(operands, FusedWeights(None, None))
        if self.groups == 1:
            return fused_norm(self.kind, self.eps, x, w.weight, w.bias)
        y = fused_norm(self.kind, self.eps, x.unflatten(-1, (self.groups, -1)), None, None).flatten(-2)
        return self._affine(y, w.weight, w.bias)

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        """Return the blocks of the literal form, by name.

        Claim: they give ``gamma * f(x) + beta`` at every token.

        The group norm turns the slots of x into those of f(x), and its gate keeps the prefixes. Then the affine part:

        A gain that stays is the linear layer ``diag(gamma)`` with the bias beta: by the claim of `forward_block`,
        coordinate r becomes ``<gamma_r e_r, f(x)> + beta_r``. Of a value in several tiles, tiles off the diagonal are
        zero, and add nothing.

        A gain that descends is a vector: `vectors_block` brings gamma and beta to slots of every token, `spread_out`
        to all heads where they share it, the product of slots is ``f(x) * gamma``, and a residual connection adds beta.
        QED. It is exact.
        """
        blocks = {self.name("norm", layout): self.forward_block(layout)}
        if self.weights is None:
            return blocks
        if has(self.weights, "vector"):
            blocks |= spread_blocks(layout, self.weights, self.result)
            return blocks | vector_blocks(layout, self.weights)
        copies = copies_of_bias(self.weights.type)
        blocks |= forward_blocks(layout, copies)
        if copies >= weight_tiles(layout, self.weights)[1]:
            del blocks[forward_name(bias=False)]
        return blocks

    def slots(self, layout: Layout) -> int:
        return max(self.spread(layout), 1 + has(self.operands[0], "vector"))

    def scores(self, layout: Layout, run: Interpretation, *operands: Any) -> Sequence[Tensor]:
        """Return ``gamma_r f(x)_r`` for every r: row r of diag(gamma) has one entry. Vectors have constant scores
        only."""
        if self.weights is None or has(self.weights, "vector"):
            return ()
        w, x = self.weights_and(operands, Weights(None, None))
        y = normalise_groups(self.kind, x, self.eps, self.groups)
        if w.weight is None:
            return (y,)
        return (y * per_token(w.weight),)

    def literal(self, run: LiteralRun, *operands: Any) -> Tiles:
        w, x = self.weights_and(operands, PrefixTiles([]))
        normed = self.normalised(run, x, w)
        if self.weights is None:
            return normed
        if not has(self.weights, "vector"):
            return forward_tiles(run, w, copies_of_bias(self.weights.type), normed)
        gain, bias = vectors(run, self.weights, w, normed[0])
        gains = spread_out(run, gain, self.weights, self.result)
        y = [product(run, tile, factor) for tile, factor in zip(normed, gains, strict=True)]
        if bias is None:
            return y
        return residual(y, spread_out(run, bias, self.weights, self.result))

    def table_count(self, layout: Layout) -> TableCount:
        q = attention_cost(layout)
        return TableCount(q, q + 2 * layout.d_sim * layout.n_heads, q)
