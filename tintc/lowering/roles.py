"""`assign_roles`: which layer each op belongs to, and what it is for there, by structure alone.

Layers are counted by attentions. Write dom(v) for the ops that every path from the token embedding to v passes. The
boundary d_i, where layer i begins, is the deepest op other than the attention itself in
``dom(attention i) & dom(logits)``: the residual stream's value that the layer reads. Layer i holds what follows d_i and
leads to d_{i+1}. Where the last layer ends is found by counting: it has as many dominators of the logits as the layer
before it; a single layer ends at the last sum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from tintc.errors import Reason, UnsupportedModelError
from tintc.ir.auxiliary import (
    Activation,
    Add,
    Attention,
    AuxOp,
    Embedding,
    Linear,
    Logits,
    Norm,
    PositionEmbedding,
    Scale,
)
from tintc.ir.core import Op, Program, Value

OPERANDS = ("query", "key", "value")


def assign_roles(program: Program) -> Program:
    """The program with `layer` and `role` set on every op, and the attribute ``n_layers``; the one given is left alone.

    Linear layers: query, key, value, output, ffn; projection outside the layers. Norms: layer, or qk between a query or
    key layer and its attention; embedding before the first layer, final after the last. Raises `UnsupportedModelError`
    if the attentions do not form a chain.
    """
    flow = _Flow(program)
    layers = _layers(flow)
    ops: list[Op] = []
    reasons: list[Reason] = []
    for op in program.ops:
        assert isinstance(op, AuxOp)
        layer = layers.get(op, -1)
        role = _role(flow, op, layer)
        if role == "mixed":
            why = "one linear layer makes operands of attention of different kinds"
            reasons.append(Reason(op.opname, op.result.name, why))
        if isinstance(op, Norm) and op.groups > 1 and (op.weight or op.bias) and role != "qk":
            why = "norms of single heads, of anything but queries and keys, must have neither gain nor bias"
            reasons.append(Reason(op.opname, op.result.name, why))
        ops.append(replace(op, layer=layer, role=role))
    if reasons:
        raise UnsupportedModelError("This model", reasons)
    attributes = {**program.attributes, "n_layers": len(flow.attentions)}
    return Program(program.dialect, attributes, dict(program.parameters), ops, dict(program.outputs)).verify()


class _Flow:
    """Who feeds whom, who dominates whom, in a program of the auxiliary dialect."""

    def __init__(self, program: Program):
        self.ops = program.ops
        self.producers = program.producers()
        self.users = program.users()
        self.order = {op: index for index, op in enumerate(program.ops)}
        self.attentions = [op for op in program.ops if isinstance(op, Attention)]
        self.head = self.producers[program.outputs["logits"]]
        self.ancestors: dict[Op, frozenset[Op]] = {}
        self.dominators: dict[Op, frozenset[Op]] = {}
        for op in program.ops:
            self._visit(op)

    def _visit(self, op: Op) -> None:
        sources = [self.producers[value] for value in op.operands]
        self.ancestors[op] = frozenset(sources).union(*(self.ancestors[source] for source in sources))
        reached = [self.dominators[source] for source in sources if source in self.dominators]
        if reached:
            self.dominators[op] = frozenset.intersection(*reached) | {op}
        elif isinstance(op, Embedding) and not isinstance(op, PositionEmbedding):
            self.dominators[op] = frozenset({op})

    def chain(self, op: Op) -> list[Op]:
        """Dominators of an op, first to last."""
        return sorted(self.dominators.get(op, ()), key=self.order.__getitem__)

    def before_attention(self, value: Value) -> set[int]:
        """Which operands of attentions a value feeds, through norms, sums and functions of single numbers only; -1 for
        any other use."""
        found: set[int] = set()
        for user in self.users.get(value, []):
            if isinstance(user, Attention):
                found.update(at for at, operand in enumerate(user.operands) if operand is value)
            elif isinstance(user, Norm | Add | Scale | Activation):
                found |= self.before_attention(user.result)
            else:
                found.add(-1)
        return found or {-1}

    def after_attention(self, value: Value) -> bool:
        """Whether a value is an attention's result, or a norm of one."""
        op = self.producers[value]
        return isinstance(op, Attention) or (isinstance(op, Norm | Scale) and self.after_attention(op.operands[0]))


@dataclass(frozen=True)
class _Boundaries:
    """Where layers begin, and where the last one ends; all are dominators of the logits."""

    starts: tuple[Op, ...]
    end: Op


def _layers(flow: _Flow) -> dict[Op, int]:
    found = _boundaries(flow)
    marks = (*found.starts, found.end)
    layers: dict[Op, int] = {}
    for index, (start, stop) in enumerate(pairwise(marks)):
        inside = flow.ancestors[stop] | {stop}
        layers.update({op: index for op in inside if start in flow.ancestors[op]})
    return layers


def _boundaries(flow: _Flow) -> _Boundaries:
    stem = flow.chain(flow.head)
    reasons: list[Reason] = []
    starts: list[Op] = []
    for index, op in enumerate(flow.attentions):
        common = [other for other in stem if other in flow.dominators.get(op, ()) and other is not op]
        previous = flow.attentions[index - 1] if index else None
        chained = previous is None or (common and previous in flow.ancestors[common[-1]] | {common[-1]})
        if not common or not chained or op not in flow.ancestors[flow.head]:
            why = "it does not follow the attention before it, and layers must form a chain"
            reasons.append(Reason(op.opname, op.result.name, why))
        else:
            starts.append(common[-1])
    if not flow.attentions:
        reasons.append(Reason("aux.attention", "the model", "a decoder needs at least one causal self-attention"))
    if reasons:
        raise UnsupportedModelError("This model", reasons)
    return _Boundaries(tuple(starts), _end(flow, stem, starts))


def _end(flow: _Flow, stem: list[Op], starts: list[Op]) -> Op:
    """The last layer's end among the logits' dominators `stem`."""
    last = stem.index(starts[-1])
    after = [op for op in stem[last + 1 :] if not isinstance(op, Logits)]
    if len(starts) > 1:
        length = last - stem.index(starts[-2])
        if length <= len(after) and flow.attentions[-1] in flow.ancestors[after[length - 1]] | {after[length - 1]}:
            return after[length - 1]
    sums = [op for op in after if isinstance(op, Add)]
    if sums:
        return sums[-1]
    inner = [op for op in after if not isinstance(op, Norm)]
    return inner[-1] if inner else starts[-1]


def _role(flow: _Flow, op: AuxOp, layer: int) -> str:
    if isinstance(op, Linear):
        return _linear_role(flow, op, layer)
    if not isinstance(op, Norm):
        return ""
    if layer >= 0:
        return "qk" if flow.before_attention(op.result) <= {0, 1} else "layer"
    return "final" if flow.attentions[-1] in flow.ancestors[op] else "embedding"


def _linear_role(flow: _Flow, op: Linear, layer: int) -> str:
    if layer < 0:
        return "projection"
    feeds = flow.before_attention(op.result)
    if feeds == {-1}:
        return "output" if flow.after_attention(op.operands[0]) else "ffn"
    return OPERANDS[feeds.pop()] if len(feeds) == 1 else "mixed"
