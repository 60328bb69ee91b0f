"""Pages that are generated where the site is built: every option, and every command.

A page has a comment such as ``<!-- options -->`` in the place of what `PLACES` gives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

import typer
from sphinx.application import Sphinx

import tintc_cli
from tintc.options import Options


def cell(text: object) -> str:
    """Return a text for one cell of a table."""
    return re.sub(r"\s+", " ", str(text)).replace("|", "\\|").replace("<", "&lt;")


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def options_table() -> str:
    """Return a row for every option of a compilation: its names, and what it is with its values and default."""
    rows: list[list[str]] = []
    for one in fields(Options):
        about = one.metadata["about"]
        names = [f"`--{name.replace('_', '-')}`" for name in (one.name, about.short) if name]
        said = [cell(about.help)]
        if about.choices:
            said.append("Values: " + ", ".join(f"`{choice}`" for choice in about.choices) + ".")
        if one.default is not None:
            said.append(f"Default: `{one.default}`.")
        rows.append([f"`{one.name}`", "<br>".join(names), " ".join(said)])
    return table(["in Python", "in a terminal", "what"], rows)


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command with its full name."""
    for name, command in typer.main.get_command(tintc_cli.app).commands.items():  # pyright: ignore[reportAttributeAccessIssue]
        parts = getattr(command, "commands", None)
        if parts is None:
            yield f"tintc {name}", command
            continue
        for inner, part in parts.items():
            yield f"tintc {name} {inner}", part


def parameter_row(one: Any) -> list[str]:
    """Return what one argument or option of a command is: its names, its values or default, and a sentence."""
    names = ", ".join(f"`{name}`" for name in one.opts)
    if one.param_type_name == "argument":
        names = f"`{one.metavar or one.name.upper()}`"
    kind = one.type_descriptor.annotation
    said: list[str] = []
    if get_origin(kind) is Literal:
        said.append(", ".join(f"`{value}`" for value in get_args(kind)))
    if one.default not in (None, False, ...) and not callable(one.default):
        said.append(f"default `{one.default}`")
    return [names, "; ".join(said), cell(one.help or "")]


def commands_text() -> str:
    """Return a section for every command. Options of a compilation are left to their own page."""
    known = {one.name for one in fields(Options)}
    parts: list[str] = []
    for name, command in commands():
        shown = [one for one in command.params if not one.hidden and one.name != "help"]
        own = [one for one in shown if one.name not in known or one.param_type_name == "argument"]
        takes_options = any("--gradient" in one.opts for one in shown)
        arguments = [one.metavar or one.name.upper() for one in own if one.param_type_name == "argument"]
        text = re.sub(r"(?<!\n)\n(?!\n)", " ", command.help.strip()).replace("<", "&lt;")
        if takes_options:
            text += "\n\nIt also takes [the options of a compilation](options.md)."
            own = [one for one in own if one.name not in known]
        usage = " ".join([name, *arguments, "[options]"])
        rows = table(["option", "values", "what"], [parameter_row(one) for one in own])
        parts.append(f"## {name}\n\n    {usage}\n\n{text}\n\n{rows}")
    return "\n\n".join(parts)


PLACES: dict[str, Callable[[], str]] = {
    "<!-- options -->": options_table,
    "<!-- commands -->": commands_text,
}


def fill_in(app: Sphinx, page: str, source: list[str]) -> None:
    """Put generated text where a page has its comment."""
    for comment, text in PLACES.items():
        if comment in source[0]:
            source[0] = source[0].replace(comment, text())


def shorten(app: Sphinx, kind: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Put a link in the place of the options that a docstring lists, a line each; they have a page."""
    known = {one.name for one in fields(Options)}
    listed = [at for at, line in enumerate(lines) if line.partition(":")[0] in known]
    if len(listed) == len(known):
        lines[listed[0] : listed[-1] + 1] = [":doc:`Every option </docs/options>` has a row in a table."]


def setup(app: Sphinx) -> dict[str, Any]:
    """Fill in every page that is read, and shorten docstrings."""
    app.connect("source-read", fill_in)
    app.connect("autodoc-process-docstring", shorten)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
