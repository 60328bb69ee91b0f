"""The literal form of a simulator op: blocks of a transformer, applied to embeddings ``[B, T_sim, D_sim]``.

Values of tokens and weights are what a transformer holds; a `LiteralRun` has the operations on them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from tintc.ir.core import Op
from tintc.ir.inputs import Inputs
from tintc.ir.layout import Layout
from tintc.ir.structure import StructuralBlock

Tiles = list[Tensor]
"""A token value in literal execution: slots ``[B, T, P]``, one for every tile of its width."""

Tile = Tensor | Callable[[Tensor], Tensor]
"""A weight tile in literal execution: prefix embeddings ``[B, K, D_sim]``, or, before any module has carried them, what
puts the stored ones into an embedding."""


@dataclass
class PrefixTiles:
    """Weights in literal execution, by row tile and column tile.

    Modules hand prefixes on through their residual connection, so a module that reads a tile puts back what its output
    carries in the prefix positions.
    """

    rows: list[list[Tile]]


RoutedTiles = list[Tiles]
"""A routed value in literal execution: the tiles of every expert's vector, whether a token has chosen it or not."""


@dataclass
class ExpertTiles:
    """The weights of a linear layer for each expert, in literal execution."""

    each: list[PrefixTiles]


@dataclass(frozen=True)
class Applied:
    """One application of a block in literal execution. new ``[B, T_sim, D_sim]``: what its gate lets pass of what it
    gave, before the rate; scores: of its attention, those that `SimOp.shown_scores` names."""

    new: Tensor
    rate: Tensor | float | None
    scores: Tensor | None


class LiteralRun(Protocol):
    """The operations that the literal form of an op may use (implemented by the runtime)."""

    layout: Layout
    inputs: Inputs

    def embed(self, slots: Sequence[Tensor], prefix: Tile | None = None) -> Tensor:
        """Return the embedding ``[B, T_sim, D_sim]`` with `slots [B, T, P]` side by side in its tokens."""
        ...

    def apply(self, block: str, e: Tensor, mask: Tensor | None = None, rate: Tensor | float | None = None) -> Tensor:
        """Return `e` after a block of `structure` (times `rate`, ``[]`` or ``[B]``) and its position gate."""
        ...

    def first(self, x: Tiles) -> Tensor:
        """Return the number that every coordinate of the one slot of a value holds at every token, ``[B]``."""
        ...

    def empty_prefix(self) -> Tile:
        """Return a weight tile of zeros."""
        ...

    def added(self, tile: Tile, terms: Sequence[Tensor]) -> Tensor:
        """Return a weight tile with the prefix positions of embeddings added: residual connections."""
        ...

    def slot(self, e: Tensor, index: int = 0) -> Tensor:
        """Return slot `index` of the tokens of `e`: ``[B, T, P]``."""
        ...

    def prefix(self, e: Tensor) -> Tensor:
        """Return the prefix positions of `e`: ``[B, K, D_sim]``."""
        ...

    def train_mask(self, step: int) -> Tensor:
        """Return a mask ``[B, T_sim, T_sim]``: prefixes see the step's train tokens, nothing else is seen."""
        ...

    def token_mask(self, window: int = 0) -> Tensor:
        """Return a mask ``[B, T_sim, T_sim]``: the auxiliary's causal attention among tokens, to `window` of them if
        that is not 0."""
        ...

    def real_tokens(self) -> Tensor:
        """Return ones for the tokens that are no padding, else zeros: ``[B, T, 1]``."""
        ...

    def next_mask(self) -> Tensor:
        """Return a mask ``[B, T_sim, T_sim]``: a token sees the one after it."""
        ...

    def counted_mask(self, step: int) -> Tensor:
        """Return a mask ``[B, T_sim, T_sim]``: a token whose loss counts sees itself."""
        ...

    def rate(self, name: str, step: int) -> Tensor:
        """Return the learning rate of a parameter in a step, ``[]`` or ``[B]``."""
        ...

    def look_up(self, table: str, rows: Tensor) -> Tensor:
        """Return rows of an embedding table, or entries of a vector, as slot 0 of the tokens: ``[B, T, P]``."""
        ...

    def weights(self, name: str) -> PrefixTiles: ...

    def expert_weights(self, name: str) -> ExpertTiles: ...

    def logits(self, x: Tensor, head: str, bias: str) -> Tensor: ...


def residual(tiles: Tiles, more: Tiles) -> Tiles:
    """Return the sum of two token values, tile by tile: a residual connection."""
    return [a + b for a, b in zip(tiles, more, strict=True)]


def literal(op: LiteralForm, run: LiteralRun, operands: Sequence[Any]) -> Any:
    """Return an op's result by literal execution; of one that has nothing to do with experts on routed values, that of
    each expert alike."""
    if op.ROUTES or op.results[0].type.kind != "routed":
        return op.literal(run, *operands)
    each = [op.literal(run, *of_expert) for of_expert in zip(*operands, strict=True)]
    if len(op.results) == 1:
        return each
    return tuple(list(of_result) for of_result in zip(*each, strict=True))


class LiteralForm(Op):
    """The blocks of an op and how they are applied, tile by tile."""

    ROUTES: ClassVar[bool] = False
    """True if the op has to do with experts. Any other op acts on the vectors of each expert alike: its literal form is
    called once for each, with plain `Tiles`."""

    def structure(self, layout: Layout) -> dict[str, StructuralBlock]:
        """Return the structural blocks that the literal form applies, by the names it calls them; linear attention is
        linear."""
        return {}

    def literal(self, run: LiteralRun, *operands: Any) -> Any:
        """Return the result by literal execution: token values are `Tiles`, weights are `PrefixTiles`."""
        raise NotImplementedError(self.opname)

    def shown_scores(self, layout: Layout) -> tuple[slice, ...] | None:
        """Return which of the scores ``[B, H, T_sim, T_sim]`` of its attention `show_literal` shows; None if none."""
        return None

    def show_literal(self, names: Collection[str], layout: Layout, applied: Sequence[Applied]) -> dict[str, Tensor]:
        """Return those of `extra_capture_points` that are called so, by name, from what the blocks gave, in their
        order."""
        raise NotImplementedError(self.opname)

    def literal_showing(
        self, result: Any, shown: Mapping[str, Tensor], layout: Layout, applied: Sequence[Applied]
    ) -> Any:
        """Return the result of the literal form, made from what `show_literal` has given, so that autograd gets
        there. shown: that, by name."""
        return result

    def slots(self, layout: Layout) -> int:
        """Return the most slots that the literal form needs in one embedding."""
        return 1

    def head_dims(self) -> set[int]:
        """Return the widths of the chunks in which the literal form views an embedding; slots begin at multiples of
        them."""
        return set()
