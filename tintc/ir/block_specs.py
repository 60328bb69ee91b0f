"""Specifications of structural blocks: the kind of a block, and the sizes that its tensors are made by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from tintc.ir.losses import LogitMap
from tintc.ir.pointwise import PointwiseOptions
from tintc.ir.recurrence.heads import RecurrenceOptions
from tintc.ir.router import RouterOptions


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to be: `shape`, and `build() -> Tensor` in fp64."""

    shape: tuple[int, ...]
    build: Callable[[], Tensor]


@dataclass(frozen=True)
class SplitStage:
    """One H-split linear operation (Defs. D.4, D.5) with H = `n_heads` chunks of width `width`.

    kind ``dimension``: weight ``[width, H, H]``, mixes the chunks column by column; ``split``: weight
    ``[H, width, width]``, mixes the columns chunk by chunk. The bias of the definition starts at zero; a stage whose
    bias could not matter has none. A dimension-wise operation may give another number of chunks, `n_out`: its weight
    is then ``[width, n_out, H]``.
    """

    kind: str
    n_heads: int
    width: int
    weight: TensorSpec
    bias: bool = True
    n_out: int = 0

    @property
    def n_results(self) -> int:
        """Return the number of chunks that the stage gives."""
        return self.n_out or self.n_heads

    def ends(self, first: Index, second: Index, third: Index) -> tuple[Index, Index]:
        """Return which number the weight's entry ``[first, second, third]`` multiplies, and to which it adds that."""
        if self.kind == "dimension":
            return third * self.width + first, second * self.width + first
        return first * self.width + third, first * self.width + second

    def biased(self, chunk: Index, column: Index) -> Index:
        """Return the number to which the bias's entry ``[chunk, column]`` is added."""
        return chunk * self.width + column


Split = tuple[SplitStage, ...] | None
"""A chain of split operations: () is the identity, None is zero."""


@dataclass(frozen=True)
class Positions:
    """The term ``lam[h] * (P p_t)``.

    kind names the position matrix ``P [width, T_sim]``, which modules share: ``prefix`` maps prefix k to e_k and tokens
    to 0; ``tokens`` maps tokens to e_0 and prefixes to 0. lam: the decision vector ``[H]``.
    """

    kind: str
    lam: TensorSpec


@dataclass(frozen=True)
class AttentionSpec:
    """A TinT attention (Def. C.1), H = `n_heads` heads of `width`.

    q, k and v each have a split operation and a `Positions` term; None stands for a term that is zero. kind:
    ``linear``, ``softmax``, or ``sink``: softmax beside one more entry of value 0, whose logit for each head is in
    `sink [H]`. constant: heads whose scores are 0 or 1 whatever the input. Options of softmax scores: soft cap, ALiBi
    slopes of the first heads, the style of a rotary embedding, and `vectors`, names of parameters by what they are:
    ``inv_freq [n]``, a ``gain [width]`` of rotated queries, a ``query_scale [P]`` by position, ``sinks`` of the first
    heads.

    w_p, w_r: of a second product ``<p_t, r_j>``, which is added to softmax scores after all options; a head is then as
    wide as both. gradient: ``queries`` or ``keys`` where the results are these heads' gradients: the values are keys,
    or queries, at their positions, and the results are turned back (`tintc.ir.scores.attention_gradients`).
    """

    n_heads: int
    width: int
    kind: str
    w_q: Split
    w_k: Split
    w_v: Split
    w_o: Split
    positions_q: Positions | None = None
    positions_k: Positions | None = None
    positions_v: Positions | None = None
    transpose: bool = False
    rotary_style: str = ""
    constant: range = range(0)
    sink: TensorSpec | None = None
    soft_cap: float = 0.0
    slopes: tuple[float, ...] = ()
    vectors: Mapping[str, str] = field(default_factory=dict)
    w_p: Split = None
    w_r: Split = None
    gradient: str = ""


@dataclass(frozen=True)
class InverseRootSpec:
    """An activation: slot 0 becomes its ``x^(-1/2)``, 0 where x is not above 0; the other slots pass."""


@dataclass(frozen=True)
class LinearSpec:
    """A chain of split operations on its own."""

    stages: tuple[SplitStage, ...]


@dataclass(frozen=True)
class GroupNormSpec:
    """Group norm (Defs. F.6, J.2): each group of slots is normalised on its own, over its first `width` coordinates.

    kind ``layer`` or ``rms``. parts: how many equal parts of these (heads) are normalised on their own. inverse: slot
    that receives 1 / sigma, in every coordinate, or in those of its part (-1: none).
    """

    groups: tuple[tuple[int, ...], ...]
    kind: str
    eps: float
    width: int
    inverse: int = -1
    parts: int = 1


@dataclass(frozen=True)
class ActivationSpec:
    """An activation on some slots; the others pass."""

    fn: str
    slots: tuple[int, ...]


@dataclass(frozen=True)
class ProductSpec:
    """Slot `target` becomes target * factor (the GLU unit with the identity as activation)."""

    target: int
    factor: int


@dataclass(frozen=True)
class VocabularySpec:
    """An MLP over the vocabulary (Appendix H): slot 0, x, becomes ``E^T h(E x + b)``; both its matrices are the table
    `head`, which is stored once. h: see `tintc.ir.losses.hidden`."""

    loss: str
    head: str
    bias: str
    logit_map: LogitMap
    width: int


@dataclass(frozen=True)
class RouterSpec:
    """A router: the logits of `experts` in the first slots become their weights; the other slots pass.

    options: says how, and names the tables that it reads; backward: the gradient of the weights stands in the first
    slots and the logits in the next, and the first become the gradient of the logits.
    """

    options: RouterOptions
    experts: int
    backward: bool = False


@dataclass(frozen=True)
class ChosenSpec:
    """Slot 0 becomes one wherever it is not zero; the other slots pass."""


@dataclass(frozen=True)
class RecurrenceSpec:
    """An attention whose scores become the matrix of a recurrence before they weigh values.

    options: how; starts: the slot at which each operand begins, in their order, and the first slot after the last;
    transposed: whether the matrix is.
    """

    options: RecurrenceOptions
    starts: tuple[int, ...]
    transposed: bool


@dataclass(frozen=True)
class ConvolutionSpec:
    """A convolution of slot 0 over the tokens, for tile number `tile` of a value, of which it has `width` channels.

    weight, bias: names of tables; padding: that of what a token adds which slot 1 marks as padding (empty: nothing);
    transposed: whether later tokens are read and the bias is left out.
    """

    weight: str
    bias: str
    padding: str
    tile: int
    width: int
    transposed: bool


@dataclass(frozen=True)
class PointwiseSpec:
    """A function of the first coordinates of slot 0, which holds coordinates `start` to `end` of a value."""

    options: PointwiseOptions
    start: int
    end: int


BlockSpec = (
    AttentionSpec
    | LinearSpec
    | GroupNormSpec
    | ActivationSpec
    | InverseRootSpec
    | ProductSpec
    | VocabularySpec
    | RouterSpec
    | ChosenSpec
    | RecurrenceSpec
    | ConvolutionSpec
    | PointwiseSpec
)


Index = TypeVar("Index", int, Tensor)
"""One place, or as many as a tensor has numbers."""
