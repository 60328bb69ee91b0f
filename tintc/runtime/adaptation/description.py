"""What a simulator keeps of its auxiliary (`describe_model`), read with care: the file may be anybody's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tintc.bounded import UnfitFileError, parse_json
from tintc.errors import ArtefactError
from tintc.runtime.artefact.names import DESCRIPTION_FILE
from tintc.runtime.artefact.schema import is_list_of, is_number, is_size, is_text

Rule = Callable[[Any], bool]


def entries_of(described: str) -> dict[str, Any]:
    """Return what a description says; raise `ArtefactError` unless it is one."""
    try:
        entries = parse_json(described.encode("utf-8", "replace"))
    except UnfitFileError as error:
        raise misfit(str(error)) from error
    if not isinstance(entries, dict):
        raise misfit("it is not an object")
    for name, fits in RULES.items():
        if name not in entries or not fits(entries[name]):
            raise misfit(f"it has no {name} of a model")
    for name, fits in LATER_RULES.items():
        if not fits(entries.setdefault(name, [])):
            raise misfit(f"its {name} are not a model's")
    return entries


def misfit(why: str) -> ArtefactError:
    """Return the error for a description that no model has."""
    return ArtefactError(
        f"What the simulator keeps of its auxiliary ({DESCRIPTION_FILE}) is damaged: {why}. Pass the auxiliary, or its "
        "folder, with model=."
    )


def _is_sum(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("of"), str) and is_number(value.get("plus"))


def _are_sums(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_sum, value.values()))


def _is_place(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_text, value))


def _is_adapter(value: Any) -> bool:
    """Return whether this is an `Adapter`'s fields."""
    if not isinstance(value, dict) or not all(is_text(value.get(name)) for name in ("weight", "a", "b")):
        return False
    sizes = value.get("sizes")
    sized = isinstance(sizes, list) and len(sizes) == 3 and all(map(is_size, sizes))
    return sized and is_number(value.get("scale")) and isinstance(value.get("transposed"), bool)


RULES: dict[str, Rule] = {
    "class": lambda value: isinstance(value, str),
    "config": lambda value: isinstance(value, dict),
    "generation": lambda value: value is None or isinstance(value, dict),
    "sums": _are_sums,
}
LATER_RULES: dict[str, Rule] = {"places": is_list_of(_is_place), "adapters": is_list_of(_is_adapter)}
"""Entries that folders of earlier versions do not have."""
