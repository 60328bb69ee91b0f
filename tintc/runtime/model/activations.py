"""Looking at and changing the auxiliary's own quantities while a simulator runs, in either executor.

    with sim.capture("layers.*.residual", "step0.gradients.*") as seen:
        sim(ids)
    seen["pass1.layers.2.residual"]

Points are more outputs of the run: fused execution stays fused, and costs what computing and keeping them costs. Names
are those of `tintc.analysis.capture_points`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from torch import Tensor

from tintc.analysis.capture_points import Point, points_of, select
from tintc.analysis.head_roles import Roles
from tintc.errors import InputError, OptionError
from tintc.ir.core import Program, Value

Edit = Callable[[Tensor], Tensor]


class CapturedValues(dict[str, Tensor]):
    """The values of the last run inside the ``with`` block, by point."""


@dataclass(frozen=True, eq=False)
class Block:
    """A block of a capture or an edit. of: the simulator; captured: the points that are; edits: of values, and the
    points that they are of."""

    of: object
    captured: tuple[str, ...] = ()
    seen: CapturedValues = field(default_factory=CapturedValues)
    edits: Mapping[Value, Edit] = field(default_factory=dict)
    edited: tuple[str, ...] = ()


_BLOCKS: ContextVar[tuple[Block, ...]] = ContextVar("blocks", default=())
"""The blocks that are open in a context: a thread, or a task of asyncio, has its own."""


@contextmanager
def _open(block: Block) -> Iterator[Block]:
    _BLOCKS.set((*_BLOCKS.get(), block))
    try:
        yield block
    finally:
        _BLOCKS.set(tuple(other for other in _BLOCKS.get() if other is not block))


class ActivationAccess:
    """The part of `TintForCausalLM` that captures and edits."""

    program: Program

    def _blocks_here(self) -> list[Block]:
        return [block for block in _BLOCKS.get() if block.of is self]

    @property
    def edits(self) -> dict[Value, Edit]:
        """Return the edits of the caller's context; of several of one value, the last."""
        return {value: edit for block in self._blocks_here() for value, edit in block.edits.items()}

    @property
    def _edited(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for block in self._blocks_here() for name in block.edited))

    @property
    def _captures(self) -> list[tuple[tuple[str, ...], CapturedValues]]:
        return [(block.captured, block.seen) for block in self._blocks_here() if block.captured]

    def capture_points(self) -> list[Point]:
        """Return every capture point: its name, its shape (``B`` examples, ``T`` tokens) and what it is."""
        return list(points_of(self.program).values())

    def roles(self) -> Roles:
        """Return the role of every head and gate: rows of `tintc.analysis.role.Role`, ``to_json()``."""
        return Roles(self.program)

    @contextmanager
    def capture(self, *patterns: str) -> Iterator[CapturedValues]:
        """Fill the dictionary it gives with the points that match, at every run inside the block, of this thread.

        patterns: names with ``*`` and ``?``; without ``pass<p>.`` or ``step<s>.`` in front they mean every pass or
        step. Raises `OptionError` for a pattern that no point matches, and without any.
        """
        if not patterns:
            raise OptionError("Say what to capture, '*' for everything; sim.capture_points() lists what there is.")
        with _open(Block(self, captured=tuple(select(self.program, patterns)))) as block:
            yield block.seen

    @contextmanager
    def edit(self, edits: Mapping[str, Edit]) -> Iterator[None]:
        """Replace the values at these points inside the block: ``{pattern: function of [B, T, width]}``.

        Whatever reads the point afterwards, the backward pass included, reads what the function returns. A batch must
        run whole. Runs of other threads are not edited. Raises `OptionError` for points that are no token values, and
        for a value that several passes share unless all of them are meant: what no update reaches is computed once.
        """
        labels: list[str] = []
        added: dict[Value, Edit] = {}
        points = points_of(self.program)
        for pattern, function in edits.items():
            names = select(self.program, (pattern,))
            if not callable(function):
                raise OptionError(
                    f"The edit of {pattern!r} is a {type(function).__name__}; pass a function of the value, such as "
                    "lambda x: tensor."
                )
            check_editable([points[name] for name in names], list(points.values()), pattern)
            added |= {points[name].value: _same_shape(name, function) for name in names}
            labels += names
        with _open(Block(self, edits=added, edited=tuple(labels))):
            yield

    def _refuse_points(self, *wanted: bool | None) -> None:
        """Raise `OptionError` if anybody wants whole values, which passes with a cache or a state do not have."""
        if any(wanted) or self._captures or self._edited:
            raise OptionError(
                "Hidden states, attentions, captures and edits are of whole passes; leave the cache and the state out "
                "(use_cache=False)."
            )

    def _with_points(self, outputs: tuple[str, ...]) -> tuple[str, ...]:
        """Return the outputs of a run and the points that are captured or edited; edited values are needed whole."""
        if not self._captures and not self._edited:
            return outputs
        wanted = (*outputs, *self._edited, *(name for names, _ in self._captures for name in names))
        return tuple(dict.fromkeys(wanted))

    def _fill_captures(self, values: Mapping[str, Tensor]) -> None:
        """Give every capture the points that it wants."""
        for names, seen in self._captures:
            seen.clear()
            seen.update((name, values[name]) for name in names)


def check_editable(chosen: list[Point], points: list[Point], pattern: str) -> None:
    """Raise `OptionError` unless every chosen point can be replaced, in the chosen passes alone."""
    refused = [point.name for point in chosen if not point.editable]
    if refused:
        raise OptionError(
            f"{refused[0]} cannot be edited: only token values can (residual streams, results of linear layers and "
            "norms), attention patterns, activations and gradients cannot."
        )
    names, values = {point.name for point in chosen}, {point.value for point in chosen}
    passes = {point.name.partition(".")[0] for point in chosen}
    also = [p.name for p in points if p.value in values and not p.show and p.name.partition(".")[0] not in passes]
    if also and not names.issuperset(also):
        raise OptionError(
            f"{pattern!r} would change {also[0]} too: no update reaches this value, and it is computed once for all "
            f"passes. Edit it in all of them: {pattern.partition('.')[2]!r}."
        )


def _same_shape(name: str, function: Edit) -> Edit:
    def checked(value: Tensor) -> Tensor:
        edited = function(value)
        wanted = f"it must return a tensor of {list(value.shape)}"
        if not isinstance(edited, Tensor):
            raise InputError(f"The edit of {name} returned {type(edited).__name__}; {wanted}.")
        if edited.shape != value.shape:
            raise InputError(f"The edit of {name} returned {list(edited.shape)}; {wanted}.")
        return edited.to(value)

    return checked
