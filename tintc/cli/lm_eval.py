"""`tintc lm-eval`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tintc.errors import OptionError


def run_harness(arguments: Sequence[str]) -> None:
    """Register the model ``tint`` and hand over to lm_eval's own command line."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise OptionError(
            f"tintc lm-eval needs lm-evaluation-harness ({error}); install it with: pip install 'tintc[eval]'."
        ) from error
    from tintc.runtime import harness

    assert harness.TintLM, "importing the module has registered it"
    given, sys.argv = sys.argv, ["tintc lm-eval", *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = given
