"""`canonicalise`: one way of writing each thing.

Rules, applied until none changes anything:

- `fuse_gates`: ``multiply(x, activation(u))`` is ``gate(x, u)``, if nothing else uses the activation;
- `other_products`: any other ``multiply(x, y)`` is a gate whose activation is the identity;
- `fold_concats`: a select of several values side by side is the sum of a select of each, with zeros for the others;
- `merge_selects`: ``select(select(x))`` is one select;
- `lift_selects`: ``select(f(x))`` is ``f(select(x))`` for a scale or activation f that only selects read;
- `drop_full_selects`: a select of all columns in order is its operand;
- `fold_selects`: ``select(linear(x))`` is a linear layer with those rows of the weight and bias, if the layer is used
  by selects alone and no two of them share a row. The parts' parameters are named after what they feed: ``q``, ``k``,
  ``v`` of an attention, ``gate``, ``up`` of a gate, else ``part0``, ``part1``, ...;
- `merge_scales`: ``scale(scale(x))`` is one scale, and a scale by 1 is its operand;
- `make_logits`: the linear layer whose result, perhaps scaled, and soft-capped as ``c * tanh(z / c)``, is the output is
  ``logits``;
- `remove_dead_code`: ops and parameters that nothing uses go; parameters stand in the order of their use.

Selects, and sigmoids outside of a product, that remain have no place in a simulator and are refused, all at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from tintc.errors import Reason, UnsupportedModelError
from tintc.ir.auxiliary import (
    Activation,
    Add,
    Attention,
    AuxOp,
    Embedding,
    Gate,
    Linear,
    Logits,
    Multiply,
    Norm,
    Scale,
    Select,
)
from tintc.ir.core import Op, Parameter, Program, Value, logits, substitute
from tintc.ir.functions import GATES_ONLY
from tintc.ir.liveness import needed_ops
from tintc.lowering.fold_concats import feeds_scores, fold_concats

Runs = tuple[tuple[int, int], ...]


def canonicalise(program: Program) -> Program:
    """The program in canonical form; the one given is left alone.

    Raises `UnsupportedModelError` for selects and sigmoids that no rule removes, and for logits that are not the
    result of a linear layer.
    """
    program.verify()
    ops = [replace(op) for op in program.ops]
    program = Program(program.dialect, dict(program.attributes), dict(program.parameters), ops, dict(program.outputs))
    while sum(rule(program) for rule in RULES):
        program.verify()
    _refuse_leftovers(program)
    return program.verify()


def fuse_gates(program: Program) -> bool:
    producers, users = program.producers(), program.users()
    for index, op in enumerate(program.ops):
        if not isinstance(op, Multiply):
            continue
        for activated, other in (op.operands, op.operands[::-1]):
            act = producers[activated]
            if isinstance(act, Activation) and activated is not other and _is_alone(act, users):
                program.ops[index] = Gate(operands=(other, *act.operands), results=op.results, fn=act.fn)
                remove_dead_code(program)
                return True
    return False


def _is_alone(act: Activation, users: dict[Value, list[Op]]) -> bool:
    """Whether nothing but one product uses an activation, or it cannot stand alone anyway."""
    return act.fn in GATES_ONLY or len(users[act.result]) == 1


def other_products(program: Program) -> bool:
    producers, users = program.producers(), program.users()
    for index, op in enumerate(program.ops):
        if not isinstance(op, Multiply):
            continue
        factors = [producers[value] for value in op.operands]
        if op.operands[0] is op.operands[1] or not any(
            isinstance(f, Activation) and _is_alone(f, users) for f in factors
        ):
            program.ops[index] = Gate(operands=op.operands, results=op.results, fn="identity")
            return True
    return False


def merge_selects(program: Program) -> bool:
    producers = program.producers()
    for index, op in enumerate(program.ops):
        if isinstance(op, Select) and isinstance(inner := producers[op.operands[0]], Select):
            columns = compose(inner.columns, op.columns)
            program.ops[index] = Select(operands=inner.operands, results=op.results, columns=columns)
            return True
    return False


def lift_selects(program: Program) -> bool:
    producers, users = program.producers(), program.users()
    for index, op in enumerate(program.ops):
        inner = producers[op.operands[0]] if isinstance(op, Select) else None
        if not isinstance(inner, Scale | Activation) or inner.result in program.outputs.values():
            continue
        if all(isinstance(user, Select) for user in users[inner.result]):
            part = Value(f"{op.result.name}.part", op.result.type)
            first = replace(op, operands=inner.operands, results=(part,))
            program.ops[index : index + 1] = [first, replace(inner, operands=(part,), results=op.results)]
            remove_dead_code(program)
            return True
    return False


def drop_full_selects(program: Program) -> bool:
    for op in program.ops:
        if isinstance(op, Select) and compose(((0, op.operands[0].type.width),), op.columns) == _all(op.operands[0]):
            _forward(program, op, op.operands[0])
            return True
    return False


def fold_selects(program: Program) -> bool:
    users = program.users()
    outputs = set(program.outputs.values())
    for index, op in enumerate(program.ops):
        parts = [user for user in users.get(op.results[0], []) if isinstance(user, Select)]
        if not isinstance(op, Linear) or not parts or op.result in outputs or len(parts) < len(users[op.result]):
            continue
        if _share_rows(users, parts):
            continue
        ordered = sorted(parts, key=lambda part: part.columns[0])
        layers = {part: _part(program, op, part, _suffix(users, part, ordered.index(part))) for part in parts}
        program.ops[index : index + 1] = [layers[part] for part in ordered]
        program.ops = [kept for kept in program.ops if kept not in layers]
        return True
    return False


def merge_scales(program: Program) -> bool:
    producers = program.producers()
    for index, op in enumerate(program.ops):
        if not isinstance(op, Scale):
            continue
        if op.factor == 1:
            _forward(program, op, op.operands[0])
            return True
        if isinstance(inner := producers[op.operands[0]], Scale):
            program.ops[index] = replace(op, operands=inner.operands, factor=op.factor * inner.factor)
            return True
    return False


def make_logits(program: Program) -> bool:
    """Of ``a tanh(b (E x))`` the soft cap c is a, since ``c tanh(z / c)`` has ``z = a b E x``."""
    output, producers, users = program.outputs["logits"], program.producers(), program.users()
    value, factors = output, [1.0]
    while isinstance(op := producers[value], Scale | Activation):
        if isinstance(op, Scale):
            factors[-1] *= op.factor
        elif op.fn == "tanh":
            factors.append(1.0)
        else:
            return False
        value = op.operands[0]
        if len(users[value]) > 1:
            return False
    capped = len(factors) == 2
    if not isinstance(op, Linear) or users.get(output) or len(factors) > 2 or (capped and factors[0] <= 0):
        return False
    result = Value(output.name, logits(output.type.width))
    scale, softcap = (factors[0] * factors[1], factors[0]) if capped else (factors[0], 0.0)
    program.ops[program.ops.index(op)] = Logits(
        operands=op.operands, results=(result,), weight=op.weight, bias=op.bias, scale=scale, softcap=softcap
    )
    program.outputs["logits"] = result
    return remove_dead_code(program) or True


def remove_dead_code(program: Program) -> bool:
    kept = needed_ops(program.ops, program.outputs.values())
    names = [name for op in kept if isinstance(op, AuxOp) for name in op.parameters().values()]
    changed = len(kept) < len(program.ops) or set(names) != set(program.parameters)
    program.ops, program.parameters = kept, {name: program.parameters[name] for name in names}
    return changed


RULES: tuple[Callable[[Program], bool], ...] = (
    fuse_gates,
    other_products,
    fold_concats,
    merge_selects,
    lift_selects,
    drop_full_selects,
    fold_selects,
    merge_scales,
    make_logits,
    remove_dead_code,
)


def compose(outer: Runs, inner: Runs) -> Runs:
    """Runs of `inner` counted within those of `outer`, as runs of what `outer` counts in; neighbours joined.

    Runs of negative numbers are zeros, whatever they are counted in.
    """
    found: list[tuple[int, int]] = []
    for start, stop in inner:
        if start < 0:
            found.append((start - stop, 0))
            continue
        base = 0
        for first, last in outer:
            a, b = max(start, base), min(stop, base + last - first)
            if a < b:
                run = (first + a - base, first + b - base)
                if found and found[-1][1] == run[0] and found[-1][0] >= 0:
                    found[-1] = (found[-1][0], run[1])
                else:
                    found.append(run)
            base += last - first
    return tuple(found)


def _all(value: Value) -> Runs:
    return ((0, value.type.width),)


def _share_rows(users: dict[Value, list[Op]], parts: list[Select]) -> bool:
    """Whether parts cannot be layers of their own. Rows may be shared by parts that never descend."""
    fixed = {run for part in parts if feeds_scores(users, part.result) for run in part.columns if run[0] >= 0}
    moving = [run for part in parts if not feeds_scores(users, part.result) for run in part.columns if run[0] >= 0]
    ordered = sorted(moving)
    if any(before[1] > after[0] for before, after in pairwise(ordered)):
        return True
    return any(start < last and first < stop for first, last in fixed for start, stop in moving)


def _forward(program: Program, op: Op, value: Value) -> None:
    """Remove an op; its users take `value` instead."""
    mapping = {op.results[0]: value}
    program.ops = [
        replace(other, operands=substitute(other.operands, mapping)) for other in program.ops if other is not op
    ]
    program.outputs = {label: mapping.get(output, output) for label, output in program.outputs.items()}


def _part(program: Program, op: Linear, part: Select, suffix: str) -> Linear:
    """The rows of a linear layer that a select takes, as a layer of its own."""
    weight = _view(program, op.weight, part.columns, suffix)
    bias = _view(program, op.bias, part.columns, suffix) if op.bias else ""
    return Linear(operands=op.operands, results=part.results, weight=weight, bias=bias)


def _view(program: Program, name: str, rows: Runs, suffix: str) -> str:
    """Declare rows of a parameter under a name of their own; another view of that name gets a number."""
    old = program.parameters[name]
    taken = compose(old.rows or ((0, old.shape[0]),), rows)
    count = sum(stop - start for start, stop in taken)
    wanted = Parameter(old.source, (count, *old.shape[1:]), old.transpose, taken)
    stem, _, last = name.rpartition(".")
    alias, number = ".".join(filter(None, (stem, suffix, last))), 1
    while program.parameters.setdefault(alias, wanted) != wanted:
        number += 1
        alias = ".".join(filter(None, (stem, f"{suffix}{number}", last)))
    return alias


def _suffix(users: dict[Value, list[Op]], part: Op, position: int) -> str:
    """What the part feeds."""
    consumers = users.get(part.result, [])
    if len(consumers) == 1:
        (user,) = consumers
        at = user.operands.index(part.result)
        if isinstance(user, Attention):
            return "qkv"[at]
        if isinstance(user, Add | Norm | Scale | Activation):
            return _suffix(users, user, position)
        if isinstance(user, Gate):
            return ("up", "gate")[at]
    return f"part{position}"


def _refuse_leftovers(program: Program) -> None:
    reasons: list[Reason] = []
    for op in program.ops:
        if isinstance(op, Activation) and op.fn in GATES_ONLY:
            why = f"{op.fn} is supported only as a factor of another value"
            reasons.append(Reason(op.opname, op.result.name, why))
        elif isinstance(op, Select):
            why = "parts are supported only of a linear layer that is used by parts alone, which do not overlap"
            reasons.append(Reason(op.opname, op.result.name, why))
        elif isinstance(op, Embedding | Logits):
            reasons += _too_wide(op, program.attributes["width"])
    output = program.outputs["logits"]
    if not isinstance(program.producers()[output], Logits):
        reasons.append(Reason("logits", output.name, "the logits must be the result of a linear layer"))
    if reasons:
        raise UnsupportedModelError("This model", reasons)


def _too_wide(op: Embedding | Logits, width: int) -> list[Reason]:
    """Tables may be narrower than the residual stream (OPT-350m's are), since a slot holds what is as wide as that."""
    wide = (op.operands[0] if isinstance(op, Logits) else op.result).type.width
    why = f"its table is {wide} wide, more than the {width} of the residual stream"
    return [Reason(op.opname, op.result.name, why)] if wide > width else []
