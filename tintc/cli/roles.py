"""`tintc inspect --roles`: what the heads of a simulator are there for."""

from __future__ import annotations

from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any

from tintc.analysis.head_roles import Roles
from tintc.errors import OptionError
from tintc.ir.columns import StridedRuns
from tintc.ir.core import Program


def chosen_roles(program: Program, pattern: str) -> list[dict[str, Any]]:
    """Return the roles whose module or parameter matches, as plain values; `OptionError` if none does."""
    rows = [r for r in Roles(program) if fnmatchcase(r.site, pattern) or fnmatchcase(r.parameter, pattern)]
    if not rows:
        raise OptionError(f"No module and no parameter matches {pattern!r}; pass '*' for all, or a part between '*'s.")
    return [asdict(row) for row in rows]


def print_roles(title: str, roles: list[dict[str, Any]]) -> None:
    """Print module by module, a line for each head: its parameter, what it reads, what it writes."""
    print(title)
    site = ""
    for role in roles:
        if role["site"] != site:
            site = role["site"]
            print(site)
        places = (", ".join(map(_place, role[side])) for side in ("reads", "writes"))
        line = f"  {_who(role)}: {' -> '.join(filter(None, places))}"
        if role["parameter"]:
            line += f"  ({_parameter(role)})"
        print(line)


def _who(role: dict[str, Any]) -> str:
    if role["phase"] == "gate":
        return "gate"
    if role["head"] >= 0:
        return f"head {role['head']}"
    return role["block"]


def _parameter(role: dict[str, Any]) -> str:
    inside = ", ".join(_runs(runs) for runs in (role["rows"], role["columns"]) if runs)
    return f"{role['parameter']}[{inside}]"


def _place(place: dict[str, Any]) -> str:
    """Return ``query tokens 0: value[0:16]``."""
    text = f"{place['as_']} {place['at']}"
    if place["slot"] >= 0:
        text += f" {place['slot']}"
    if place["of"]:
        text += f": {place['of']}[{_runs(place['numbers'])}]"
    return text.strip()


def _runs(runs: StridedRuns) -> str:
    """Return runs as Python writes slices."""
    return " ".join(f"{start}:{stop}" + (f":{step}" if step > 1 else "") for start, stop, step in runs)
