"""`tintc families`."""

from __future__ import annotations

from typing import Any

from tintc.cli.console import print_json, print_rows, print_table, silence_libraries
from tintc.known_families import read_data
from tintc.reference.family_table import (
    COLUMNS,
    all_reasons,
    families_of,
    is_unchecked,
    name_of,
    shown_obstacles,
    shown_reasons,
    summary,
)


def show_families(model_type: str | None, as_json: bool) -> None:
    """Show the sweep's result: what compiles, and why the rest does not; of one type, every reason and place."""
    silence_libraries()
    data = read_data()
    if model_type is not None:
        data = {"checked_on": data["checked_on"], "families": families_of(data, model_type)}
    if as_json:
        print_json(data)
    elif model_type is not None:
        _show_one(data["families"])
    else:
        _show_all(data["families"])
        print(summary(data))
    if not as_json:
        print(f"Checked on {data['checked_on']}.")


def _show_all(families: list[dict[str, Any]]) -> None:
    heads = tuple(column.replace("_", "-") for column in COLUMNS)
    passed = [(name_of(row), *(row[column] for column in COLUMNS)) for row in families if row["passed"]]
    print_rows("What compiles", ("type", *heads), passed)
    failed = [row for row in families if not row["passed"]]
    refused = [(name_of(row), row["stage"], shown_obstacles(row)) for row in failed if not is_unchecked(row)]
    print_rows("What is refused, and why", ("type", "ends at", "why"), refused)
    unchecked = [(name_of(row), shown_reasons(row)) for row in failed if is_unchecked(row)]
    if unchecked:
        print_rows("Not checked", ("type", "why"), unchecked)


def _show_one(families: list[dict[str, Any]]) -> None:
    for row in families:
        kind = row["kind"]
        if row["passed"]:
            parts = {column.replace("_", "-"): row[column] for column in COLUMNS}
            print_table(f"{name_of(row)} ({kind}) compiles", parts)
            continue
        verdict = "is not checked" if is_unchecked(row) else f"does not compile, it ends at {row['stage']}"
        print(f"{name_of(row)} ({kind}) {verdict}")
        for reason in all_reasons(row):
            print(f"  - {reason}")
