"""What the last sweep over the types of models found out (`tintc/families.json`), and what follows for one type.

The file is data that `make sweep` writes. Nothing else in the package names a type.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tintc.errors import ArtefactError

DATA = Path(__file__).with_name("families.json")

Data = dict[str, Any]


def read_data() -> Data:
    """Return what the last sweep wrote. Raises `ArtefactError` if there has been none."""
    if not DATA.exists():
        raise ArtefactError(f"There is no {DATA.name}, which a sweep writes; run `make sweep` in a checkout of tintc.")
    return json.loads(DATA.read_text(encoding="utf-8"))


def known_obstacles(model_type: str, version: str) -> tuple[str, ...]:
    """Return the obstacles of a type of which no configuration compiles, in the words of a refusal.

    There are none if the type or a variant of it compiles, if it failed for anything but a kind of layer, which may be
    a matter of sizes, if no sweep has seen it, or if the sweep ran with another version of transformers than `version`.
    """
    if not DATA.exists():
        return ()
    data = read_data()
    if data.get("transformers") != version:
        return ()
    entries = [family for family in data["families"] if family["type"] == model_type]
    if not entries or any(family["passed"] or not family.get("obstacles") for family in entries):
        return ()
    return tuple(entries[0]["obstacles"])
