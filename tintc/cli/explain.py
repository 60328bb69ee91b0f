"""`tintc explain`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.fx import Node

from tintc.cli.console import print_json, print_rows, silence_libraries, stages
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.importer import recognise
from tintc.frontend.source.load import load_auxiliary
from tintc.ir.auxiliary import AuxOp
from tintc.ir.core import Program, Value
from tintc.lowering.pipeline import AUXILIARY_PASSES, run_passes
from tintc.options import Options


def explain_model(model: str, trusted: bool, as_json: bool) -> None:
    """Print for each op of the model's program the rule that made it, and for each of its tensors where it went.

    trusted: whether Python code that comes with the model may be run. Raises `UnsupportedModelError`, which says why no
    rule took an operation.
    """
    silence_libraries()
    with stages():
        source = load_auxiliary(model, values=False, trust_remote_code=trusted)
        graph = capture(source.model, source.max_length, source.provenance["source"])
        recognised = recognise(graph)
        program = run_passes(AUXILIARY_PASSES, recognised.program, Options())
    ops = ops_of(program, recognised.rules)
    tensors = tensors_of(graph, program, recognised.values)
    if as_json:
        print_json({"model": model, "ops": ops, "tensors": tensors})
        return
    rows = [(op["value"], op["op"], op["rule"], op["role"], str(op["layer"])) for op in ops]
    print_rows(f"Operations of {model}", ("value", "op", "rule", "role", "layer"), rows)
    rows = [(tensor["name"], "x".join(map(str, tensor["shape"])), tensor["becomes"]) for tensor in tensors]
    print_rows(f"Tensors of {model}", ("tensor", "shape", "becomes"), rows)


def ops_of(program: Program, rules: dict[str, str]) -> list[dict[str, Any]]:
    """Return every op in order. What canonicalisation makes of several keeps the name of the last."""
    return [
        {
            "value": op.result.name,
            "op": op.opname,
            "rule": rules.get(op.result.name, "canonicalisation"),
            "role": op.role,
            "layer": op.layer if op.layer >= 0 else "",
        }
        for op in program.ops
        if isinstance(op, AuxOp)
    ]


def tensors_of(graph: CapturedGraph, program: Program, values: Mapping[Node, Value]) -> list[dict[str, Any]]:
    """Return every parameter and buffer of the model: the program's parameters made of it, and the ops that read them;
    of one that gave a rule its numbers (a factor, angles, a mask), what that rule made of it."""
    readers: dict[str, list[str]] = {}
    for op in program.ops:
        if isinstance(op, AuxOp):
            for part, name in op.parameters().items():
                parameter = program.parameters[name]
                source = graph.origins.get(parameter.source, parameter.source)
                reader = f"{part} of {op.result.name}"
                if parameter.rows is not None:
                    reader += ", some rows"
                if source != parameter.source:
                    reader += ", computed"
                readers.setdefault(source, []).append(reader)
    evaluated = evaluated_in(graph, values)
    described = []
    for name, first in graph.aliases.items():
        becomes = readers.get(first) or evaluated.get(first) or ["nothing that the logits need"]
        text = "; ".join(becomes[:3])
        if name != first:
            text = f"tied to {first}: {text}"
        if len(becomes) > 3:
            text += f" (and {len(becomes) - 3} more)"
        described.append({"name": name, "shape": list(graph.tensors[first].shape), "becomes": text})
    return described


def evaluated_in(graph: CapturedGraph, values: Mapping[Node, Value]) -> dict[str, list[str]]:
    """Return for every tensor the values of the program that some rule made of a node behind it in the graph."""
    reached: dict[str, list[str]] = {}
    for placeholder, tensor in graph.names.items():
        stack = [placeholder]
        seen = {placeholder}
        recognised: set[Node] = set()
        while stack:
            node = stack.pop()
            if node in values:
                recognised.add(node)
                continue
            users = [user for user in node.users if user not in seen]
            seen.update(users)
            stack.extend(users)
        ordered = sorted(recognised, key=graph.order.__getitem__)
        reached.setdefault(tensor, []).extend(f"numbers in {values[node].name}" for node in ordered)
    return reached
