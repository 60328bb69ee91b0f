"""How many multiply-adds a plan takes: the products, which are nearly all of a run's time on long enough texts."""

from __future__ import annotations

from tintc.ir import simulator as sim
from tintc.ir.core import Value
from tintc.ir.simulator import SimOp
from tintc.ir.simulator.attention_backward import ROWS
from tintc.ir.simulator.attention_common import AttentionOp
from tintc.runtime.fused.plan import Plan


def multiply_adds(plan: Plan) -> int:
    """Multiply-adds of all products of a plan, pending updates included; causal attention counts the keys it sees."""
    count = _Count(plan)
    return plan.sizes.batch * sum(count.of(op) for op in plan.ops)


class _Count:
    """Goes through the ops in order, per example. pending: inputs of the updates that a weight value carries."""

    def __init__(self, plan: Plan):
        self.plan, self.train = plan, plan.sizes.train
        self.pending: dict[Value, list[Value]] = {}
        self.scores: set[tuple[Value, Value, int]] = set()

    def of(self, op: SimOp) -> int:
        operands, n = self.plan.operands(op), self.plan.lengths[op]
        match op:
            case sim.LinearForward():
                return self._linear(operands[0], n) + self._forward_updates(operands[0], operands[1], n)
            case sim.LinearBackward():
                dout, din = operands[0].type.dims
                updates = len(self.pending.get(operands[0], ()))
                return self._linear(operands[0], n) + updates * n * self.train * (din + dout)
            case sim.LinearDescent():
                return self._descent(op, *operands)
            case sim.AttentionForward():
                return n * (n + 1) * op.n_heads * op.head_dim
            case sim.AttentionBackward():
                return self._attention_backward(op, n)
            case sim.Logits():
                return n * operands[0].type.width * self.plan.sizes.vocab
            case sim.LossGradient():
                return 2 * self.train * operands[0].type.width * self.plan.sizes.vocab
        return 0

    def _linear(self, weights: Value, n: int) -> int:
        dout, din = weights.type.dims
        return n * dout * din

    def _forward_updates(self, weights: Value, x: Value, n: int) -> int:
        """Scores are computed once for all layers that share both inputs."""
        dout, din = weights.type.dims
        total = 0
        for source in self.pending.get(weights, ()):
            total += n * self.train * dout
            if (x, source, n) not in self.scores:
                self.scores.add((x, source, n))
                total += n * self.train * din
        return total

    def _descent(self, op: sim.LinearDescent, weights: Value, dy: Value, x: Value) -> int:
        if op in self.plan.lazy:
            self.pending[op.result] = [*self.pending.get(weights, ()), x]
            return 0
        return self._linear(weights, self.train)

    def _attention_backward(self, op: AttentionOp, n: int) -> int:
        """Blocks of `ROWS` queries see every key up to the block's last."""
        seen = sum((min(start + ROWS, n) - start) * min(start + ROWS, n) for start in range(0, n, ROWS))
        return 2 * seen * op.n_heads * op.head_dim
