"""The table of model types that the sweep writes (`tintc/families.json`), told."""

from __future__ import annotations

import difflib
import re
from typing import Any

from tintc.errors import OptionError, Reason, fold
from tintc.known_families import Data

SHOWN = 3
"""Reasons shown of a type that is refused."""
PLACED = re.compile(r"(\S+) in (\S+): (.*)", re.DOTALL)
"""A `Reason` as text."""
CRASHED = re.compile(r"\w*(Error|Exception): ")
"""What begins with the type of an exception that is not ours."""
ANY_KEY_HEADS = "grouped or multi-head"
"""Attention of a type whose configuration says how many heads have keys and values of their own."""
KINDS = {
    "dense": "dense decoder types",
    "experts": "types with experts",
    "mixers": "types with other token mixers",
    "other": "other types",
}
"""Kinds of types, with the words that a summary has for them. What has other mixers is counted there, with experts or
without."""
COLUMNS = ("norms", "positions", "attention", "feed_forward")


def families_of(data: Data, model_type: str) -> list[dict[str, Any]]:
    """Return a type and its variants. Raises `OptionError` for a type that no sweep has seen."""
    entries = [family for family in data["families"] if family["type"] == model_type]
    if not entries:
        near = difflib.get_close_matches(model_type, {family["type"] for family in data["families"]})
        meant = ""
        if near:
            meant = f"did you mean {' or '.join(near)}? "
        raise OptionError(
            f"{model_type} is not among the types that were checked: {meant}`tintc families` lists them by the "
            "model_type of their config.json."
        )
    return entries


def summary(data: Data) -> str:
    """Return how many of the types of each kind, and of the dense ones' variants, passed, as a sentence."""
    families = data["families"]
    variants = [family for family in families if family["variant"] and family["dense"]]
    others = [family for family in families if not (family["variant"] or family["dense"])]
    checked = [family for family in others if not is_unchecked(family)]
    counts = [
        (data["dense_passed"], data["dense"], "dense decoder types"),
        (_passed(variants), len(variants), "variants of theirs"),
    ]
    for kind, words in KINDS.items():
        of_kind = [family for family in checked if family["kind"] == kind]
        counts.append((_passed(of_kind), len(of_kind), words))
    parts = [f"{passed} of {total} {what}" for passed, total, what in counts if total]
    unchecked = len(others) - len(checked)
    more = ""
    if unchecked:
        more = f" (of {unchecked} more no tiny model could be made)"
    return f"Passed: {', '.join(parts)}{more}."


def _passed(families: list[dict[str, Any]]) -> int:
    return sum(family["passed"] for family in families)


def is_unchecked(family: dict[str, Any]) -> bool:
    """Return True if the compiler never saw the type, because transformers made no tiny model of it."""
    return family["stage"] == "build"


def shown_reasons(family: dict[str, Any]) -> str:
    """Return the first distinct reasons why a type does not compile, without their places."""
    if is_unchecked(family):
        return f"not checked: no tiny model could be made ({'; '.join(family['reasons']).rstrip(':')})"
    distinct = list(dict.fromkeys(_why(_described(reason)) for reason in family["reasons"]))
    more = ""
    if len(distinct) > SHOWN:
        more = f" (and {len(distinct) - SHOWN} more)"
    return "; ".join(distinct[:SHOWN]) + more


def shown_obstacles(family: dict[str, Any]) -> str:
    """Return what a type has that is not supported, in the words of a refusal; without these, the first reasons."""
    return "; ".join(family.get("obstacles") or [shown_reasons(family)])


def shown_operations(family: dict[str, Any]) -> str:
    """Return what rules say of the operations that none takes; empty where the obstacles say everything."""
    placed = [reason for reason in family["reasons"] if PLACED.fullmatch(reason)]
    if not placed or not family.get("obstacles"):
        return ""
    return shown_reasons(family | {"reasons": placed})


def all_reasons(family: dict[str, Any]) -> list[str]:
    """Return what a type has that is not supported, and every operation, with its module; the same in several layers is
    one line."""
    if is_unchecked(family):
        return [shown_reasons(family)]
    has = [f"it has {obstacle}" for obstacle in family.get("obstacles", ())]
    reasons = [_described(reason) for reason in family["reasons"] if not has or PLACED.fullmatch(reason)]
    sentences = [reason for reason in reasons if isinstance(reason, str)]
    return [*has, *sentences, *fold(reason for reason in reasons if isinstance(reason, Reason))]


def _why(reason: Reason | str) -> str:
    if isinstance(reason, Reason):
        return reason.why
    return reason


def _described(reason: str) -> Reason | str:
    """Return a refusal as the reason that the sweep wrote down; one without a place as a sentence for the table."""
    if placed := PLACED.fullmatch(reason):
        return Reason(*placed.groups())
    if CRASHED.match(reason):
        return f"an unexpected {reason}"
    sentence = reason.partition(": ")[2] or reason
    return sentence.removesuffix(" Please report it.")


def name_of(family: dict[str, Any]) -> str:
    """Return the type, and the variant if it is one."""
    return ", ".join(filter(None, (family["type"], family["variant"])))
