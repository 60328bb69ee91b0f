"""`sim.logits`: the language-model head, and what all ops share that read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tintc.ir.auxiliary.base import affine
from tintc.ir.block_specs import TensorSpec
from tintc.ir.core import Value, register
from tintc.ir.losses import LogitMap
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.cost_model import CostModel
from tintc.ir.simulator.interface.fused_base import FusedRun
from tintc.ir.simulator.interface.fused_kernels import FEW, widening
from tintc.ir.simulator.interface.literal_base import LiteralRun, Tiles
from tintc.ir.simulator.interface.semantics import Interpretation
from tintc.ir.simulator.interface.storage import Storage


def aligned_scores(x: Tensor, head: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``x head^T + bias [n, V]`` in rows that start at multiples of 64 bytes. Not differentiable.

    A vocabulary of odd size, such as GPT-2's, costs MKL's product up to 40 % otherwise.
    """
    if x.shape[0] <= FEW:
        return widening(x, head, bias)
    vocab = head.shape[0]
    unit = 64 // x.element_size()
    out = x.new_empty(x.shape[0], -(-vocab // unit) * unit)[:, :vocab]
    if bias is None:
        return torch.mm(x, head.t(), out=out)
    return torch.addmm(bias, x, head.t(), out=out)


@dataclass(eq=False, kw_only=True)
class HeadOp(SimOp):
    """An op that reads the scores ``s = E x + b`` of ``tables.<head> [V, D]`` and, if named, ``tables.<bias> [V]``.

    Logits are ``scale s``, or ``c tanh(scale s / c)`` where a soft cap c is given.
    """

    head: str
    bias: str = ""
    scale: float = 1.0
    softcap: float = 0.0

    def table_bias(self, read: Callable[[str], Tensor]) -> Tensor | None:
        """Return the bias as `read` gives a table by name; None if the head has none."""
        if not self.bias:
            return None
        return read(self.bias)

    @property
    def logit_map(self) -> LogitMap:
        """Return the map from scores to logits."""
        return LogitMap(self.scale, self.softcap)

    def verify(self) -> None:
        self.expect(self.softcap >= 0, f"the soft cap is {self.softcap}, it must be positive, or 0 for none")

    def stored(self, storage: Storage) -> dict[str, TensorSpec]:
        return storage.tables(self.head, self.bias)


@register("sim.logits")
@dataclass(eq=False, kw_only=True)
class Logits(HeadOp):
    """(x) -> z, ``[B, T, V]``: the map of the scores ``E x + b``.

    Claim: literally, x is slot 0 of a token, whose first D numbers meet the rows of E, so entry n is
    ``<E_n, x> + b_n``; the table is the one that embeddings look up, where the two are tied. The map acts on every
    entry alone. QED. It is exact. Executors leave out tokens of which no logits are asked for.
    """

    def verify(self) -> None:
        super().verify()
        self.expect(len(self.operands) == 1 and self.result.type.kind == "logits", "maps tokens to logits")

    def multiply_adds(self, costs: CostModel, x: Value) -> int:
        return costs.lengths[self] * x.type.width * costs.sizes.vocab

    def interpret(self, run: Interpretation, x: Tensor) -> Tensor:
        return self.logit_map(affine(x, run.table(self.head), self.table_bias(run.table)))

    def literal(self, run: LiteralRun, x: Tiles) -> Tensor:
        return self.logit_map(run.logits(run.inputs.last(x[0]), self.head, self.bias))

    def fused(self, run: FusedRun, x: Tensor) -> Tensor:
        x = run.inputs.last(x)
        head = run.table(self.head)
        bias = self.table_bias(run.table)
        if torch.is_grad_enabled():
            return self.logit_map(F.linear(x, head, bias))
        scores = aligned_scores(x.flatten(0, 1), head, bias)
        return self.logit_map(scores, overwrite=True).unflatten(0, x.shape[:2])
