"""Showing the stages of long work, which are logged as they begin."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

LOGGER = logging.getLogger("tintc")
NOTE = logging.INFO + 5
"""What a command says beside its result: shown unless --quiet is given, and not a stage."""


class _Stages(logging.Handler):
    """Hand on the stages that are logged, and print warnings."""

    def __init__(self, console: Console, show: Callable[[str], object]):
        super().__init__(logging.INFO)
        self.console = console
        self.show = show

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno <= logging.INFO:
            self.show(record.getMessage())
        else:
            self.console.print(record.getMessage(), markup=False, highlight=False)


@contextmanager
def heard(console: Console, show: Callable[[str], object]) -> Iterator[None]:
    """Call `show` with every stage that begins meanwhile, and print warnings on the console."""
    handler = _Stages(console, show)
    level = LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)


@contextmanager
def spinner() -> Iterator[None]:
    """Show the stage that runs, beside a spinner on standard error."""
    console = Console(stderr=True)
    with console.status("starting") as status, heard(console, status.update):
        yield


@contextmanager
def progress(wanted: bool = True) -> Iterator[None]:
    """Show the stage that runs on standard error: beside a spinner on a terminal, else as lines with the seconds so
    far. wanted: False shows nothing."""
    if not wanted:
        yield
        return
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    start = time.monotonic()
    if console.is_terminal:
        with spinner():
            yield
        return
    with heard(console, lambda stage: console.print(f"{time.monotonic() - start:7.2f} s  {stage}", markup=False)):
        yield
        LOGGER.info("done")
