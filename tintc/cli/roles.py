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
    """The roles whose module or parameter matches, as plain values; `OptionError` if none does."""
    rows = [r for r in Roles(program) if fnmatchcase(r.site, pattern) or fnmatchcase(r.parameter, pattern)]
    if not rows:
        raise OptionError(f"No module and no parameter matches {pattern!r}; pass '*' for all, or a part between '*'s.")
    return [asdict(row) for row in rows]


def print_roles(title: str, roles: list[dict[str, Any]]) -> None:
    """Module by module, a line for each head: its parameter, what it reads, what it writes."""
    print(title)
    site = ""
    for role in roles:
        if role["site"] != site:
            site = role["site"]
            print(site)
        who = "gate" if role["phase"] == "gate" else f"head {role['head']}" if role["head"] >= 0 else role["block"]
        parts = [_parameter(role), ", ".join(map(_place, role["reads"])), ", ".join(map(_place, role["writes"]))]
        print(f"  {who}: {' -> '.join(part for part in parts[1:] if part)}" + (f"  ({parts[0]})" if parts[0] else ""))


def _parameter(role: dict[str, Any]) -> str:
    inside = ", ".join(_runs(runs) for runs in (role["rows"], role["columns"]) if runs)
    return f"{role['parameter']}[{inside}]" if role["parameter"] else ""


def _place(place: dict[str, Any]) -> str:
    """``query tokens 0: value[0:16]``."""
    slot = "" if place["slot"] < 0 else f" {place['slot']}"
    held = f": {place['of']}[{_runs(place['numbers'])}]" if place["of"] else ""
    return f"{place['as_']} {place['at']}{slot}{held}".strip()


def _runs(runs: StridedRuns) -> str:
    """As Python writes slices."""
    return " ".join(f"{start}:{stop}" + (f":{step}" if step > 1 else "") for start, stop, step in runs)
