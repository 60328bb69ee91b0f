"""Attributes as text: ``name=<JSON value>, ...``, bounded and of the types that the fields of an op say."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

DIGITS = 18
"""Digits of the longest integer that a program's text may hold: sizes, and attributes."""
DEPTH = 8
"""Lists and objects that an attribute may nest."""
KINDS: dict[str, type | tuple[type, ...]] = {"int": int, "float": (int, float), "str": str}
"""JSON types of attributes, by the annotation of their field."""
NAME = re.compile(r"(\w+)=")


class AttributeTextError(Exception):
    """A text that is no list of attributes, with the reason."""


def print_attributes(attributes: Mapping[str, Any]) -> str:
    """Return attributes as text."""
    return ", ".join(f"{key}={json.dumps(value)}" for key, value in attributes.items())


def parse_attributes(text: str) -> dict[str, Any]:
    """Return ``a=1, b="x"`` as a dictionary of JSON values; raise `AttributeTextError` for any other text."""
    attributes: dict[str, Any] = {}
    decoder = json.JSONDecoder(parse_int=_integer, parse_float=_number, parse_constant=_number)
    position = 0
    while position < len(text) or attributes:
        match = NAME.match(text, position)
        if match is None:
            raise AttributeTextError("attributes read 'name=<JSON value>, ...'")
        name = match[1]
        if name in attributes:
            raise AttributeTextError(f"the attribute {name!r} stands there twice")
        try:
            attributes[name], position = decoder.raw_decode(text, match.end())
        except json.JSONDecodeError as error:
            raise AttributeTextError(f"attribute {name!r} is not JSON") from error
        except _TooLargeError as error:
            why = f"attribute {name!r} has a number that is not finite, or of over {DIGITS} digits"
            raise AttributeTextError(why) from error
        except RecursionError as error:
            raise _too_deep(name) from error
        if _depth(attributes[name]) > DEPTH:
            raise _too_deep(name)
        if position == len(text):
            break
        if not text.startswith(", ", position):
            raise AttributeTextError("attributes are separated by ', '")
        position += 2
    return attributes


def _too_deep(name: str) -> AttributeTextError:
    return AttributeTextError(f"attribute {name!r} nests more than {DEPTH} lists and objects")


class _TooLargeError(Exception):
    """A number that no attribute has."""


def _integer(text: str) -> int:
    """Return a JSON integer; raise `_TooLargeError` for one of more than `DIGITS` digits."""
    if len(text.removeprefix("-")) > DIGITS:
        raise _TooLargeError
    return int(text)


def _number(text: str) -> float:
    """Return a JSON number with a point or an exponent; raise `_TooLargeError` unless it is finite."""
    number = float(text)
    if not math.isfinite(number):
        raise _TooLargeError
    return number


def _depth(value: Any) -> int:
    """Return how many lists and objects of a JSON value stand inside each other."""
    inner: Iterable[Any] = ()
    if isinstance(value, list):
        inner = value
    elif isinstance(value, dict):
        inner = value.values()
    else:
        return 0
    return 1 + max(map(_depth, inner), default=0)


def is_a(value: Any, kind: str) -> bool:
    """Return True if a JSON value is what a field's annotation says: ``int``, ``float``, ``str``, ``bool``, or a tuple
    of such as a list."""
    if kind == "bool":
        return isinstance(value, bool)
    if not kind.startswith("tuple["):
        return isinstance(value, KINDS[kind]) and not isinstance(value, bool)
    if not isinstance(value, list):
        return False
    inner = kind.removeprefix("tuple[").removesuffix("]")
    if inner.endswith(", ..."):
        return all(is_a(entry, inner.removesuffix(", ...")) for entry in value)
    kinds = inner.split(", ")
    return len(kinds) == len(value) and all(map(is_a, value, kinds))


def as_tuples(value: Any) -> Any:
    """Return JSON lists as tuples, so that attributes compare and hash."""
    if isinstance(value, list):
        return tuple(as_tuples(item) for item in value)
    return value
