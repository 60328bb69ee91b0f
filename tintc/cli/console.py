"""Where output goes: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import logging
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from tintc.bounded import check_path
from tintc.errors import ArtefactError
from tintc.progress import LOGGER, spinner

WIDEST = 100_000
"""Characters in a line where no terminal says how many it has."""


PARAGRAPH = 84
"""Characters in a line of sentences there; with the name beside them they are less than 100."""


def silence_libraries() -> None:
    """Silence warnings and progress bars but our own."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries, where there is no network


def print_json(values: Mapping[str, Any]) -> None:
    """Print one JSON object, on one line."""
    print(json.dumps(values, allow_nan=False))


def print_table(title: str, rows: Mapping[str, Any]) -> None:
    """Print names and values; nested mappings are indented below their name."""
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if isinstance(value, Mapping):
            table.add_row(name, "")
            for key, inner in value.items():
                table.add_row(f"  {key}", _shown(inner))
        else:
            table.add_row(name, _shown(value))
    _print(title, table)


def print_rows(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]], bold: int = -1) -> None:
    """Print a table with a header; numbers stand at the right. bold: index of a row to show in bold."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    rows = [list(row) for row in rows]
    for column, name in enumerate(header):
        table.add_column(name, overflow="fold")
        if all(isinstance(row[column], int | float) for row in rows):
            table.columns[-1].justify = "right"
    for row in rows:
        table.add_row(*map(_shown, row))
    if 0 <= bold < len(rows):
        table.rows[bold].style = "bold"
    _print(title, table)


def print_lines(lines: Iterable[str]) -> None:
    """Print remarks below a table, in the paler type of a terminal."""
    Console(highlight=False, soft_wrap=True, markup=False).print(*lines, sep="\n", style="dim")


def paragraph(text: str) -> str:
    """Return sentences in lines of at most `PARAGRAPH` characters, where no terminal breaks them."""
    if Console().is_terminal:
        return text
    return textwrap.fill(text, PARAGRAPH, break_long_words=False, break_on_hyphens=False)


def _print(title: str, table: Table) -> None:
    # A table's own title would be broken at the table's width, paths and all.
    Console().print(title, style="italic", markup=False, highlight=False, soft_wrap=True)
    show(table)


def show(table: Table) -> None:
    """Print a table on standard output. Where that is no terminal it is as wide as what it holds, and nothing is
    broken."""
    console = Console()
    if console.is_terminal:
        console.print(table, markup=False)
        return
    console = Console(width=WIDEST)
    with console.capture() as held:
        console.print(table, markup=False)
    print(*map(str.rstrip, held.get().splitlines()), sep="\n")


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}"


def shows_progress() -> bool:
    """Return True if standard error is a terminal that nobody asked to be quiet."""
    return Console(stderr=True).is_terminal and LOGGER.isEnabledFor(logging.WARNING)


@contextmanager
def stages() -> Iterator[None]:
    """Show the stage that runs beside a spinner, where standard error is a terminal; with --verbose its lines say
    it."""
    if LOGGER.isEnabledFor(logging.INFO):
        yield
        LOGGER.info("done")
    else:
        with spinner() if shows_progress() else nullcontext():
            yield


@contextmanager
def block_progress(what: str = "blocks") -> Iterator[Any]:
    """Yield a function of (done, total) that moves a bar, where standard error is a terminal."""
    with counted_progress(what, None) as (progress, task):
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def counted_progress(what: str, total: int | None) -> Iterator[tuple[Progress, TaskID]]:
    """Yield a bar that counts up to `total`, and its task; it shows where standard error is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shows_progress()) as progress:
        yield progress, progress.add_task(what, total=total)


def check_writable(target: Path | None, option: str) -> None:
    """Raise `ArtefactError` for a file whose folder does not exist, before anything is run for it."""
    if target is not None:
        check_path(target, ArtefactError)
    if target is not None and not target.absolute().parent.is_dir():
        raise ArtefactError(f"The folder {target.parent} does not exist; choose another place for {option}.")
