"""Errors that a user can cause and mend.

Everything the command line reports with exit code 2 derives from `TintcError`. A message is one clear sentence that
says what is wrong and what to do; callers add no prefix. Programming errors stay ordinary Python exceptions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tintc.folding import folded

LONGEST = 1500
"""Characters of a line. What makes one longer is a value that it quotes from a file, which can be anything."""


class TintcError(Exception):
    """A user's mistake, with a sentence that says what to do about it."""

    def __init__(self, message: object = ""):
        """Keep the message; of a line that is too long, its beginning, and its end, which has the advice."""
        super().__init__("\n".join(map(_shortened, str(message).split("\n"))))


def _shortened(line: str) -> str:
    if len(line) <= LONGEST:
        return line
    return f"{line[: LONGEST - 300]} ... {line[-200:]}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, of a long one its beginning, without the full stop.

    An error without a message has its class's name.
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500].rstrip(".")


class ModelError(TintcError):
    """The auxiliary model cannot be found, read or trusted (missing weights, NaN, wrong shapes).

    obstacles: the kinds of layers, or other things that it has, of which tintc supports none, in the words of the
    model's users; empty if it fails for something else.
    """

    def __init__(self, message: object = "", obstacles: Sequence[str] = ()):
        super().__init__(message)
        self.obstacles = tuple(obstacles)


class OptionError(TintcError):
    """An option is out of range or two options exclude each other."""


class InputError(TintcError):
    """The text, token ids or masks do not fit the simulator."""


class ArtefactError(TintcError):
    """A compiled folder is missing, damaged or in the way."""


class IRError(TintcError):
    """A program text does not parse or does not verify; the message names the op and both shapes."""


class PassError(IRError):
    """A pass of the compiler was given, or gives, a program that does not verify; the message names the pass."""


@dataclass(frozen=True)
class Reason:
    """One thing the compiler cannot take.

    what: the graph operation, e.g. ``aten.sort``; where: the module path it came from; why: a sentence; obstacle: what
    it belongs to, in the words of the model's users, empty if that cannot be told.
    """

    what: str
    where: str
    why: str
    obstacle: str = ""

    def __str__(self) -> str:
        return f"{self.what} in {self.where}: {self.why}"


NUMBERED = re.compile(r"(?<=[A-Za-z_]\.)\d+\b")
"""A number in a module path that a sentence names."""


def fold(reasons: Iterable[Reason]) -> list[str]:
    """Return a line for each distinct reason and place; places that differ in the numbers of layers alone share one."""
    alike: dict[tuple[str, str, str], list[Reason]] = {}
    for reason in reasons:
        key = (reason.what, NUMBERED.sub("*", reason.where), NUMBERED.sub("*", reason.why))
        alike.setdefault(key, []).append(reason)
    lines: list[str] = []
    for (what, _, general), group in alike.items():
        why = general
        if len({reason.why for reason in group}) == 1:
            why = group[0].why
        lines += [str(Reason(what, where, why)) for where in folded(reason.where for reason in group)]
    return lines


class UnsupportedModelError(ModelError):
    """The model has a kind of layer, or its graph has operations, that tintc does not support: all of them at once.

    reasons: one for each place; the message folds those that are the same in several layers. obstacles: what the places
    belong to, in the words of the model's users (none: what the reasons say of it). advice: what else the first line
    says, without a full stop.
    """

    def __init__(self, model: str, reasons: Sequence[Reason], obstacles: Sequence[str] = (), advice: str = ""):
        self.reasons = list(dict.fromkeys(reasons))
        obstacles = obstacles or list(dict.fromkeys(reason.obstacle for reason in reasons if reason.obstacle))
        said: list[str] = []
        if obstacles:
            said.append(f"it has {'; and '.join(obstacles)}, which tintc does not support")
        if self.reasons:
            places = f"{len(self.reasons)} places are"
            if len(self.reasons) == 1:
                places = "1 place is"
            said.append(f"{places} not supported")
        if advice:
            said.append(advice)
        lines = [f"  - {line}" for line in fold(self.reasons)]
        super().__init__("\n".join([f"{model} cannot be compiled: {'; '.join(said)}.", *lines]), obstacles)


def joined(words: Sequence[str]) -> str:
    """Return words as a list in a sentence: with commas, and "and" before the last."""
    *others, last = words
    if not others:
        return last
    return f"{', '.join(others)} and {last}"
