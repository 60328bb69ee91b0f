"""`tintc families`."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from tintc.cli.console import print_json, silence_libraries
from tintc.reference.family_table import name_of, read_data, shown_reasons, summary

COLUMNS = ("norms", "positions", "attention", "feed_forward")


def show_families(as_json: bool) -> None:
    """The sweep's result: what compiles, and why the rest does not."""
    silence_libraries()
    data = read_data()
    if as_json:
        print_json(data)
        return
    console = Console()
    ordered = sorted(data["families"], key=lambda family: not family["passed"])
    table = Table(box=None, title="What compiles", title_justify="left")
    for head in ("type", *(column.replace("_", "-") for column in COLUMNS)):
        table.add_column(head, overflow="fold")
    refused = Table(box=None, title="What is refused, and why", title_justify="left")
    for head in ("type", "why"):
        refused.add_column(head, overflow="fold")
    for family in ordered:
        _add(table, refused, family)
    console.print(table, markup=False)
    console.print(refused, markup=False)
    console.print(f"{summary(data)} Checked on {data['checked_on']}.", highlight=False)


def _add(table: Table, refused: Table, family: dict[str, Any]) -> None:
    if family["passed"]:
        table.add_row(name_of(family), *(family[column] for column in COLUMNS))
    else:
        refused.add_row(name_of(family), shown_reasons(family))
