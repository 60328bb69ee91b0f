"""What every simulator op has: an interpreter, a literal form, a fused form, the tensors these need, and counts.

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
from tintc.ir.simulator.fused_base import FusedRun
from tintc.ir.simulator.fused_counts import Deferral, FusedCounts
from tintc.ir.simulator.literal_base import Applied, LiteralRun
from tintc.ir.softmax_heads import is_linear, softened
from tintc.ir.structure import Block, TensorSpec


@dataclass(frozen=True)
class Weights:
    """Weights as the interpreter sees them: ``weight [dout, din]`` of a linear layer or gain ``[D]`` of a norm, and a
    bias; with a leading batch dimension once they have been updated."""

    weight: Tensor | None
    bias: Tensor | None


Shape = tuple[int | str, ...]
"""Sizes of a tensor: ``B`` is the number of examples, ``T`` of tokens."""


@dataclass(frozen=True)
class Interpretation:
    """What the interpreter of an op may read: the simulator's tensors by state-dict name, in fp64, and the inputs.

    inner_lr: overrides every stored rate, ``[B]``, or None.
    """

    tensors: Mapping[str, Tensor]
    inputs: Inputs
    inner_lr: Tensor | None = None

    def rate(self, name: str, step: int) -> Tensor:
        """Learning rate of a parameter in a step: ``[]`` or ``[B]``."""
        return self.tensors[f"rates.{name}"][step] if self.inner_lr is None else self.inner_lr


@dataclass(frozen=True)
class Storage:
    """What an op may read to describe the tensors it has in the artefact.

    parameter: a parameter by the name the program gives it; n_steps, lr: of the descent.
    """

    layout: Layout
    parameter: Callable[[str], TensorSpec]
    n_steps: int
    lr: float

    def tables(self, *names: str) -> dict[str, TensorSpec]:
        """Parameters that are stored as they are, those of empty names left out."""
        return {f"tables.{name}": self.parameter(name) for name in names if name}

    def rates(self) -> TensorSpec:
        """The learning rate of every step, ``[N]``."""
        return TensorSpec((self.n_steps,), lambda: torch.full((self.n_steps,), self.lr, dtype=torch.float64))


@dataclass(frozen=True)
class TableCount:
    """Parameters by the paper's table (spec, section 11)."""

    forward: int = 0
    backward: int = 0
    descent: int = 0

    def __add__(self, other: TableCount) -> TableCount:
        return TableCount(self.forward + other.forward, self.backward + other.backward, self.descent + other.descent)

    @property
    def total(self) -> int:
        return self.forward + self.backward + self.descent


def split_cost(layout: Layout) -> int:
    """Q_split of the table: one split-wise and one dimension-wise operation."""
    return layout.d_sim**2 // layout.n_heads + layout.d_sim * layout.n_heads


def attention_cost(layout: Layout) -> int:
    """Q of the table: one TinT attention, four split operations and three position matrices."""
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
        """The result (a tuple if there are several) from interpreter values of the operands."""
        raise NotImplementedError(self.opname)

    def literal(self, run: LiteralRun, *operands: Any) -> Any:
        """The same in literal execution: token values are `Tiles`, weights are `PrefixTiles`."""
        raise NotImplementedError(self.opname)

    def fused(self, run: FusedRun, *operands: Any) -> Any:
        """The same by the module's algebra: token values are ``[B, n, width]``, weights are `FusedWeights`."""
        raise NotImplementedError(self.opname)

    def remembers(self) -> tuple[int, ...]:
        """Which operands the results at later tokens depend on; none where a token's result is its own alone.

        Generation and runs by parts of the text (`tintc.runtime.fused.parts`) rely on this and on `adds_up`.
        """
        return ()

    def adds_up(self) -> bool:
        """Whether the fused form on some of the tokens (with what it `remembers` of all before) gives terms of the
        results at these and earlier tokens, to be added to those of the other tokens."""
        return False

    def remember(self, run: FusedRun, *operands: Tensor) -> tuple[Tensor, Tensor]:
        """What is kept of these tokens for later ones, from the operands of `remembers`: ``[B, heads, n, d]`` each."""
        raise NotImplementedError(self.opname)

    def continued(self, run: FusedRun, keys: Tensor, values: Tensor, *operands: Tensor) -> Tensor:
        """The fused form on the last n tokens of a text, from their operands and what is kept of all tokens."""
        raise NotImplementedError(self.opname)

    def stored(self, storage: Storage) -> dict[str, TensorSpec]:
        """The tensors of the artefact that the op reads, by state-dict name, structural ones aside."""
        return {}

    def rates(self) -> tuple[str, ...]:
        """Names of the stored rates of which the op reads its step's."""
        return ()

    def of_its_step(self) -> bool:
        """Whether the op reads what belongs to its step, its rate or its train tokens: in another it is another op."""
        return False

    def check(self, inputs: Inputs, stored: Callable[[str], Tensor]) -> None:
        """Raise `InputError` for inputs that the op cannot take; `stored` gives the tensors of `SimOp.stored`."""

    def computes(self) -> Hashable | None:
        """What the result is, for ops that can start from it in fused execution; None if none can."""
        return None

    def reuses(self) -> Hashable | None:
        """What (see `computes`) the fused form takes as one more operand where an earlier op has computed it."""
        return None

    def shows(self) -> dict[str, Shape]:
        """What can be seen of the op besides its results: names of capture points, pass and step aside, and shapes."""
        return {}

    def show_fused(self, name: str, run: FusedRun, *operands: Any) -> Tensor:
        """One of `shows` from the operands of the fused form."""
        raise NotImplementedError(self.opname)

    def fused_showing(self, run: FusedRun, shown: Mapping[str, Tensor], *operands: Any) -> Any:
        """The fused form that reads what `show_fused` has given where it can, by name, so that autograd gets there."""
        return self.fused(run, *operands)

    def shown_scores(self, layout: Layout) -> tuple[slice, ...] | None:
        """Which of the scores ``[B, H, T_sim, T_sim]`` of its attention `show_literal` shows; None if none."""
        return None

    def show_literal(self, name: str, layout: Layout, applied: Sequence[Applied]) -> Tensor:
        """One of `shows` from what the blocks of the literal form have given, in their order."""
        raise NotImplementedError(self.opname)

    def untrained(self) -> Value | None:
        """The operand that the result is where there are no train tokens; None if there is none such."""
        return None

    def deferral(self) -> Deferral | None:
        """The update that the fused form can leave pending; None for all ops but those that have one."""
        return None

    def multiplies(self) -> Value | None:
        """The operand whose product with token values the fused form takes, and which may carry pending updates."""
        return None

    def holds(self) -> str | None:
        """The layer whose stored weights the result is."""
        return None

    def updates(self) -> str | None:
        """The layer whose weights the result is, after a step of descent."""
        return None

    def descending(self) -> dict[str, tuple[int, ...]]:
        """The parts of those weights that descend, and their shapes."""
        return {}

    def shares_input(self) -> bool:
        """Whether the fused form is a product (W, x) that can be one with others of the same x."""
        return False

    def multiply_adds(self, counts: FusedCounts, *operands: Value) -> int:
        """Multiply-adds of the fused form's products, per example. Called once per op, in the program's order."""
        return 0

    def entries(self, counts: FusedCounts, result: Value) -> int:
        """Entries of one of the results in fused execution, per example."""
        return counts.lengths[self] * result.type.width

    def scratch(self, counts: FusedCounts, itemsize: int) -> int:
        """Bytes per example of what exists only while the fused form runs; itemsize: of the dtype."""
        return itemsize * counts.lengths[self] * self.results[0].type.width

    def planned(self, layout: Layout) -> SimOp:
        """The op with what planning the layout adds to it: the tiles of the weights it holds or reads."""
        return self

    def structure(self, layout: Layout) -> dict[str, Block]:
        """Structural blocks the literal form applies, by the name it gives; linear attention is linear."""
        return {}

    def realised(self, layout: Layout) -> dict[str, tuple[str, Block]]:
        """The same blocks as they are built, each with its name under ``structure``."""
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
        """The blocks that are built, by their name under ``structure``."""
        return dict(self.realised(layout).values())

    def scores(self, layout: Layout, run: Interpretation, *operands: Any) -> Iterable[Tensor]:
        """The scores of the literal form's linear heads, constant ones and copies aside, in tensors of any shape, from
        interpreter values of the operands."""
        return ()

    def slots(self, layout: Layout) -> int:
        """The most slots the literal form needs in one embedding."""
        return 1

    def table_count(self, layout: Layout) -> TableCount:
        """Parameters by the paper's table; forward ops count for their backward and descent too."""
        return TableCount()

    def head_dims(self) -> set[int]:
        """Widths of the chunks in which the literal form views an embedding; slots begin at multiples of them."""
        return set()
