"""`canonicalise`: one way of writing each thing.

Rules, applied until none changes anything. Each rewrites the program in place and returns True if it changed it:

- `fuse_gates`: ``multiply(x, activation(u))`` is ``gate(x, u)``, if nothing else uses the activation;
- `other_products`: any other ``multiply(x, y)`` is a gate whose activation is the identity;
- `fold_concats`: a select of several values side by side is the sum of a select of each, with zeros for the others;
- `join_equal_selects`: equal selects of one value are one;
- `merge_selects`: ``select(select(x))`` is one select;
- `lift_selects`: ``select(f(x))`` is ``f(select(x))`` for a scale, activation f with f(0) = 0 or convolution that only
  selects read;
- `drop_full_selects`: a select of all columns in order is its operand;
- `fold_selects`: ``select(linear(x))`` is a linear layer with those rows of the weight and bias, if the layer is used
  by selects alone; those that share rows are selects of one layer with all their rows;
- `merge_scales`: ``scale(scale(x))`` is one scale, and a scale by 1 is its operand;
- `make_logits`: the linear layer whose result, perhaps scaled, and soft-capped as ``c * tanh(z / c)``, is the output is
  ``logits``;
- `remove_dead_code`: ops and parameters that nothing uses go; parameters stand in the order of their use.

Sigmoids outside of a product that remain have no place in a simulator and are refused, all at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from tintc.errors import Reason, UnsupportedModelError
from tintc.ir.auxiliary import Activation, Embedding, Gate, Linear, Logits, Multiply, Scale
from tintc.ir.core import Op, Program, Value, logits
from tintc.ir.functions import GATES_ONLY
from tintc.lowering.passes.fold_concats import fold_concats
from tintc.lowering.passes.fold_selects import fold_selects
from tintc.lowering.passes.rewrites import drop_op, remove_dead_code
from tintc.lowering.passes.simplify_selects import drop_full_selects, join_equal_selects, lift_selects, merge_selects


def canonicalise(program: Program, full: bool = False) -> Program:
    """Return the program in canonical form; its argument is left alone. full: whether what makes queries and keys may
    descend, and so must be stored once.

    Raises `UnsupportedModelError` for sigmoids that no rule removes, and for logits that are not the result of a linear
    layer.
    """
    program.verify()
    ops = [replace(op) for op in program.ops]
    program = Program(program.dialect, dict(program.attributes), dict(program.parameters), ops, dict(program.outputs))
    rules = [partial(fold_selects, scores_descend=full) if rule is fold_selects else rule for rule in RULES]
    while sum(rule(program) for rule in rules):
        program.verify()
    _refuse_leftovers(program)
    return program.verify()


def fuse_gates(program: Program) -> bool:
    """Fuse one product with the activation that makes a factor. Return True if there was one."""
    producers = program.producers()
    users = program.users()
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
    """Return True if nothing but one product uses an activation, or it cannot stand alone anyway."""
    return act.fn in GATES_ONLY or len(users[act.result]) == 1


def other_products(program: Program) -> bool:
    """Turn one product of other values into a gate. Return True if there was one."""
    producers = program.producers()
    users = program.users()
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


def merge_scales(program: Program) -> bool:
    """Merge one scale of a scale, or drop one by 1. Return True if there was one."""
    producers = program.producers()
    for index, op in enumerate(program.ops):
        if not isinstance(op, Scale):
            continue
        if op.factor == 1:
            drop_op(program, op, op.operands[0])
            return True
        if isinstance(inner := producers[op.operands[0]], Scale):
            program.ops[index] = replace(op, operands=inner.operands, factor=op.factor * inner.factor)
            return True
    return False


def make_logits(program: Program) -> bool:
    """Turn the linear layer that makes the output into logits. Return True if it was one.

    Of ``a tanh(b (E x))`` the soft cap c is a, since ``c tanh(z / c)`` has ``z = a b E x``.
    """
    output = program.outputs["logits"]
    producers = program.producers()
    users = program.users()
    value = output
    factors = [1.0]
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
    scale = math.prod(factors)
    softcap = 0.0
    if capped:
        softcap = factors[0]
    program.ops[program.ops.index(op)] = Logits(
        operands=op.operands, results=(result,), weight=op.weight, bias=op.bias, scale=scale, softcap=softcap
    )
    program.outputs["logits"] = result
    return remove_dead_code(program) or True


RULES: tuple[Callable[[Program], bool], ...] = (
    fuse_gates,
    other_products,
    fold_concats,
    join_equal_selects,
    merge_selects,
    lift_selects,
    drop_full_selects,
    fold_selects,
    merge_scales,
    make_logits,
    remove_dead_code,
)


def _refuse_leftovers(program: Program) -> None:
    """Raise `UnsupportedModelError` with all that no rule has brought into canonical form."""
    reasons: list[Reason] = []
    for op in program.ops:
        if isinstance(op, Activation) and op.fn in GATES_ONLY:
            why = f"{op.fn} is supported only as a factor of another value"
            obstacle = f"the function {op.fn} elsewhere than in a gate"
            reasons.append(Reason(op.opname, op.result.name, why, obstacle))
        elif isinstance(op, Embedding | Logits):
            reasons += _too_wide(op, program.attributes["width"])
    output = program.outputs["logits"]
    if not isinstance(program.producers()[output], Logits):
        why = "the logits must be the result of a linear layer"
        reasons.append(Reason("logits", output.name, why, "logits that no linear layer makes"))
    if reasons:
        raise UnsupportedModelError("This model", reasons)


def _too_wide(op: Embedding | Logits, width: int) -> list[Reason]:
    """Return the reasons against tables that are wider than the residual stream.

    They may be narrower (OPT-350m's are), since a slot holds what is as wide as the stream.
    """
    (value,) = op.operands or op.results
    wide = value.type.width
    if wide <= width:
        return []
    why = f"its table is {wide} wide, more than the {width} of the residual stream"
    obstacle = "an embedding or a head that is wider than the residual stream"
    return [Reason(op.opname, op.result.name, why, obstacle)]
