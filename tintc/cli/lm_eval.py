"""`tintc lm-eval`."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

import torch

from tintc.errors import OptionError

READS_ARGUMENTS = ("lm_eval._cli", "lm_eval.config", "lm_eval.evaluator")
"""Modules of the harness whose own ValueErrors are about what was asked for."""


def with_device(arguments: Sequence[str]) -> list[str]:
    """The arguments, with the device cpu where there is no GPU and nobody names one: lm_eval's default is cuda:0."""
    at = 1 if arguments and arguments[0] == "run" else 0
    runs = at < len(arguments) - 1 and arguments[at].startswith("-")
    named = any(argument.startswith(("--device", "--config", "-C")) for argument in arguments)
    if not runs or named or torch.cuda.is_available():
        return list(arguments)
    return [*arguments[:at], "--device", "cpu", *arguments[at:]]


def run_harness(arguments: Sequence[str]) -> None:
    """Register the model ``tint`` and hand over to lm_eval's own command line."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise OptionError(
            f"tintc lm-eval needs lm-evaluation-harness ({error}); install it with: pip install lm_eval."
        ) from error
    from tintc.evaluation import lm_eval_model as harness
    from tintc.evaluation.processes import left

    assert harness.TintLM, "importing the module has registered it"
    given, sys.argv = sys.argv, ["tintc lm-eval", *with_device(arguments)]
    try:
        cli_evaluate()
    except ValueError as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if not frame.f_globals["__name__"].startswith(READS_ARGUMENTS):
            raise
        raise OptionError(f"lm-evaluation-harness says: {error}") from error
    finally:
        sys.argv = given
        left()
