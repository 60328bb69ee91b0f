"""How a command ends: exit codes, and a user's mistake as one sentence."""

from __future__ import annotations

import re
import signal
import sys
from typing import Any, NoReturn

import typer

from tintc_cli.root import app

OK, FAILED, MISTAKE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

USAGE_ERROR: Any = typer.BadParameter.__bases__[0]
"""What a mistyped command, option or value raises: Click's class, or the copy of it in newer versions of Typer."""


def misuse(error: Any) -> str:
    """Return what is wrong with a command line, in one sentence, and where to read more."""
    said = " ".join(error.format_message().split()).replace("Value error, ", "").rstrip(".")
    said = said.replace("Input should be", "it must be").partition(", unable to parse")[0]
    said = re.sub(r"\. (Did you mean [^?]*\?)$", r" (\1)", said)
    context = error.ctx
    if context is None:
        return f"{said}."
    return f"{said}; {context.command_path} --help shows what there is."


def main() -> NoReturn:
    """Run the console script.

    A user's mistake is one sentence and exit code 2, a simulator that `verify` finds at fault exit code 1; anything
    else keeps its traceback.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        code = app(prog_name="tintc", standalone_mode=False)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except USAGE_ERROR as error:
        if len(sys.argv) > 1:
            print(f"error: {misuse(error)}", file=sys.stderr)
        sys.exit(MISTAKE)
    except Exception as error:
        errors = sys.modules.get("tintc.errors")
        if errors is None or not isinstance(error, errors.TintcError):
            raise
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(MISTAKE)
    sys.exit(code or OK)
