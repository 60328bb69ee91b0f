"""`check_graph`: compare an imported program with the exported graph it was read off, both in fp64.

Both compute with the checkpoint's own numbers, and every cast that the graph asks for is to fp64; so the dtype of the
checkpoint hides nothing, and what is left is rounding of 1e-16. `check_agreement` compares with the model itself,
padding included, as exactly as its dtype lets it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from tintc.errors import ModelError
from tintc.frontend.agreement import LENGTH
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import CHECKS, execute, opname, widened
from tintc.ir.auxiliary import AuxOp, Embedding, Logits
from tintc.ir.auxiliary.base import Context
from tintc.ir.auxiliary.interpreter import EXACT, loading
from tintc.ir.core import Program, Value
from tintc.ir.inputs import resolve_inputs
from tintc.ir.lazy import Lazy

BATCH = 2
ALLOWED = 1e-7
"""Largest difference relative to the size of the logits; constants that a model has stored in fp32 give 2e-9."""
ROWS = 8192
"""Rows of the language-model head that are widened at once: whole, it is the largest tensor there is."""


@torch.no_grad()
def check_graph(name: str, graph: CapturedGraph, program: Program, tensors: Mapping[str, Tensor]) -> None:
    """Compare logits on a probe of `BATCH` texts without padding; raise `ModelError` if they differ.

    tensors: those of the graph, by name. It takes the memory of the largest layer in fp64.
    """
    device = next(iter(graph.tensors.values())).device
    generator = torch.Generator().manual_seed(0)
    length = min(LENGTH, graph.max_length)
    ids = torch.randint(0, program.attributes["vocab_size"], (BATCH, length), generator=generator).to(device)
    expected = _graph_logits(graph, tensors, ids)
    computed = _program_logits(program, tensors, ids)
    error = float((computed - expected).norm() / expected.norm())
    if not error <= ALLOWED:
        raise ModelError(
            f"{name} is not compiled, because its program and the graph that it was read off differ: in fp64 the "
            f"logits are {error:.2g} apart, relatively, and {ALLOWED:g} is allowed. Please report it."
        )


def _graph_logits(graph: CapturedGraph, tensors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    """Return the graph's logits ``[B, T, V]``."""
    last_use = {source: node for node in graph.module.graph.nodes for source in node.all_input_nodes}
    values: dict[Node, Any] = {graph.input_ids: ids}

    def narrow(node: Node) -> Any:
        if node in graph.names:
            return tensors[graph.names[node]]
        return values[node]

    def wide(node: Node) -> Any:
        value = narrow(node)
        if isinstance(value, Tensor):
            return widened(value, torch.float64)
        return value

    for node in graph.module.graph.nodes:
        if node.op != "call_function" or opname(node) in CHECKS:
            continue
        values[node] = _value(graph, node, narrow, wide)
        for source in node.all_input_nodes:
            if last_use[source] is node and source is not graph.logits:
                values.pop(source, None)
        if node is graph.logits:
            break
    return values[graph.logits]


def _value(graph: CapturedGraph, node: Node, narrow: Callable[[Node], Any], wide: Callable[[Node], Any]) -> Any:
    """Return the value of a node. Of tables only the rows that are looked up are widened, and of wide layers some rows
    at a time."""
    if opname(node) == "embedding":
        return execute(node, narrow, torch.float64)
    if opname(node) != "linear":
        return execute(node, wide, torch.float64)
    x, weight, *biases = node.all_input_nodes
    if weight not in graph.names or len(narrow(weight)) <= ROWS:
        return execute(node, wide, torch.float64)
    product = torch.cat([wide(x) @ rows.to(torch.float64).T for rows in narrow(weight).split(ROWS)], -1)
    for bias in biases:
        product = product + wide(bias)
    return product


def _program_logits(program: Program, tensors: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    """Return the program's logits ``[B, T, V]``."""
    inputs = resolve_inputs(ids)
    exact = Context(loading(program, tensors, torch.float64), inputs, EXACT)
    stored = replace(exact, tensors=_stored(program, tensors))
    values: dict[Value, Tensor] = {}
    for op in program.ops:
        assert isinstance(op, AuxOp)
        operands = [values[operand] for operand in op.operands]
        if isinstance(op, Logits):
            values[op.result] = _logits(op, stored, operands[0])
        elif isinstance(op, Embedding):
            values[op.result] = op.evaluate(stored).to(torch.float64)
        else:
            values[op.result] = op.evaluate(exact, *operands)
    return values[program.outputs["logits"]]


def _stored(program: Program, tensors: Mapping[str, Tensor]) -> Lazy:
    """Return the program's parameters in the dtypes that they are stored in."""

    def make(name: str) -> Tensor:
        dtype = tensors[program.parameters[name].source].dtype
        return loading(program, tensors, dtype)[name]

    return Lazy(program.parameters, make)


def _logits(op: Logits, stored: Context, x: Tensor) -> Tensor:
    """Return what the head makes of ``x [B, T, D]``."""
    weights = stored.parameter(op.weight).split(ROWS)
    biases: tuple[Tensor, ...] = ()
    if op.bias:
        biases = stored.parameter(op.bias).split(ROWS)
    parts = []
    for index, weight in enumerate(weights):
        rows = {op.weight: weight.to(torch.float64)}
        if biases:
            rows[op.bias] = biases[index].to(torch.float64)
        parts.append(op.evaluate(replace(stored, tensors=rows), x))
    return torch.cat(parts, -1)
