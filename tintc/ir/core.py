"""Ops, values and programs: what both dialects are made of.

An op is a dataclass whose fields are its attributes; operands and results are SSA values. A program is a list of ops in
topological order, the parameters they name, and named outputs. One op, `sim.repeat`, holds a nested block. The classes
here know nothing of any particular op; the files of `auxiliary` and `simulator` register theirs with `@register`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from tintc.errors import IRError

WEIGHT_KINDS = ("linear", "experts", "norm")
TYPE_KINDS = ("tokens", "routed", "logits", "number", *WEIGHT_KINDS)


@dataclass(frozen=True)
class Type:
    """The type of a value. `kind` names it, `dims` are its fixed sizes (batch and length are always dynamic).

    Kinds: ``tokens`` (dims = width: one vector per token), ``routed`` (dims = experts, chosen, width: one vector for
    every token and each expert that it has chosen), ``logits`` (dims = vocabulary), ``number`` (dims = 1: one for a
    whole text), ``linear`` (dims = dout, din; the
    weights of a linear layer as a value), ``experts`` (dims = experts, dout, din; those of a linear layer for each
    expert), ``norm`` (dims = width; gain and bias of a norm as a value). `parts` says which tensors a weight value
    carries besides a linear layer's matrix: ``bias`` (``bias4``: four times, a quarter each), and of a norm ``gain``,
    or ``vector`` for a gain that prefixes hold as a vector.
    """

    kind: str
    dims: tuple[int, ...]
    parts: tuple[str, ...] = ()

    def __str__(self) -> str:
        inner = "x".join(map(str, self.dims))
        return f"{self.kind}<{', '.join((inner, *self.parts))}>"

    @property
    def width(self) -> int:
        """Return the size of the last dimension."""
        return self.dims[-1]

    @property
    def per_token(self) -> int:
        """Return how many numbers a token has: its width, once for every expert that it has chosen."""
        if self.kind == "routed":
            return self.dims[1] * self.dims[2]
        return self.width

    @property
    def is_weights(self) -> bool:
        """Return True for the weights of a layer as a value."""
        return self.kind in WEIGHT_KINDS


def tokens(width: int) -> Type:
    """Return the type of one vector of `width` per token."""
    return Type("tokens", (width,))


def logits(vocab: int) -> Type:
    """Return the type of logits over `vocab` words."""
    return Type("logits", (vocab,))


def number() -> Type:
    """Return the type of one number for a whole text."""
    return Type("number", (1,))


@dataclass(eq=False)
class Value:
    """An SSA value: a name that is unique in its program, and a type."""

    name: str
    type: Type

    def __str__(self) -> str:
        return f"%{self.name}"

    __repr__ = __str__


OPS: dict[str, type[Op]] = {}
OpT = TypeVar("OpT", bound="type[Op]")


def register(opname: str) -> Callable[[OpT], OpT]:
    """Return a class decorator that makes an op class known to the parser under `opname`."""

    def add(cls: OpT) -> OpT:
        cls.opname = opname
        OPS[opname] = cls
        return cls

    return add


@dataclass(eq=False, kw_only=True)
class Op:
    """One operation. Subclasses are dataclasses; their extra fields are the attributes the text shows."""

    opname: ClassVar[str] = "?"

    operands: tuple[Value, ...] = ()
    results: tuple[Value, ...] = ()

    @property
    def result(self) -> Value:
        """Return the one result; raise `IRError` if there are several, or none."""
        if len(self.results) != 1:
            raise IRError(f"{self.opname} has {len(self.results)} results, not one.")
        return self.results[0]

    @classmethod
    def attribute_fields(cls) -> list[Any]:
        """Return the fields that are attributes: all but operands, results and the body."""
        return [f for f in fields(cls) if f.name not in ("operands", "results", "body")]

    def attributes(self) -> dict[str, Any]:
        """Return the attributes that differ from their defaults, in the order of declaration."""
        shown = {}
        for f in self.attribute_fields():
            value = getattr(self, f.name)
            if value != f.default:
                shown[f.name] = value
        return shown

    def verify(self) -> None:
        """Raise `IRError` unless operand types, result types and attributes fit together."""

    def expect(self, condition: bool, sentence: str) -> None:
        """Raise `IRError` with the sentence, and with the op's name and results, unless the condition holds."""
        if not condition:
            where = ", ".join(map(str, self.results)) or "no result"
            raise IRError(f"{self.opname} ({where}): {sentence}.")


@dataclass(eq=False)
class Block:
    """The body of a `sim.repeat`: arguments, ops, and the values handed to the next round."""

    arguments: tuple[Value, ...]
    ops: list[Op]
    yields: tuple[Value, ...]


@dataclass(frozen=True)
class Parameter:
    """A tensor of the auxiliary model, as a view of a tensor that its checkpoint stores.

    source: name in the checkpoint (or ``constant.*`` for a tensor the importer derived); shape: after the view;
    transpose: the checkpoint stores it as ``[in, out]``; rows: runs ``(start, stop)`` or ``(start, stop, step)`` of
    output rows taken, after the transposition; None means all. stacked: the first dimension counts experts, and the
    rest of the view is of each.
    """

    source: str
    shape: tuple[int, ...]
    transpose: bool = False
    rows: tuple[tuple[int, ...], ...] | None = None
    stacked: bool = False


@dataclass(eq=False)
class Program:
    """A program of one dialect.

    attributes: options of the whole program (plain JSON values); parameters: name -> where its tensor comes from;
    outputs: name -> value.
    """

    dialect: str
    attributes: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Parameter] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    outputs: dict[str, Value] = field(default_factory=dict)

    def walk(self) -> Iterator[Op]:
        """Yield all ops, nested ones after the op that holds them."""
        for op in self.ops:
            yield op
            body = getattr(op, "body", None)
            if body is not None:
                yield from body.ops

    def producers(self) -> dict[Value, Op]:
        """Return the op that defines every value."""
        return {result: op for op in self.walk() for result in op.results}

    def users(self) -> dict[Value, list[Op]]:
        """Return the ops that read every value, in program order; an op that reads it twice stands there twice."""
        table: dict[Value, list[Op]] = {}
        for op in self.walk():
            for operand in op.operands:
                table.setdefault(operand, []).append(op)
        return table

    def verify(self) -> Program:
        """Check SSA form, types and every op. Return self, so that passes can end in `return program.verify()`."""
        names: set[str] = set()
        _verify_ops(self, self.ops, set(), names)
        defined = {result for op in self.ops for result in op.results}
        for label, value in self.outputs.items():
            if value not in defined:
                raise IRError(f"Output {label!r} names {value}, which no op defines.")
        return self


def _verify_ops(program: Program, ops: list[Op], defined: set[Value], names: set[str]) -> None:
    """Check ops in order, given the values that are `defined` so far; add their names and results."""
    for op in ops:
        if not op.opname.startswith(program.dialect + "."):
            raise IRError(f"{op.opname} does not belong in a {program.dialect!r} program.")
        for operand in op.operands:
            if operand not in defined:
                raise IRError(f"{op.opname} uses {operand} before it is defined.")
        try:
            op.verify()
        except ValueError as error:  # of unpacking them
            counts = f"{len(op.operands)} operands and {len(op.results)} results"
            raise IRError(f"{op.opname} has {counts}, and needs others.") from error
        body: Block | None = getattr(op, "body", None)
        if body is not None:
            _claim(names, body.arguments)
            inner = defined | set(body.arguments)
            _verify_ops(program, body.ops, inner, names)
            inner |= {result for nested in body.ops for result in nested.results}
            for value in body.yields:
                if value not in inner:
                    raise IRError(f"{op.opname} yields {value}, which its body does not define.")
        _claim(names, op.results)
        defined.update(op.results)


def _claim(names: set[str], values: tuple[Value, ...]) -> None:
    """Add the values' names; raise `IRError` for one that is taken."""
    for value in values:
        if value.name in names:
            raise IRError(f"{value} is defined twice.")
        names.add(value.name)


def substitute(values: tuple[Value, ...], mapping: Mapping[Value, Value]) -> tuple[Value, ...]:
    """Return the values, those in `mapping` replaced."""
    return tuple(mapping.get(value, value) for value in values)
