"""What the last sweep over the types of models found out (`tintc/families.json`), and what follows for one type.

The file is data that `make sweep` writes. Nothing else in the package names a type.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tintc.errors import ArtefactError, Reason

DATA = Path(__file__).with_name("families.json")
REASON = re.compile(r"(\S+) in (\S+): (.+)")
"""A reason as text: operation, place, why."""

Data = dict[str, Any]


def read_data() -> Data:
    """Return what the last sweep wrote. Raises `ArtefactError` if there has been none, or its file cannot be read."""
    if not DATA.exists():
        raise ArtefactError(f"There is no {DATA.name}, which a sweep writes; run `make sweep` in a checkout of tintc.")
    try:
        return json.loads(DATA.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtefactError(f"{DATA} cannot be read: {error.strerror or error}.") from error


def known_obstacles(configuration: Mapping[str, Any], version: str) -> tuple[str, ...]:
    """Return the obstacles of a model with that configuration, in the words of a refusal; none if it may compile.

    The sweep tries a type and some variants of it, by options. The model is known not to compile if all entries that
    its configuration agrees with failed for a kind of layer. It may compile if one of them passed, or failed for
    anything else, which may be a matter of sizes; if no sweep has seen the type; or if the sweep ran with another
    version of transformers than `version`.
    """
    return tuple(_known(configuration, version).get("obstacles", ()))


def known_reasons(configuration: Mapping[str, Any], version: str) -> list[Reason]:
    """Return the operations of a model that is known not to compile, as the sweep met them in a tiny one."""
    texts = _known(configuration, version).get("reasons", ())
    return [Reason(*match.groups()) for text in texts if (match := REASON.fullmatch(text))]


def _known(configuration: Mapping[str, Any], version: str) -> Mapping[str, Any]:
    """Return what the sweep wrote of a model that is known not to compile; nothing of one that may."""
    try:
        data = read_data()
    except ArtefactError:  # then nothing is known
        return {}
    if data.get("transformers") != version:
        return {}
    entries = [family for family in data["families"] if family["type"] == configuration.get("model_type")]
    entries = [family for family in entries if _is_of(configuration, family)]
    if not entries or any(family["passed"] or not family["obstacles"] for family in entries):
        return {}
    return entries[-1]


def _is_of(configuration: Mapping[str, Any], family: Mapping[str, Any]) -> bool:
    """Return True for the type itself, and for a variant whose options a configuration has. Lists, such as that of the
    kinds of layers, are equal if they have the same entries, each in any number."""
    for name, value in family["options"].items():
        own = configuration.get(name)
        if isinstance(value, list) and isinstance(own, list | tuple):
            if not all(one in value for one in own) or not all(one in own for one in value):
                return False
        elif own != value:
            return False
    return True
