"""What a module computes, and why its blocks do: read off its template's docstrings, where both stand."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from tintc.ir.simulator import SimOp

CLAIM = re.compile(r"Claim: (.*?)\s*QED\.?(.*)", re.DOTALL)
HEADING = re.compile(r"`[^`]+`(?:,? and `[^`]+`)*: (.*)")
SENTENCE = re.compile(r"(?<=[.:])\s+(?=[A-Z`])|\n\s*\n")


@dataclass(frozen=True)
class Proof:
    """formula: the heading of the template; claim: what is claimed, in a sentence; argument: the rest, in paragraphs
    (empty where the claim says all)."""

    formula: str
    claim: str
    argument: tuple[str, ...]


@cache
def proof_of(op: type[SimOp]) -> Proof:
    """Return what the template of an op says; of an op that applies no block of its own, the heading alone."""
    heading = (sys.modules[op.__module__].__doc__ or "").split("\n\n")[0].replace("\n", " ")
    match = HEADING.match(heading)
    formula = heading
    if match is not None:
        formula = match.group(1)
    for text in _docstrings(op):
        claimed = CLAIM.search(text)
        if claimed is not None:
            claim, *argument = SENTENCE.split(claimed.group(1).strip(), maxsplit=1)
            rest = [*argument, claimed.group(2).strip()]
            paragraphs = [_one_line(part) for whole in rest for part in whole.split("\n\n") if part.strip()]
            words = re.sub(r"^They ", "Its blocks ", _one_line(claim).rstrip(":.") + ".")
            return Proof(_capital(formula), _capital(words), (*paragraphs,))
    return Proof(_capital(formula), "", ())


def _docstrings(op: type[SimOp]) -> Iterator[str]:
    """Yield the docstrings in which a template claims something: of the class, of `structure`, of its functions."""
    for kind in op.__mro__:
        if issubclass(kind, SimOp):
            yield inspect.cleandoc(kind.__doc__ or "")
            yield inspect.cleandoc(getattr(vars(kind).get("structure"), "__doc__", "") or "")
    for function in vars(sys.modules[op.__module__]).values():
        if callable(function) and getattr(function, "__module__", "") == op.__module__:
            yield inspect.cleandoc(getattr(function, "__doc__", "") or "")


def _one_line(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def _capital(text: str) -> str:
    """Return the sentence with a capital, unless it begins with a formula."""
    first, _, rest = text.partition(" ")
    if len(first) < 2 or not first.isalpha() or rest.startswith("="):
        return text
    return text[:1].upper() + text[1:]
