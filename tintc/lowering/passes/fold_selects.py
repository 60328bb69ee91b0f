"""A rule of `canonicalise`: linear layers of which only parts are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from tintc.ir.auxiliary import (
    Activation,
    Add,
    Attention,
    Convolution,
    Experts,
    Gate,
    Linear,
    Norm,
    Pointwise,
    Recurrence,
    Scale,
    Select,
)
from tintc.ir.columns import Pairs, Runs, compose, folded, strided_runs_of, unfolded, unit_runs, width_of
from tintc.ir.core import Op, Program, Value
from tintc.lowering.passes.fold_concats import feeds_scores


def fold_selects(program: Program, scores_descend: bool = False) -> bool:
    """Rewrite the selects of one linear layer as layers of their own. Return True if there was such a layer.

    The layers of experts, which read a stack of matrices, are cut alike: each matrix's rows.

    ``select(linear(x))`` is a linear layer with those rows of the weight and bias. A row that descends belongs to one
    layer: selects that share rows, or take one twice, become selects of a layer with all their rows. What feeds queries
    and keys alone does not descend unless `scores_descend`, and may share, and have rows of zeros. The parts'
    parameters are named after what they feed: ``q``, ``k``, ``v`` of an attention, ``gate``, ``up`` of a gate, else
    ``part0``, ``part1``.
    """
    users = program.users()
    outputs = set(program.outputs.values())
    for index, op in enumerate(program.ops):
        parts = [user for user in users.get(op.results[0], []) if isinstance(user, Select)]
        if (
            not isinstance(op, Linear | Experts)
            or not parts
            or op.result in outputs
            or len(parts) < len(users[op.result])
        ):
            continue
        ordered = sorted(parts, key=lambda part: part.columns[0])
        fixed = {part for part in parts if not scores_descend and feeds_scores(users, part.result)}
        groups = _sharing_rows(ordered, fixed)
        if not _is_layer(groups[0], fixed) and _rows(groups[0]) == ((0, op.result.type.width),):
            continue
        layers: list[Op] = []
        for group in groups:
            suffix = word_for(users, group[0], ordered.index(group[0]))
            if _is_layer(group, fixed):
                layers.append(_layer(program, op, group[0], suffix))
            else:
                layers += _common(program, op, group)
        program.ops[index : index + 1] = layers
        program.ops = [kept for kept in program.ops if kept not in parts]
        return True
    return False


def _sharing_rows(parts: Sequence[Select], fixed: set[Select]) -> list[list[Select]]:
    """Return the parts in groups: those that share rows stand together."""
    groups: list[list[Select]] = []
    for part in parts:
        sharing = [group for group in groups if any(_overlap(part, other, fixed) for other in group)]
        groups = [group for group in groups if group not in sharing]
        groups.append([*(other for group in sharing for other in group), part])
    return groups


def _overlap(a: Select, b: Select, fixed: set[Select]) -> bool:
    """Return True if two parts share a row, and one of them may descend."""
    return not {a, b} <= fixed and any(i < n and m < j for i, j in set(_taken(a)) for m, n in set(_taken(b)))


def _taken(*parts: Select) -> list[tuple[int, int]]:
    """Return the runs of rows that parts take, in order."""
    return sorted(run for part in parts for run in unfolded(part.columns) if run[0] >= 0)


def _is_layer(group: Sequence[Select], fixed: set[Select]) -> bool:
    """Return True if a group is one part that may be a layer of its own: a row of zeros must not descend, and no row in
    two places."""
    (part, *others) = group
    if others or part in fixed:
        return not others
    each_once = all(a[1] <= b[0] for a, b in pairwise(_taken(part)))
    return each_once and all(run[0] >= 0 for run in unfolded(part.columns))


def _rows(group: Sequence[Select]) -> Pairs:
    """Return all rows that some parts take, each once, in order."""
    runs: list[tuple[int, int]] = []
    for start, stop in _taken(*group):
        if runs and start <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(stop, runs[-1][1]))
        else:
            runs.append((start, stop))
    return tuple(runs)


def _common(program: Program, op: Linear | Experts, group: Sequence[Select]) -> list[Op]:
    """Return a layer of the rows that some parts share, and the parts as selects of it."""
    rows = _rows(group)
    kind = op.result.type
    width = sum(stop - start for start, stop in rows)
    whole = Value(f"{group[0].result.name}.rows", replace(kind, dims=(*kind.dims[:-1], width)))
    layer = _layer(program, op, Select(operands=op.operands, results=(whole,), columns=rows), "rows")
    return [layer, *(replace(part, operands=(whole,), columns=_within(part.columns, rows)) for part in group)]


def _within(columns: Runs, rows: Pairs) -> Runs:
    """Return columns, each inside of one of the runs `rows`, counted among those."""
    shifted: list[tuple[int, int]] = []
    for a, b in unfolded(columns):
        shift = 0
        if a >= 0:
            shift = sum(min(stop, a) - start for start, stop in rows if start <= a) - a
        shifted.append((a + shift, b + shift))
    return folded(shifted)


def _layer(program: Program, op: Linear | Experts, part: Select, suffix: str) -> Op:
    """Return the rows of a linear layer that a select takes, as a layer of its own."""
    weight = rows_of(program, op.weight, part.columns, suffix)
    bias = ""
    if op.bias:
        bias = rows_of(program, op.bias, part.columns, suffix)
    return replace(op, results=part.results, weight=weight, bias=bias)


def rows_of(program: Program, name: str, rows: Runs, suffix: str) -> str:
    """Declare rows of a parameter under a name of their own and return it; another view of that name gets a number."""
    old = program.parameters[name]
    at = int(old.stacked)
    count = width_of(rows)
    taken = _fewest(unfolded(compose(unit_runs(old.rows or ((0, old.shape[at]),)), rows)))
    shape = (*old.shape[:at], count, *old.shape[at + 1 :])
    wanted = replace(old, shape=shape, rows=taken)
    stem, _, last = name.rpartition(".")
    alias = ".".join(filter(None, (stem, suffix, last)))
    number = 1
    while program.parameters.setdefault(alias, wanted) != wanted:
        number += 1
        alias = ".".join(filter(None, (stem, f"{suffix}{number}", last)))
    return alias


def _fewest(rows: Pairs) -> tuple[tuple[int, ...], ...]:
    """Return the same rows as runs with steps, where these are fewer: every other row is one run.

    Rows of zeros, whose numbers are negative, stay as they are.
    """
    if any(start < 0 for start, _ in rows):
        return rows
    numbers = [number for run in rows for number in range(*run)]
    strided = strided_runs_of(numbers)
    if numbers == sorted(set(numbers)) and len(strided) < len(rows):
        return strided
    return rows


def word_for(users: dict[Value, list[Op]], part: Op, position: int) -> str:
    """Return a word for what the part feeds."""
    consumers = users.get(part.result, [])
    if len(consumers) == 1:
        (user,) = consumers
        at = user.operands.index(part.result)
        if isinstance(user, Attention | Recurrence):
            return ("q", "k", "v", "g", "beta")[at]
        if isinstance(user, Add | Norm | Scale | Activation | Convolution | Pointwise):
            return word_for(users, user, position)
        if isinstance(user, Gate):
            return ("up", "gate")[at]
    return f"part{position}"
