"""The base of simulator ops: an interpreter, a literal form, a fused form, the tensors these need, and counts.

An op's template file is the only place that knows any of these. The interpreter works on plain matrices and vectors and
is the semantics. The literal form drives a `LiteralRun`, which assembles embeddings ``[B, T_sim, D_sim]`` and applies
structural blocks to them (`literal_base`). The fused form computes the same by the module's algebra.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tintc.ir.core import Op, Value
from tintc.ir.inputs import Inputs
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.fused_base import FusedRun
from tintc.ir.simulator.interface.fused_counts import Deferral, FusedCounts
from tintc.ir.simulator.interface.literal_base import Applied, LiteralRun
from tintc.ir.softmax_heads import is_linear, softened
from tintc.ir.structure import Block, TensorSpec


@dataclass(frozen=True)
class Weights:
    """Weights in the interpreter: ``weight [dout, din]`` of a linear layer or gain ``[D]`` of a norm, and a bias.

    They have a leading batch dimension once they have been updated.
    """

    weight: Tensor | None
    bias: Tensor | None


Shape = tuple[int | str, ...]
"""Sizes of a tensor: ``B`` is the number of examples, ``T`` of tokens."""


@dataclass(frozen=True)
class Interpretation:
    """Everything that the interpreter of an op may read: the simulator's tensors by state-dict name, in fp64, and the
    inputs.

    inner_lr: overrides every stored rate, ``[B]``, or None.
    """

    tensors: Mapping[str, Tensor]
    inputs: Inputs
    inner_lr: Tensor | None = None

    def rate(self, name: str, step: int) -> Tensor:
        """Return the learning rate of a parameter in a step: ``[]`` or ``[B]``."""
        return self.tensors[f"rates.{name}"][step] if self.inner_lr is None else self.inner_lr


@dataclass(frozen=True)
class Storage:
    """Everything that an op may read to describe the tensors it has in the artefact.

    parameter: a parameter by the name the program gives it; n_steps, lr: of the descent.
    """

    layout: Layout
    parameter: Callable[[str], TensorSpec]
    n_steps: int
    lr: float

    def tables(self, *names: str) -> dict[str, TensorSpec]:
        """Return the parameters that are stored as they are, by state-dict name; empty names are left out."""
        return {f"tables.{name}": self.parameter(name) for name in names if name}

    def rates(self) -> TensorSpec:
        """Return the learning rate of every step, ``[N]``."""
        return TensorSpec((self.n_steps,), lambda: torch.full((self.n_steps,), self.lr, dtype=torch.float64))


@dataclass(frozen=True)
class TableCount:
    """Parameters by the paper's table (construction.md, section 11)."""

    forward: int = 0
    backward: int = 0
    descent: int = 0

    def __add__(self, other: TableCount) -> TableCount:
        return TableCount(self.forward + other.forward, self.backward + other.backward, self.descent + other.descent)

    @property
    def total(self) -> int:
        return self.forward + self.backward + self.descent


def split_cost(layout: Layout) -> int:
    """Return Q_split of the table: one split-wise and one dimension-wise operation."""
    return layout.d_sim**2 // layout.n_heads + layout.d_sim * layout.n_heads


def attention_cost(layout: Layout) -> int:
    """Return Q of the table: one TinT attention, four split operations and three position matrices."""
    return 4 * split_cost(layout) + 3 * layout.sim_seq_len * layout.d_sim // layout.n_heads


@dataclass(eq=False, kw_only=True)
class SimOp(Op):
    """An op of the simulator dialect.

    origin: the auxiliary value or layer it simulates; phase: forward, loss, backward or descent; step: which pass or
    gradient step; layer: the auxiliary's layer, -1 outside; role: as in the auxiliary dialect. `write` is added by the
    slot allocator: the memory slots of each token result, one per tile. `softmax` is added by calibration where linear
    attention is realised by softmax heads: their constants, see `tintc.ir.softmax_heads.softened`.
    """

    origin: str = ""
    phase: str = "forward"
    step: int = 0
    layer: int = -1
    role: str = ""
    write: tuple[tuple[int, ...], ...] = ()
    softmax: tuple[float, ...] = ()

    def interpret(self, run: Interpretation, *operands: Any) -> Any:
        """Return the result (a tuple if there are several) from interpreter values of the operands."""
        raise NotImplementedError(self.opname)

    def literal(self, run: LiteralRun, *operands: Any) -> Any:
        """Return the same by literal execution: token values are `Tiles`, weights are `PrefixTiles`."""
        raise NotImplementedError(self.opname)

    def fused(self, run: FusedRun, *operands: Any) -> Any:
        """Return the same by the module's algebra: token values are ``[B, n, width]``, weights are `FusedWeights`."""
        raise NotImplementedError(self.opname)

    def remembers(self) -> tuple[int, ...]:
        """Return the indices of the operands whose earlier tokens later tokens' results depend on.

        Empty where a token's result is its own alone. Generation relies on this.
        """
        return ()

    def remember(self, run: FusedRun, *operands: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values to keep of these tokens for later ones, ``[B, heads, n, d]`` each.

        operands: those of `remembers`.
        """
        raise NotImplementedError(self.opname)

    def continued(self, run: FusedRun, keys: Tensor, values: Tensor, *operands: Tensor) -> Tensor:
        """Return the fused form's result at the last n tokens of a text, from their operands and what is kept of all
        tokens."""
        raise NotImplementedError(self.opname)

    def stored(self, storage: Storage) -> dict[str, TensorSpec]:
        """Return the tensors of the artefact that the op reads, by state-dict name, but for structural ones."""
        return {}

    def rates(self) -> tuple[str, ...]:
        """Return the names of the stored rates that the op reads, at its step."""
        return ()

    def of_its_step(self) -> bool:
        """Return True if the result depends on the gradient step: on its learning rate or its train tokens.

        Common-subexpression elimination never merges such ops across steps.
        """
        return False

    def check(self, inputs: Inputs, stored: Callable[[str], Tensor]) -> None:
        """Raise `InputError` for inputs that the op cannot take; `stored` gives the tensors of `SimOp.stored`."""

    def computes(self) -> Hashable | None:
        """Return a key under which a later op may reuse this op's result, e.g. ``("gelu", x)`` for an activation.

        None: not reusable.
        """
        return None

    def reuses(self) -> Hashable | None:
        """Return the key (see `computes`) of an earlier result that the fused form can start from instead of computing
        it again.

        The planner then passes that result as one more operand, the last.
        """
        return None

    def shows(self) -> dict[str, Shape]:
        """Return what can be captured of the op besides its results: names of capture points, without pass and step,
        and shapes."""
        return {}

    def show_fused(self, name: str, run: FusedRun, *operands: Any) -> Tensor:
        """Return the one of `shows` called `name`, from the operands of the fused form."""
        raise NotImplementedError(self.opname)

    def fused_showing(self, run: FusedRun, shown: Mapping[str, Tensor], *operands: Any) -> Any:
        """The fused form that reads what `show_fused` has given where it can, by name, so that autograd gets there."""
        return self.fused(run, *operands)

    def shown_scores(self, layout: Layout) -> tuple[slice, ...] | None:
        """Which of the scores ``[B, H, T_sim, T_sim]`` of its attention `show_literal` shows; None if none."""
        return None

    def show_literal(self, name: str, layout: Layout, applied: Sequence[Applied]) -> Tensor:
        """Return the one of `shows` called `name`, from what the blocks of the literal form gave, in their order."""
        raise NotImplementedError(self.opname)

    def untrained(self) -> Value | None:
        """Return the operand that the result equals where there are no train tokens; None if there is none such."""
        return None

    def deferral(self) -> Deferral | None:
        """Return the update that the fused form can leave pending; None for all ops but those that have one."""
        return None

    def multiplies(self) -> Value | None:
        """Return the weights whose product with token values the fused form takes, and which may carry pending
        updates."""
        return None

    def holds(self) -> str | None:
        """Return the name of the weights whose stored values are the result; None if they are not."""
        return None

    def updates(self) -> str | None:
        """Return the name of the weights whose values after a step of descent are the result; None if they are not."""
        return None

    def descending(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the parts of those weights that descend, by part."""
        return {}

    def shares_input(self) -> bool:
        """Return True if the fused form is a product (W, x) that can be one with others of the same x."""
        return False

    def multiply_adds(self, counts: FusedCounts, *operands: Value) -> int:
        """Count the multiply-adds of the fused form's products, per example. Called once per op, in the program's
        order."""
        return 0

    def entries(self, counts: FusedCounts, result: Value) -> int:
        """Count the entries of one of the results in fused execution, per example."""
        return counts.lengths[self] * result.type.width

    def scratch(self, counts: FusedCounts, itemsize: int) -> int:
        """Return the bytes per example of what exists only while the fused form runs. itemsize: bytes of a number in
        the dtype."""
        return itemsize * counts.lengths[self] * self.results[0].type.width

    def planned(self, layout: Layout) -> SimOp:
        """Return the op with what planning the layout adds to it: the tiles of the weights it holds or reads."""
        return self

    def structure(self, layout: Layout) -> dict[str, Block]:
        """Return the structural blocks that the literal form applies, by the names it calls them; linear attention is
        linear."""
        return {}

    def realised(self, layout: Layout) -> dict[str, tuple[str, Block]]:
        """Return the same blocks as they are built, each with its name under ``structure``.

        They differ where `softmax` is set: linear attention is then by softmax heads.
        """
        blocks = self.structure(layout)
        if not self.softmax:
            return {name: (name, block) for name, block in blocks.items()}
        right = len(self.softmax) == 3 and all(value > 0 for value in self.softmax)
        self.expect(right, "the constants of softmax heads are three positive numbers")
        return {
            name: softened(name, block, layout, self.softmax) if is_linear(block) else (name, block)
            for name, block in blocks.items()
        }

    def blocks(self, layout: Layout) -> dict[str, Block]:
        """Return the blocks that are built, by their name under ``structure``."""
        return dict(self.realised(layout).values())

    def scores(self, layout: Layout, run: Interpretation, *operands: Any) -> Iterable[Tensor]:
        """Return the scores of the literal form's linear heads, in tensors of any shape, from interpreter values of the
        operands.

        Constant scores and copies are left out.
        """
        return ()

    def slots(self, layout: Layout) -> int:
        """Return the most slots that the literal form needs in one embedding."""
        return 1

    def table_count(self, layout: Layout) -> TableCount:
        """Return the parameters by the paper's table; forward ops count for their backward and descent too."""
        return TableCount()

    def head_dims(self) -> set[int]:
        """Return the widths of the chunks in which the literal form views an embedding; slots begin at multiples of
        them."""
        return set()
