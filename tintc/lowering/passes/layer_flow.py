"""Which operations of a program lead to which: what `assign_layers` decides layers and roles by."""

from __future__ import annotations

from collections.abc import Sequence

from tintc.ir.auxiliary import (
    Activation,
    Add,
    Attention,
    Convolution,
    Gate,
    Linear,
    Norm,
    Pointwise,
    Recurrence,
    Route,
    Scale,
    Select,
)
from tintc.ir.core import Op, Program, Value

QUERY, KEY, VALUE, GATE, RECURRENT_QUERY, RECURRENT_KEY, OTHER = range(7)
"""What a value may serve as; queries and keys of attentions aside from those of recurrences."""
RECURRENT = (RECURRENT_QUERY, RECURRENT_KEY, VALUE, GATE, GATE)
"""What the operands of a recurrence are."""
SCORES = frozenset({QUERY, KEY, RECURRENT_QUERY, RECURRENT_KEY})
CONSTANT = frozenset({GATE, RECURRENT_QUERY, RECURRENT_KEY})
"""What a recurrence takes for constants of the backward pass."""
PASSED = Norm | Add | Scale | Gate | Select | Activation | Convolution | Pointwise
"""What may lie between a linear layer and the attention whose operand it makes."""


class Flow:
    """The flow of values in a program of the auxiliary dialect: who feeds whom."""

    def __init__(self, program: Program):
        self.ops = program.ops
        self.producers = program.producers()
        self.users = program.users()
        self.order = {op: index for index, op in enumerate(program.ops)}
        self.head = self.producers[program.outputs["logits"]]
        self.ancestors: dict[Op, frozenset[Op]] = {}
        for op in program.ops:
            sources = self.sources(op)
            self.ancestors[op] = frozenset(sources).union(*(self.ancestors[source] for source in sources))
        self.groups = self._groups([op for op in program.ops if self.mixes(op)])

    def sources(self, op: Op) -> list[Op]:
        """Return the ops whose results the op reads."""
        return [self.producers[value] for value in op.operands]

    def mixes(self, op: Op) -> bool:
        """Return True if an op counts as the attention of a layer."""
        if isinstance(op, Convolution):
            return not self._leads_to_mixer(op.result)
        return isinstance(op, Attention | Recurrence)

    def _leads_to_mixer(self, value: Value) -> bool:
        """Return True if a value leads to an attention or a recurrence without passing a linear layer or a sum with
        the residual stream."""
        return any(
            isinstance(user, Attention | Recurrence)
            or (isinstance(user, PASSED) and not isinstance(user, Add) and self._leads_to_mixer(user.result))
            for user in self.users.get(value, [])
        )

    def _groups(self, attentions: list[Op]) -> list[list[Op]]:
        """Return the attentions by layer."""
        groups: list[list[Op]] = []
        for op in attentions:
            if groups and not self.ancestors[op].intersection(groups[-1]):
                groups[-1].append(op)
            else:
                groups.append([op])
        return groups

    def paths_from(self, root: Op) -> dict[Op, frozenset[Op]]:
        """Return the ops that every path from `root` to an op passes, both ends included, for every op that `root`
        leads to."""
        passed: dict[Op, frozenset[Op]] = {root: frozenset({root})}
        for op in self.ops[self.order[root] + 1 :]:
            reached = [passed[source] for source in self.sources(op) if source in passed]
            if reached:
                passed[op] = frozenset.intersection(*reached) | {op}
        return passed

    def passed(self, roots: Sequence[Op], goals: Sequence[Op]) -> list[Op]:
        """Return the ops that every path from a root to a goal passes, in order, goals aside; none unless every root
        leads to every goal."""
        paths = [self.paths_from(root) for root in roots]
        if not paths or any(goal not in before for before in paths for goal in goals):
            return []
        common = frozenset.intersection(*(before[goal] for before in paths for goal in goals))
        return sorted(common - set(goals), key=self.order.__getitem__)

    def before_attention(self, value: Value, summed: bool = False) -> set[int]:
        """Return what a value serves attentions as; `OTHER` for any other use.

        Linear layers end the search, except those that make constants of a recurrence alone, if no sum comes before
        them (summed): it may be with the residual stream.
        """
        uses: set[int] = set()
        for user in self.users.get(value, []):
            operands = [at for at, operand in enumerate(user.operands) if operand is value]
            if isinstance(user, Attention):
                uses.update(operands)
            elif isinstance(user, Recurrence):
                uses.update(RECURRENT[at] for at in operands)
            elif isinstance(user, Convolution) and self.mixes(user):
                uses.add(VALUE)
            elif isinstance(user, PASSED):
                uses |= self.before_attention(user.result, summed or self._may_add_residual(user))
            elif isinstance(user, Linear) and not summed and self.before_attention(user.result) <= CONSTANT:
                uses |= self.before_attention(user.result)
            else:
                uses.add(OTHER)
        return uses or {OTHER}

    def _may_add_residual(self, op: Op) -> bool:
        """Return True for sums, but those of linear layers' results that do not need each other, as of a layer and its
        adapter."""
        if not isinstance(op, Add):
            return False
        summands = [self._behind_scale(operand) for operand in op.operands]
        needed = frozenset().union(*(self.ancestors[summand] for summand in summands))
        return any(not isinstance(summand, Linear) or summand in needed for summand in summands)

    def _behind_scale(self, value: Value) -> Op:
        op = self.producers[value]
        while isinstance(op, Scale):
            op = self.producers[op.operands[0]]
        return op

    def feeds_routing(self, value: Value) -> bool:
        """Return True if a value reaches the choice of experts and nothing else, what is linear aside."""
        readers = self.users.get(value, [])
        return bool(readers) and all(
            isinstance(user, Route) or (isinstance(user, PASSED | Linear) and self.feeds_routing(user.result))
            for user in readers
        )

    def after_attention(self, value: Value) -> bool:
        """Return True if a value is an attention's result, or made of such alone; gates may come from elsewhere."""
        op = self.producers[value]
        if isinstance(op, Norm | Scale | Select | Add):
            return all(self.after_attention(operand) for operand in op.operands)
        return self.mixes(op) or (isinstance(op, Gate) and any(map(self.after_attention, op.operands)))
