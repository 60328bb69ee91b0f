"""The fused form of a simulator op: token values as plain tensors, weights with pending updates.

Fused execution runs the program by its algebra (construction.md, section 13). Token values are ``[B, n, width]``, where
n is the part of the text that the plan keeps; layout attributes are ignored. An update of a linear layer is either
carried out (*materialised*: per-example weights) or kept as the pair dY, X that defines it (*lazy*)::

    x W'^T + b' = x W^T + b + (x X^T + 1) dY'          dY' = -eta dY, over the train tokens
    dy W'       = dy W + (dy dY'^T) X
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor

from tintc.ir.core import Op, Value
from tintc.ir.inputs import Inputs
from tintc.ir.simulator.interface.chosen_experts import Groups, Routing
from tintc.ir.simulator.interface.cost_model import Deferral

if TYPE_CHECKING:
    from tintc.ir.simulator.interface.base import SimOp


@dataclass(frozen=True)
class Pending:
    """A lazy update: ``dy [B, t, dout]``, zero where nothing is trained, ``x [B, t, din]``; `source` names x in the
    program. rate: minus the learning rate, if it is not multiplied into dy already (then 1).

    bias: how many times the bias receives the step (0 without bias; m in the authors' layout). experts ``[B, t]``: of a
    mixture's layer, the expert that each vector meets; x then has one vector for every ``t / x.shape[1]`` of dy's.
    """

    dy: Tensor
    x: Tensor
    source: Value
    bias: int
    rate: float = 1.0
    experts: Tensor | None = None

    @cached_property
    def groups(self) -> Groups:
        """Return the vectors of all examples by expert, which are sorted once for all tokens that are written."""
        assert self.experts is not None
        return Groups.of(self.experts.flatten())


@dataclass(frozen=True)
class FusedWeights:
    """Weights of a linear layer (``weight [dout, din]``, or ``[B, dout, din]`` once materialised), of one for each
    expert (``[E, dout, din]``) or of a norm (gain in `weight`), and updates not carried out yet."""

    weight: Tensor | None
    bias: Tensor | None
    pending: tuple[Pending, ...] = ()
    owned: bool = False


class FusedRun(Protocol):
    """Everything that the fused form of an op may read (implemented by the runtime)."""

    inputs: Inputs

    def table(self, name: str) -> Tensor: ...

    def stored(self, name: str) -> Mapping[str, Tensor]:
        """Return the stored tensors of a layer by part, as `sim.weights` describes them."""
        ...

    def rate(self, name: str, step: int) -> Tensor | float:
        """Return the learning rate: a number if all examples share it and nobody asks for its gradient, else ``[]`` or
        ``[B]``."""
        ...

    def here(self, op: SimOp) -> slice:
        """Return the positions of the text at which this run computes the op's results."""
        ...

    def lazy(self, op: SimOp) -> bool:
        """Return True if the plan leaves this descent pending."""
        ...

    def frees(self, op: SimOp, value: Value) -> bool:
        """Return True if nothing needs `value` once `op` has read it, so that `op` may write over it.

        Fused forms return memory of their own, or that of such a value.
        """
        ...

    def scores(self, x: Tensor, source: Value, pending: Pending) -> Tensor:
        """Return ``x X^T [B, n, t]``, computed once for all layers that share x and X."""
        ...

    def routing(self, r: Tensor, source: Value, chosen: int) -> Routing:
        """Return the experts that tokens chose, from dense weights ``r [B, n, E]``; computed once for all ops.

        source: names r in the program; chosen: how many a token has.
        """
        ...

    def shared(self, op: SimOp, x: Tensor) -> Tensor | None:
        """Return ``W x + b`` of stored weights, as a part of one product for all ops that share x.

        None: the op is to take its product alone.
        """
        ...

    def apply_rotary(self, heads: Tensor, inv_freq: str, style: str, start: int = 0, back: bool = False) -> Tensor:
        """Return heads ``[B, H, n, d]`` of the tokens from `start` on, rotated by their positions, or turned back.

        They are the heads themselves if `inv_freq` is empty.
        """
        ...

    def score_vector(self, name: str) -> Tensor:
        """Return a stored vector that attention reads besides its operands."""
        ...

    def allowed(self, queries: int, keys: int, window: int = 0) -> Tensor | None:
        """Return which of the first `keys` tokens the last `queries` of them see, ``[B, 1, n, m]`` bool: causal,
        windowed and masked. None if plain causal attention is all there is."""
        ...

    def alibi(self, slopes: tuple[float, ...], scores: Tensor, rows: slice) -> Tensor:
        """Return what ALiBi adds to the scores ``[B, H, n, m]`` of the queries at `rows` with the first m keys, in
        their shape."""
        ...

    def later(self, count: int) -> Tensor:
        """Return plain causal attention among `count` neighbouring positions as an addend of its scores:
        ``[count, count]``, -inf for keys after the query, else 0."""
        ...

    def train(self, length: int, step: int) -> Tensor | None:
        """Return the train mask of a step, ``[B, n, 1]`` in the model's dtype; None if every one of the first n tokens
        is trained on."""
        ...


class FusedForm(Op):
    """The algebra of an op, and what the planner and generation may do with it."""

    CACHED_OPERANDS: ClassVar[tuple[int, ...]] = ()
    """Indices of the operands whose earlier tokens later tokens' results depend on; empty where a token's result is its
    own alone. Generation relies on this."""
    CARRIES_STATE: ClassVar[bool] = False
    """True if later tokens' results depend on earlier ones by a state of one size alone (`carried`)."""
    SHARES_INPUT: ClassVar[bool] = False
    """True if the fused form is a product (W, x) that can be one with others of the same x."""

    def fused(self, run: FusedRun, *operands: Any) -> Any:
        """Return the result by the module's algebra: token values are ``[B, n, width]``, weights are `FusedWeights`."""
        raise NotImplementedError(self.opname)

    def remember(self, run: FusedRun, *operands: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values to keep of these tokens for later ones, ``[B, heads, n, d]`` each.

        operands: those of `CACHED_OPERANDS`.
        """
        raise NotImplementedError(self.opname)

    def continued(self, run: FusedRun, keys: Tensor, values: Tensor, *operands: Tensor) -> Tensor:
        """Return the fused form's result at the last n tokens of a text, from their operands and what is kept of all
        tokens."""
        raise NotImplementedError(self.opname)

    def carried(self, run: FusedRun, state: Tensor | None, *operands: Tensor) -> tuple[Tensor, Tensor]:
        """Return the fused form's result at tokens that follow those that have left `state` (None: they are a text's
        first), and the state that they leave: a new tensor, with a row for each text first."""
        raise NotImplementedError(self.opname)

    def show_fused(self, names: Collection[str], run: FusedRun, *operands: Any) -> dict[str, Tensor]:
        """Return those of `extra_capture_points` that are called so, by name, from the operands of the fused form."""
        raise NotImplementedError(self.opname)

    def fused_showing(self, run: FusedRun, shown: Mapping[str, Tensor], *operands: Any) -> Any:
        """Return the result of the fused form, from what `show_fused` has given where it can, so that autograd gets
        there. shown: that, by name."""
        return self.fused(run, *operands)

    def activation_key(self) -> Hashable | None:
        """Return a key under which a later op may reuse this op's result, e.g. ``("gelu", x)`` for an activation.

        None: not reusable.
        """
        return None

    def needs_activation_key(self) -> Hashable | None:
        """Return the key (`activation_key`) of an earlier result that the fused form can start from.

        The planner then passes that result as one more operand, the last.
        """
        return None

    def weight_operand(self) -> Value | None:
        """Return the weights whose product with token values the fused form takes, and which may carry pending
        updates."""
        return None

    def identity_operand(self) -> Value | None:
        """Return the operand that the result equals where there are no train tokens; None if there is none such."""
        return None

    def deferral(self) -> Deferral | None:
        """Return the update that the fused form can leave pending; None for all ops but those that have one."""
        return None
