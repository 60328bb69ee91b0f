"""Sentences that refuse options: values that none may have, and options that do not go together.

Nothing of tintc is imported when this module is, but the facts beside it.
"""

from __future__ import annotations

from dataclasses import Field
from typing import Any

from tintc.option_facts import (
    ALL,
    GROUPS,
    About,
)


def joined_groups(given: object) -> str:
    """Return groups of parameters with commas between; a list, tuple or set of names is taken too."""
    if isinstance(given, str):
        return given
    if isinstance(given, set | frozenset):
        given = [*(group for group in (*GROUPS, ALL) if group in given), *sorted(map(str, given - {*GROUPS, ALL}))]
    if isinstance(given, list | tuple) and all(isinstance(name, str) for name in given):
        return ",".join(given)
    raise option_error(f"The option descend is {given!r}; pass names of parameter groups, such as 'values,ffn'.")


def objection_to(one: Field[Any], value: Any) -> str | None:
    """Return the sentence that refuses a value of an option; None if it is allowed."""
    about: About = one.metadata["about"]
    if about.choices and value not in about.choices:
        noun = about.noun or one.name.replace("_", " ")
        return f"The {noun} {value!r} {about.verdict}; choose one of {', '.join(about.choices)}."
    if about.check is None:
        return None
    objection = about.check(value)
    if objection is None:
        return None
    return f"The {about.noun or f'option {one.name}'} is {value}; {objection}."


def conflict_of(options: Any) -> str | None:
    """Return the sentence that refuses `Options` whose values do not go together; None if they do."""
    return _descent_conflict(options) or _semantics_conflict(options) or _optimizer_conflict(options)


def _descent_conflict(options: Any) -> str | None:
    chosen = options.descend.split(",")
    unknown = [group for group in chosen if group not in GROUPS]
    if unknown:
        return f"The parameter group {unknown[0]!r} is unknown; choose among {', '.join(GROUPS)}."
    constant = [group for group in chosen if not options.reaches(group)]
    if constant:
        return f"The group {constant[0]} receives no gradient with gradient paper; choose full."
    return None


def _semantics_conflict(options: Any) -> str | None:
    """Return what paper-code, the authors' implementation, does not have."""
    if options.semantics != "paper-code":
        return None
    if options.gradient != "paper":
        return "The semantics paper-code has the paper's gradient; choose exact for the full one."
    if options.difference not in (None, "fixed"):
        return f"The semantics paper-code has differences of a fixed step; choose exact for {options.difference}."
    if options.optimizer != "sgd" or options.decay:
        return "The semantics paper-code has plain steps; choose exact for another optimizer, or for decay."
    return None


def _optimizer_conflict(options: Any) -> str | None:
    """Return which settings the optimiser does not have."""
    if options.normalize is not None and options.optimizer != "normalized":
        return f"The optimizer {options.optimizer} divides by no norm; leave normalize out, or choose normalized."
    if options.optimizer == "sgd" and options.momentum:
        return "The optimizer sgd has no momentum; leave it out, or choose momentum or normalized."
    if options.optimizer == "momentum" and options.momentum == 0:
        return "The momentum is 0, which is the optimizer sgd; choose that, or a larger momentum."
    return None


def option_error(sentence: str) -> Exception:
    """Return an `OptionError`. It is imported here because the command reads this module without the package."""
    from tintc.errors import OptionError

    return OptionError(sentence)
