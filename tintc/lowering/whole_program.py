"""What a simulator's program has when all passes have run, and the check of one that was read from a file."""

from __future__ import annotations

from tintc.errors import IRError
from tintc.ir.core import Program
from tintc.lowering.emission.sharing import reuse_of

REQUIRED = {"width": int, "vocab_size": int, "n_layers": int, "n_steps": int, "semantics": str, "layout": dict}
"""Attributes that it must have, and their types."""
OPTIONAL = ("n_update_layers", "memory_slots", "softmax_unit", "reuse", "gradient")
OUTPUTS = ("logits_before", "logits")


def check_complete(program: Program) -> Program:
    """Raise `IRError` unless a text, which users may edit, is a whole simulator program; returns the program."""
    if program.dialect != "sim":
        raise IRError(f"This is a program of the dialect {program.dialect!r}, not a simulator's.")
    attributes = [name for name, kind in REQUIRED.items() if not isinstance(program.attributes.get(name), kind)]
    outputs = [name for name in OUTPUTS if name not in program.outputs]
    if attributes or outputs:
        missing = [f"the attribute {name}" for name in attributes] + [f"the output {name}" for name in outputs]
        raise IRError(f"The simulator's program is incomplete: it lacks {', '.join(missing)}. Compile the model again.")
    unknown = [name for name in program.attributes if name not in (*REQUIRED, *OPTIONAL)]
    if unknown:
        raise IRError(
            f"The simulator's program has the attribute {unknown[0]!r}, which this version of tintc does not have; "
            "compile the model again."
        )
    reuse_of(program)
    return program
