"""`sim.norm_descent`: beta <- beta - eta sum_t dy_t (Def. F.5), gamma <- gamma - eta sum_t dy_t f(x_t)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from torch import Tensor

from tintc.ir.block_specs import AttentionSpec, Positions, ProductSpec
from tintc.ir.core import Value, register
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.cost_model import CostModel
from tintc.ir.simulator.interface.fused_base import FusedRun, FusedWeights
from tintc.ir.simulator.interface.literal_base import LiteralRun, PrefixTiles, Tiles
from tintc.ir.simulator.interface.semantics import Interpretation, Weights
from tintc.ir.simulator.ops.linear_descent import descent_block
from tintc.ir.simulator.shared.descent_common import DescentOp, per_example, with_updates
from tintc.ir.simulator.shared.first_order import product
from tintc.ir.simulator.shared.linear_common import bias_chunks, main_chunks
from tintc.ir.simulator.shared.norm_common import check_norm, has
from tintc.ir.simulator.shared.shared_vectors import gather_blocks, gathered
from tintc.ir.structure import StructuralBlock, chunk_map, indicator

PARTS = (("bias",), ("gain",), ("gain", "bias"))


@cache
def gain_descent_block(layout: Layout, bias: bool) -> StructuralBlock:
    """Return the descent of a gain that is kept as a vector, and of the bias.

    Claim: with dy_t in slot 0 and ``dy_t f(x_t)`` in slot 1 of the tokens, the output at prefix 0 is
    ``-sum_t dy_t f(x_t)`` in slot 0, where the gain stands, and ``-sum_t dy_t`` where the bias stands; both sums over
    train tokens.

    Bias-head rule for all used heads: query e_k for prefix k, key e_0 for tokens, W_q = W_k = 0, so the score is 1 for
    prefix 0 with every train token, 0 for the other prefixes. W_v takes, negated, chunk j of slot 1 to head j, and
    chunk b of slot 0 to bias head b; W_o is the identity on these heads. QED.
    """
    heads = layout.n_heads
    width = layout.d_h
    shards = layout.shards
    gains = main_chunks(layout)[:shards]
    biases = range(0)
    if bias:
        biases = bias_chunks(layout)
    used = [*gains, *biases]
    take = {(head, shards + head): -1.0 for head in gains} | {(head, b): -1.0 for b, head in enumerate(biases)}
    lam = indicator(heads, used)
    spec = AttentionSpec(
        n_heads=heads,
        width=width,
        kind="linear",
        w_q=None,
        w_k=None,
        w_v=(chunk_map(heads, width, take),),
        w_o=(chunk_map(heads, width, {(head, head): 1.0 for head in used}),),
        positions_q=Positions("prefix", lam),
        positions_k=Positions("tokens", lam),
        constant=range(heads),
    )
    return StructuralBlock(spec, "update")


@register("sim.norm_descent")
@dataclass(eq=False, kw_only=True)
class NormDescent(DescentOp):
    """(W, dy) or (W, dy, f(x)) -> W'. parts: what is updated; the gain needs f(x), and to be kept as a vector.

    Literally `structure`: the bias alone descends as a linear layer's, the gain by sums of dy f(x).
    """

    parts: tuple[str, ...] = ("bias",)

    def verify(self) -> None:
        self.expect(self.parts in PARTS, f"parts are {self.parts}, they must be bias, gain or both")
        gain = "gain" in self.parts
        self.expect(len(self.operands) == 2 + gain, "takes weights, dy and, for the gain, f(x)")
        check_norm(self, self.operands[0], self.operands[1])
        self.expect(not gain or has(self.operands[0], "vector"), "the norm has no gain that could descend")
        self.expect("bias" not in self.parts or has(self.operands[0], "bias"), "the norm has no bias to descend")
        self.expect(self.operands[1].type == self.operands[-1].type, "dy and f(x) have one width")
        self.expect(self.result.type == self.operands[0].type, "returns weights of the type it takes")

    def interpret(self, run: Interpretation, w: Weights, dy: Tensor, normed: Tensor | None = None) -> Weights:
        rate = self.factor(run)
        dy = dy * run.inputs.train_mask(self.step)[..., None]
        gain = w.weight
        bias = w.bias
        if "gain" in self.parts:
            assert gain is not None and normed is not None
            gradient = self._over_heads((dy * normed).sum(1))
            gain = gain - per_example(rate, gradient) * gradient
        if "bias" in self.parts:
            assert bias is not None
            gradient = self._over_heads(dy.sum(1))
            bias = bias - per_example(rate, gradient) * gradient
        return Weights(gain, bias)

    def _over_heads(self, gradient: Tensor) -> Tensor:
        """Return the sum ``[B, d]`` over the heads that share a vector, of ``[B, D]``."""
        return gradient.unflatten(-1, (-1, self.operands[0].type.width)).sum(1)

    def fused(self, run: FusedRun, w: FusedWeights, dy: Tensor, normed: Tensor | None = None) -> FusedWeights:
        rate = self.factor(run)
        gradients = {part: self.gradient(part, run, w, dy, normed) for part in self.parts}
        return with_updates(w, {part: g * -per_example(rate, g) for part, g in gradients.items()})

    def updated_parts(self) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(self.parts, self.operands[0].type.dims)

    def gradient(self, part: str, run: FusedRun, w: FusedWeights, dy: Tensor, normed: Tensor | None = None) -> Tensor:
        mask = run.train(dy.shape[1], self.step)
        if mask is not None:
            dy = dy * mask
        if part == "bias":
            return self._over_heads(dy.sum(1))
        assert normed is not None
        return self._over_heads((dy * normed).sum(1))

    def entries(self, costs: CostModel, result: Value) -> int:
        """Count gain and bias of each example."""
        return len(self.parts) * result.type.width

    def slots(self, layout: Layout) -> int:
        return 1 + ("gain" in self.parts)

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        """Return the blocks of the literal form, by name.

        Claim: they add ``-rate sum_t dy_t`` to the bias and ``-rate sum_t dy_t f(x_t)`` to the gain, over the step's
        train tokens.

        The bias alone: the linear descent without main heads. By the claim of `descent_block`, its bias heads sum -dy_t
        into the chunks of prefix 0 that hold the bias; all other chunks receive 0. With the gain: the product of slots
        makes ``dy f(x)``, and `gain_descent_block` sums both; where heads share a gain, `gathered` adds their parts of
        ``dy f(x)`` and of dy before. The module's rate multiplies and the ``update`` gate adds. Both gradients are
        exact: y = gamma f(x) + beta is linear in them. QED.
        """
        if "gain" not in self.parts:
            return {self._block: descent_block(layout, main=False, bias=True)}
        block = gain_descent_block(layout, "bias" in self.parts)
        blocks = {self._block: block, "product_0_1": StructuralBlock(ProductSpec(0, 1))}
        return blocks | gather_blocks(layout, *self.operands[:2])

    @property
    def _block(self) -> str:
        """Return the name of the block that descends: ``norm_descent`` for the bias alone, else with its parts."""
        if self.parts == ("bias",):
            return "norm_descent"
        return "_".join(("norm_descent", *self.parts))

    def literal(self, run: LiteralRun, w: PrefixTiles, dy: Tiles, normed: Tiles | None = None) -> PrefixTiles:
        rate = self.factor(run)
        slots = dy
        if normed is not None:
            products = [product(run, tile, factor) for tile, factor in zip(dy, normed, strict=True)]
            slots = [gathered(run, tiles, *self.operands[:2]) for tiles in (dy, products)]
        e = run.embed(slots, w.rows[0][0])
        block = self._block
        return PrefixTiles([[run.prefix(run.apply(block, e, mask=run.train_mask(self.step), rate=rate))]])
