"""Both dialects as text: `print_program` and `parse_program` are inverses.

One op a line::

    %h.0.ln = aux.norm(%embed) {kind="layer", eps=1e-05, weight="h.0.ln_1.weight"} : tokens<48>

Attribute values are JSON; an attribute at its default is not shown. `//` starts a comment. A `sim.repeat` carries its
block in braces on the lines below it.
"""

from tintc.ir.text.parsing import parse_program
from tintc.ir.text.printing import print_program

__all__ = ["parse_program", "print_program"]
