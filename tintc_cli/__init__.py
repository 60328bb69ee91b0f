"""The command `tintc`: its commands, their options, and how errors leave it.

This package stands beside `tintc` because importing anything of that registers its classes with transformers, which
takes seconds; `tintc --help`, completion and mistyped options should not. What commands do is in `tintc.cli`.
"""

from tintc_cli import checking, compiling, evaluating, running
from tintc_cli.leaving import main
from tintc_cli.root import app

__all__ = ["app", "checking", "compiling", "evaluating", "main", "running"]
