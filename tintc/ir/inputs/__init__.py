"""The inputs of a program: token ids, positions and masks, resolved from whatever a user passes.

Defaults are the published ones: positions count the tokens that are not padding, half of a text is trained on, and the
loss counts at position i only if i, i + 1 are train tokens and target i + 1 is not masked (construction.md, section 8).
"""

from tintc.ir.inputs.checks import check_ids, check_positions, check_tensor, matching
from tintc.ir.inputs.resolve import resolve_inputs
from tintc.ir.inputs.resolved import Inputs

__all__ = ["Inputs", "check_ids", "check_positions", "check_tensor", "matching", "resolve_inputs"]
