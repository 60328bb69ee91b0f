"""`sim.recurrence_forward` and `sim.recurrence_backward`: y = A v, and dv = A^T dy with A held constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tintc.ir.block_specs import RecurrenceSpec, TensorSpec
from tintc.ir.core import Value, register
from tintc.ir.functions import merge_heads, split_heads
from tintc.ir.layout import Layout
from tintc.ir.recurrence import (
    Heads,
    RecurrenceOptions,
    apply_recurrence,
    apply_transposed_recurrence,
    continue_recurrence,
    recurrence_matrix,
    with_skip,
)
from tintc.ir.recurrence.chunks import CHUNK
from tintc.ir.simulator.interface.cost_model import CostModel
from tintc.ir.simulator.interface.fused_base import FusedRun
from tintc.ir.simulator.interface.literal_base import LiteralRun, Tiles
from tintc.ir.simulator.interface.semantics import Interpretation
from tintc.ir.simulator.interface.storage import Storage, TableCount, attention_cost
from tintc.ir.simulator.kernels import fla
from tintc.ir.simulator.ops.mixers.mixer_base import MixerOp
from tintc.ir.structure import StructuralBlock


@dataclass(eq=False, kw_only=True)
class _Recurrence(RecurrenceOptions, MixerOp):
    """What forward and backward share. In both, value number `VALUE` is what the matrix is applied to."""

    VALUE: ClassVar[int]
    TRANSPOSED: ClassVar[bool]

    def verify(self) -> None:
        super().verify()
        self.expect(len(self.operands) == 5, "takes q, k, g, beta and what their matrix is applied to")
        wanted, result = self.mixed_widths(self.VALUE, self.TRANSPOSED)
        found = [value.type.width for value in self.operands]
        self.expect(found == wanted, f"operands have the widths {found}, not {wanted}")
        self.expect(self.result.type.width == result, f"the result is {self.result.type}")

    def stored(self, storage: Storage) -> dict[str, TensorSpec]:
        return storage.tables(self.skip)

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        """Return the module's one block.

        Claim: it is an attention of Def. C.1 whose scores go through one function more. Its scores are the products of
        queries and keys times their decays; the function turns them into A before they weigh the values, and A is
        causal, so that a token sees itself and earlier tokens. Backward it is the same block with A transposed, as in
        `sim.attention_backward`. Padding has strength and decay zero, which a gate sees to, and so neither adds to a
        state nor lets it fade. QED. It is exact.
        """
        return {self._block(layout): StructuralBlock(RecurrenceSpec(self, self._starts(layout), self.TRANSPOSED))}

    def _block(self, layout: Layout) -> str:
        """Return the block's name: all layers of one shape share it, but for a vector of their own."""
        sizes = "_".join(map(str, (self.n_heads, self.n_key_heads, self.key_dim, self.value_dim)))
        if self.writes > 1:
            sizes += f"_{self.writes}"
        kind = "delta" if self.delta else "state"
        return f"{self.opname.removeprefix('sim.')}_{kind}_{sizes}_{self.skip}".rstrip("_").replace(".", "_")

    def _starts(self, layout: Layout) -> tuple[int, ...]:
        """Return the slot at which each operand begins."""
        starts = [0]
        for value in self.operands:
            starts.append(starts[-1] + layout.tiles(value.type.width))
        return tuple(starts)

    def slots(self, layout: Layout) -> int:
        return self._starts(layout)[-1]

    def literal(self, run: LiteralRun, *operands: Tiles) -> Tiles:
        real = run.real_tokens()
        tiles = [tile for value in operands[:-2] for tile in value]
        tiles += [tile * real for value in operands[-2:] for tile in value]
        e = run.apply(self._block(run.layout), run.embed(tiles))
        return [run.slot(e, index) for index in range(run.layout.tiles(self.result.type.width))]

    def multiply_adds(self, costs: CostModel, *operands: Value) -> int:
        """Count chunks with themselves, and the state that they read and write."""
        n = costs.lengths[self] * self.writes
        each = self.n_heads * (2 * self.key_dim * self.value_dim + CHUNK * (self.key_dim + self.value_dim))
        return n * each

    def scratch(self, costs: CostModel, itemsize: int) -> int:
        """Return the bytes of all chunks' matrices, which the transpose makes before it begins at the last, and of
        what they read, write and give."""
        n = costs.lengths[self] * self.writes
        wide = self.n_heads * (3 * self.key_dim + 3 * self.value_dim)
        matrices = self.n_heads * CHUNK * (1 + self.delta)
        return itemsize * n * (wide + matrices)

    def table_count(self, layout: Layout) -> TableCount:
        """Count one attention: the table has no row for other mixers."""
        q = attention_cost(layout)
        return TableCount(q, q, 0)


def _vector(op: RecurrenceOptions, run: Interpretation | FusedRun) -> Tensor | None:
    if not op.skip:
        return None
    return run.table(op.skip)


@register("sim.recurrence_forward")
@dataclass(eq=False, kw_only=True)
class RecurrenceForward(_Recurrence):
    """(q, k, v, g, beta) -> ``concat_h A_h v_h``."""

    VALUE = 2
    TRANSPOSED = False
    CARRIES_STATE: ClassVar[bool] = True

    def interpret(self, run: Interpretation, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
        heads = Heads.of(self, q, k, g, beta, run.inputs.real_tokens)
        return merge_heads(recurrence_matrix(self, heads, _vector(self, run)) @ self.split_values(v))

    def fused(self, run: FusedRun, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
        heads = Heads.of(self, q, k, g, beta, self.real(run, q.shape[1]))
        values = self.split_values(v)
        if fla.takes(self, values):
            return merge_heads(with_skip(fla.recurrence(self, heads, values), values, _vector(self, run)))
        return merge_heads(apply_recurrence(self, heads, values, _vector(self, run)))

    def carried(self, run: FusedRun, state: Tensor | None, *operands: Tensor) -> tuple[Tensor, Tensor]:
        """Return the results, and the state ``[B, n_heads, key_dim, value_dim]`` that the tokens leave."""
        q, k, v, g, beta = operands
        heads = Heads.of(self, q, k, g, beta, self.real(run, q.shape[1]))
        y, after = continue_recurrence(self, heads, self.split_values(v), _vector(self, run), state)
        return merge_heads(y), after


@register("sim.recurrence_backward")
@dataclass(eq=False, kw_only=True)
class RecurrenceBackward(_Recurrence):
    """(dy, q, k, g, beta) -> ``dv = concat_h A_h^T dy_h``."""

    VALUE = 0
    TRANSPOSED = True

    def interpret(self, run: Interpretation, dy: Tensor, q: Tensor, k: Tensor, g: Tensor, beta: Tensor) -> Tensor:
        heads = Heads.of(self, q, k, g, beta, run.inputs.real_tokens)
        matrix = recurrence_matrix(self, heads, _vector(self, run))
        return self.merge_values(matrix.transpose(-1, -2) @ split_heads(dy, self.n_heads))

    def fused(self, run: FusedRun, dy: Tensor, q: Tensor, k: Tensor, g: Tensor, beta: Tensor) -> Tensor:
        heads = Heads.of(self, q, k, g, beta, self.real(run, q.shape[1]))
        given = split_heads(dy, self.n_heads)
        if fla.takes(self, given):
            return self.merge_values(
                with_skip(fla.transposed_recurrence(self, heads, given), given, _vector(self, run))
            )
        return self.merge_values(apply_transposed_recurrence(self, heads, given, _vector(self, run)))
