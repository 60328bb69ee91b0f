"""What stands before a command: `tintc --quiet`, `--verbose`, `--version`."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Annotated

import typer

app = typer.Typer(
    name="tintc",
    help="Compile a Hugging Face decoder into a TinT simulator, which fine-tunes it inside one forward pass.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def show_version(wanted: bool) -> None:
    """Print the installed version and stop, where that is asked for."""
    if wanted:
        print(f"tintc {version('tintc')}")
        raise typer.Exit


@app.callback()
def configure(
    context: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no warnings.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Stages and timings as lines on standard error.")] = False,
    _: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=show_version)
    ] = False,
) -> None:
    """Set what is said on standard error besides mistakes."""
    if quiet and verbose:
        raise typer.BadParameter("--quiet and --verbose exclude each other.")
    level = logging.INFO + 1
    if quiet:
        level = logging.ERROR
    if verbose:
        level = logging.INFO
    context.with_resource(reported(level))


@contextmanager
def reported(level: int) -> Iterator[None]:
    """Print what `tintc` logs, from this level on, as lines on standard error."""
    logger = logging.getLogger("tintc")
    handler = Lines(level)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


class Lines(logging.Handler):
    """Print warnings as such, notes as they are, and stages with the seconds since the command began."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.start = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        shown = f"{time.monotonic() - self.start:7.2f} s  "
        if record.levelno >= logging.WARNING:
            shown = "warning: "
        elif record.levelno > logging.INFO:
            shown = ""
        print(f"{shown}{record.getMessage()}", file=sys.stderr)
