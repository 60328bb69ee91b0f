"""`assign_layers`: assign every op its layer, and its role there, by structure alone.

Layers are counted by what mixes tokens: attentions, recurrences, and convolutions whose result does not lead to one of
these without passing a linear layer. Below, all of them are called attentions. Of those that follow each other in the
program, attentions that do not need each other are of one layer. The boundary d_i, where layer i begins, is the deepest
op that lies on every path from layer i - 1's attentions (at first: from the token embeddings that attention 0 needs) to
layer i's, and on every path from there to the logits: the residual stream's value that the layer reads. Layer i holds
what follows d_i and leads to d_{i+1}, except what leads past d_{i+1} too and is not needed by layer i's attentions:
that serves several layers, and is of none. The end of the last layer is found by counting: as many ops as on every path
from the attentions of the layer before it to its end are on every path from its own, or, where layers mix tokens in
several ways, as many after the last sum; a single layer ends at the last sum.

    embed = d_0 --+-- norm - attention --+              +-- norm - ffn --+
                  |                      |              |                |
                  +---------------------add-------------+---------------add = d_1 --+-- norm - attention ...

In a usual decoder d_0 is the embedding, and d_1 the sum after layer 0's feed-forward: the last op that every path
passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from tintc.errors import Reason, UnsupportedModelError
from tintc.ir.auxiliary import (
    Add,
    Attention,
    AuxOp,
    Embedding,
    Experts,
    Linear,
    Norm,
)
from tintc.ir.core import Op, Program
from tintc.lowering.passes.layer_flow import (
    CONSTANT,
    KEY,
    OTHER,
    QUERY,
    RECURRENT_KEY,
    RECURRENT_QUERY,
    SCORES,
    VALUE,
    Flow,
)


def assign_layers(program: Program) -> Program:
    """Return the program with `layer` and `role` set on every op, and the attribute ``n_layers``; its argument is left
    alone.

    Linear layers: query, key, value, gate (decays and strengths of a recurrence), output, ffn, router; lora, an
    adapter's; projection outside the layers. Those of experts: ffn. Norms: layer, or qk between a query, key or gate
    layer and its attention, heads if single heads are normalised; embedding before the first layer, final after the
    last. Raises `UnsupportedModelError` if the attentions do not form a chain.
    """
    flow = Flow(program)
    layers = _layers(flow)
    ops: list[Op] = []
    reasons: list[Reason] = []
    for op in program.ops:
        assert isinstance(op, AuxOp)
        layer = layers.get(op, -1)
        role = _role(flow, op, layer)
        if role == "mixed":
            why = "one linear layer makes operands of attention and something of a different kind"
            reasons.append(
                Reason(op.opname, op.result.name, why, "a linear layer for attention and for something else")
            )
        ops.append(replace(op, layer=layer, role=role))
    if reasons:
        raise UnsupportedModelError("This model", reasons)
    attributes = {**program.attributes, "n_layers": len(flow.groups)}
    return Program(program.dialect, attributes, dict(program.parameters), ops, dict(program.outputs)).verify()


def _layers(flow: Flow) -> dict[Op, int]:
    """Return the layer of every op that is in one."""
    starts = _starts(flow)
    layers: dict[Op, int] = {}
    for index, (start, stop) in enumerate(pairwise((*starts, _end(flow, starts)))):
        inside = [op for op in flow.ops if start in flow.ancestors[op] and (op is stop or op in flow.ancestors[stop])]
        layers |= dict.fromkeys(_own(flow, inside, stop, flow.groups[index]), index)
    return layers


def _own(flow: Flow, inside: list[Op], stop: Op, attentions: Sequence[Op]) -> set[Op]:
    """Return the ops between a layer's start and its end that are the layer's own.

    They are those that lead on through the end alone, and those that the layer's attentions need.
    """
    needed = frozenset(attentions).union(*(flow.ancestors[op] for op in attentions))
    own: set[Op] = set()
    for op in reversed(inside):
        if op is stop or op in needed or own.issuperset(flow.users.get(op.results[0], [])):
            own.add(op)
    return own


def _starts(flow: Flow) -> list[Op]:
    """Return the op with which every layer begins; raise `UnsupportedModelError` if the attentions do not form a
    chain."""
    reasons: list[Reason] = []
    starts: list[Op] = []
    for index, group in enumerate(flow.groups):
        if index:
            before = flow.groups[index - 1]
        else:
            before = _embeddings(flow, group)
        common = flow.passed(before, (*group, flow.head))
        if common:
            starts.append(common[-1])
        else:
            why = "it does not follow the attention before it, and layers must form a chain"
            obstacle = "layers that do not follow one another"
            reasons += [Reason(op.opname, op.result.name, why, obstacle) for op in group]
    if not flow.groups:
        why = "a decoder needs at least one causal self-attention, recurrence or convolution"
        reasons.append(Reason("aux.attention", "the model", why, "no layer that mixes tokens"))
    if reasons:
        raise UnsupportedModelError("This model", reasons)
    return starts


def _embeddings(flow: Flow, group: Sequence[Op]) -> list[Op]:
    """Return the token embeddings that a group of attentions needs; positions and constants join in later."""
    needed = frozenset().union(*(flow.ancestors[op] for op in group))
    return [op for op in flow.ops if type(op) is Embedding and op in needed]


def _end(flow: Flow, starts: list[Op]) -> Op:
    """Return the last layer's end, among the ops that every path from its attentions to the logits passes."""
    after = flow.passed(flow.groups[-1], (flow.head,))
    sums = [op for op in after if isinstance(op, Add)]
    if len(starts) > 1:
        before = [*flow.passed(flow.groups[-2], starts[-1:]), starts[-1]]
        place = len(before) - 1
        if sums and not all(isinstance(op, Attention) for group in flow.groups for op in group):
            place += _last_sum(after) - _last_sum(before)
        if place < len(after):
            return after[place]
    if sums:
        return sums[-1]
    inner = [op for op in after if not isinstance(op, Norm)]
    return (inner or starts)[-1]


def _last_sum(ops: Sequence[Op]) -> int:
    """Return the place of the last sum; 0 if there is none."""
    return max((place for place, op in enumerate(ops) if isinstance(op, Add)), default=0)


def _role(flow: Flow, op: AuxOp, layer: int) -> str:
    """Return the role of an op in its layer, empty for ops that have none."""
    if isinstance(op, Experts):
        if layer >= 0:
            return "ffn"
        return "projection"
    if isinstance(op, Linear):
        return _linear_role(flow, op, layer)
    if not isinstance(op, Norm):
        return ""
    if layer < 0:
        return "final" if flow.ancestors[op].intersection(flow.groups[-1]) else "embedding"
    if flow.before_attention(op.result) <= SCORES | CONSTANT:
        return "qk"
    if op.groups > 1 and (op.weight or op.bias):
        return "heads"
    return "layer"


def _linear_role(flow: Flow, op: Linear, layer: int) -> str:
    """Return the role of a linear layer; ``mixed`` if it makes both operands of attention and something else."""
    if layer < 0:
        return "projection"
    if flow.feeds_routing(op.result):
        return "router"
    feeds = flow.before_attention(op.result)
    if op.role == "lora":  # as the importer says, which knows an adapter's layers from others
        return _adapter_role(flow, op, feeds)
    if feeds == {OTHER}:
        return "output" if flow.after_attention(op.operands[0]) else "ffn"
    if OTHER in feeds:
        return "mixed"
    # A layer that makes values besides queries or keys gets the gradient of the values alone.
    for role, uses in (("value", {VALUE}), ("key", {KEY, RECURRENT_KEY}), ("query", {QUERY, RECURRENT_QUERY})):
        if feeds & uses:
            return role
    return "gate"


def _adapter_role(flow: Flow, op: Linear, feeds: set[int]) -> str:
    """Return the role of one of an adapter's two layers: that of the second, which reads the first alone."""
    readers = flow.users.get(op.result, [])
    if all(isinstance(reader, Linear) for reader in readers):
        feeds = set().union(*(flow.before_attention(reader.results[0]) for reader in readers))
    for role, uses in (("key", {KEY, RECURRENT_KEY}), ("query", {QUERY, RECURRENT_QUERY})):
        if feeds <= {QUERY, KEY, RECURRENT_QUERY, RECURRENT_KEY} and feeds & uses:
            return role
    return "lora"
