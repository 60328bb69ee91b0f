"""Keywords that a function does not have, refused with the name of the one that was meant."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import wraps
from typing import ParamSpec, TypeVar

from tintc.errors import OptionError

Given = ParamSpec("Given")
Result = TypeVar("Result")


def known_keywords(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Return the function; it raises `OptionError` for a keyword that it does not have."""
    known = inspect.signature(function).parameters

    @wraps(function)
    def called(*values: Given.args, **keywords: Given.kwargs) -> Result:
        refuse_unknown(function.__name__, keywords, known)
        return function(*values, **keywords)

    return called


def refuse_unknown(
    function: str, given: Iterable[str], known: Iterable[str], others: Mapping[str, str] | None = None
) -> None:
    """Raise `OptionError` for a name that is given and not known, with the nearest that is.

    function: its name, for the message; others: names that stand for known ones elsewhere, such as short forms.
    """
    names = list(known)
    meant = {name: name for name in names} | dict(others or {})
    for name in given:
        if name in names:
            continue
        near = get_close_matches(name.replace("-", "_").lower(), meant, n=1)
        if near:
            advice = f"{meant[near[0]]!r} is the nearest"
        else:
            advice = f"it has {', '.join(names)}"
        raise OptionError(f"{function} has no argument {name!r}; {advice}.")
