"""Capture points: the auxiliary's own quantities in a simulator program, by names that both executors know.

Pass p is the forward pass with the weights after p steps: pass 0 is the unchanged auxiliary, pass N the updated one.
Step s runs on pass s and leads to pass s + 1. L layers::

    pass<p>.embeddings             [B, T, D]      the residual stream before layer 0
    pass<p>.layers.<i>.residual    [B, T, D]      the residual stream after layer i
    pass<p>.layers.<i>.attention   [B, H, T, T]   attention probabilities of layer i
    pass<p>.final                  [B, T, D]      what the head reads
    pass<p>.modules.<value>        [B, T, width]  every value of the auxiliary's program (``auxiliary.tint``)
    step<s>.gradients.<layer>.<part>  [B, *part]  gradient of the step's summed loss, as the module sums it
    step<s>.updates.<layer>.<part>    [B, *part]  what the step adds: minus gradient times learning rate

Names are read off the program: what an op is of, its layer, phase and step. A value that no update reaches is computed
once and is the same point in every pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from tintc.errors import OptionError
from tintc.ir.core import Program, Value
from tintc.ir.names import Names
from tintc.ir.simulator import SimOp
from tintc.ir.simulator.interface.semantics import Shape


@dataclass(frozen=True)
class Point:
    """A capture point. shape: ``B`` is the number of examples, ``T`` of tokens; what: a phrase that says what it is.

    value: the program's value, or a result of the op that shows the point under the name `show`.
    """

    name: str
    shape: Shape
    what: str
    value: Value = field(repr=False)
    op: SimOp | None = field(default=None, repr=False)
    show: str = field(default="", repr=False)

    @property
    def editable(self) -> bool:
        """Return True if another value may take its place.

        It must be a token value, and no other op may start from how it was computed.
        """
        return (
            not self.show
            and self.op is not None
            and self.value.type.kind == "tokens"
            and self.op.activation_key() is None
        )


def points_of(program: Program) -> dict[str, Point]:
    """Return all capture points of an unrolled simulator program, by name, pass by pass and then step by step."""
    if program not in _KNOWN:
        names = Names(".")
        points = (*_of_passes(program), *_of_steps(program))
        unique = ((names.fresh(point.name), point) for point in points)
        _KNOWN[program] = {
            name: Point(name, point.shape, point.what, point.value, point.op, point.show) for name, point in unique
        }
    return _KNOWN[program]


_KNOWN: weakref.WeakKeyDictionary[Program, dict[str, Point]] = weakref.WeakKeyDictionary()


def point_of(program: Program, label: str) -> Point:
    """Return the capture point, or the output of the program, of that name."""
    if label in program.outputs:
        return Point(label, (), "an output", program.outputs[label])
    return points_of(program)[label]


def shown_by(points: Mapping[str, Point]) -> dict[SimOp, list[tuple[str, str]]]:
    """Return what ops are to show besides their results: (label, name that the op knows it by), by op."""
    shown: dict[SimOp, list[tuple[str, str]]] = {}
    for label, point in points.items():
        if point.show and point.op is not None:
            shown.setdefault(point.op, []).append((label, point.show))
    return shown


def sized(shape: Shape, batch: int, length: int) -> tuple[int, ...]:
    """Return a shape in numbers."""
    known: dict[int | str, int] = {"B": batch, "T": length}
    return tuple(known.get(size) or int(size) for size in shape)


def select(program: Program, patterns: tuple[str, ...]) -> list[str]:
    """Return the names of the points that match a pattern (``*`` and ``?`` as in file names), with or without its pass
    or step.

    Raises `OptionError` for a pattern that no point matches.
    """
    points = points_of(program)
    chosen: dict[str, None] = {}
    for pattern in patterns:
        matched = [name for name in points if _matches(name, pattern)]
        if not matched:
            raise OptionError(f"No capture point matches {pattern!r}; sim.capture_points() lists what there is.")
        chosen |= dict.fromkeys(matched)
    return list(chosen)


def _matches(name: str, pattern: str) -> bool:
    """Return True if the name, or the name without its pass or step, matches the pattern."""
    return fnmatchcase(name, pattern) or fnmatchcase(name.partition(".")[2], pattern)


def _of_passes(program: Program) -> Iterator[Point]:
    """Yield the points of every pass: the auxiliary's values."""
    by_origin = _forward_ops(program)
    residuals = residual_origins(program)
    for at in range(program.attributes["n_steps"] + 1):
        here = {origin: op for origin, ops in by_origin.items() if (op := _in_pass(ops, at)) is not None}
        for name, (origin, what) in residuals.items():
            if origin in here:
                yield _value_point(f"pass{at}.{name}", here[origin], what)
        for op in here.values():
            for name, shape in op.extra_capture_points().items():
                what = f"attention probabilities of layer {op.layer}"
                yield Point(f"pass{at}.{name}", shape, what, op.results[0], op, name)
        for origin, op in here.items():
            yield _value_point(f"pass{at}.modules.{origin}", op, f"{op.opname.removeprefix('sim.')}'s result")


def _of_steps(program: Program) -> Iterator[Point]:
    """Yield the points of every step: gradients and updates."""
    for op in program.ops:
        if isinstance(op, SimOp) and op.phase == "descent":
            for name, shape in op.extra_capture_points().items():
                what = "what the step adds"
                if name.startswith("gradients"):
                    what = "gradient of the step's summed loss"
                yield Point(f"step{op.step}.{name}", shape, what, op.results[0], op, name)


def _value_point(name: str, op: SimOp, what: str) -> Point:
    """Return the point of an op's token value."""
    value = op.results[0]
    return Point(name, ("B", "T", value.type.width), what, value, op)


def _forward_ops(program: Program) -> dict[str, dict[int, SimOp]]:
    """Return the ops of forward passes that make token values, by the auxiliary's value and by pass."""
    by_origin: dict[str, dict[int, SimOp]] = {}
    for op in program.ops:
        if isinstance(op, SimOp) and op.phase == "forward" and op.origin and op.results[0].type.kind == "tokens":
            by_origin.setdefault(op.origin, {})[op.step] = op
    return by_origin


def _in_pass(ops: Mapping[int, SimOp], at: int) -> SimOp | None:
    """Return a pass's own op, or the only one, which serves them all."""
    if ops.keys() == {0}:
        return ops[0]
    return ops.get(at)


def residual_origins(program: Program) -> dict[str, tuple[str, str]]:
    """Return (the auxiliary's value, a phrase that says what it is) of every point of the residual stream, by name
    without its pass.

    Everything in a layer leads to the layer's end, which so comes last in it (`tintc.lowering.passes.assign_layers`);
    and everything in layer 0 follows its beginning.
    """
    first = [ops[0] for ops in _forward_ops(program).values() if 0 in ops]
    ends = {op.layer: op.origin for op in first if op.layer >= 0}
    origins: dict[str, tuple[str, str]] = {}
    if start := _start(first):
        origins["embeddings"] = start, "the residual stream before layer 0"
    for layer in sorted(ends):
        origins[f"layers.{layer}.residual"] = ends[layer], f"the residual stream after layer {layer}"
    if head := _head_input(program):
        origins["final"] = head, "what the language-model head reads"
    return origins


def _start(ops: list[SimOp]) -> str:
    """Return the last of the values outside layer 0 that all ops of layer 0 follow, by name; empty if there is none."""
    makers = {op.results[0]: op for op in ops}
    above: dict[SimOp, frozenset[SimOp]] = {}
    for op in ops:
        sources = [makers[value] for value in op.operands if value in makers]
        above[op] = frozenset(sources).union(*(above[source] for source in sources))
    inside = [op for op in ops if op.layer == 0]
    if not inside:
        return ""
    common = frozenset.intersection(*(above[op] for op in inside))
    return next((op.origin for op in reversed(ops) if op in common), "")


def _head_input(program: Program) -> str:
    """Return the auxiliary's name for what the op that gives the logits reads; that of any pass is that of all."""
    makers = program.producers()
    maker = makers.get(makers[program.outputs["logits"]].operands[0])
    if isinstance(maker, SimOp) and maker.phase == "forward":
        return maker.origin
    return ""
