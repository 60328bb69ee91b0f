"""The sweep's outcomes as data (`tintc/families.json`) and as a page (`docs/families.md`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from tintc.errors import ArtefactError
from tintc.reference.family import EAGER, EXECUTORS, GRADIENT, GRAPH, SHAPES
from tintc.reference.variants import DENSE

DATA = Path(__file__).parents[1] / "families.json"
DOCUMENT = Path(__file__).parents[2] / "docs" / "families.md"
WANTED = 64
"""Of the dense decoders, how many must pass."""
SHOWN = 3
"""Reasons shown of a type that is refused."""

Data = dict[str, Any]


def to_data(outcomes: list[dict[str, Any]]) -> Data:
    """One entry a configuration, without what changes from run to run."""
    families = [
        {
            "type": outcome["model_type"],
            "variant": outcome["variant"],
            "dense": outcome["model_type"] in DENSE,
            "passed": outcome["stage"] == "passed",
            "stage": outcome["stage"],
            "reasons": outcome["reasons"],
            **(outcome["features"] or {"norms": "", "positions": "", "attention": "", "feed_forward": ""}),
        }
        for outcome in outcomes
    ]
    plain = [family for family in families if not family["variant"]]
    return {
        "checked_on": f"transformers {transformers.__version__} and torch {torch.__version__.split('+')[0]}",
        "dense_passed": sum(family["passed"] for family in plain if family["dense"]),
        "dense_wanted": WANTED,
        "dense": len(DENSE),
        "families": families,
    }


def read_data() -> Data:
    """What the last sweep found. Raises `ArtefactError` if there has been none."""
    if not DATA.exists():
        raise ArtefactError(f"There is no {DATA.name}, which a sweep writes; run `make sweep` in a checkout of tintc.")
    return json.loads(DATA.read_text(encoding="utf-8"))


def summary(data: Data) -> str:
    families = data["families"]
    variants = [family for family in families if family["variant"]]
    others = [family for family in families if not family["dense"]]
    return (
        f"{data['dense_passed']} of {data['dense']} dense decoder types pass, "
        f"{sum(family['passed'] for family in variants)} of {len(variants)} of their variants, "
        f"and {sum(family['passed'] for family in others)} of {len(others)} other types."
    )


def shown_reasons(family: dict[str, Any]) -> str:
    """The first distinct reasons why a type does not compile; the same in every layer counts once."""
    distinct = list(dict.fromkeys(reason.partition(": ")[2] or reason for reason in family["reasons"]))
    more = f" (and {len(distinct) - SHOWN} more)" if len(distinct) > SHOWN else ""
    return "; ".join(distinct[:SHOWN]) + more


def to_markdown(data: Data) -> str:
    """The page: what passes, then what is refused and why."""
    checked = " and ".join(f"{batch} x {length}" for batch, length in SHAPES)
    lines = [
        "# What compiles",
        "",
        "Written by `make sweep`; do not edit.",
        "",
        "Every causal language model that transformers registers, from a tiny random configuration (heads of 20, one "
        f"key head and a feed-forward of 140 where the type has such), with {data['checked_on']}. {summary(data)}",
        "",
        f"A row passes if the program's logits are the exported graph's to {GRAPH:g} and the model's to {EAGER:g} "
        f"(it drops to fp32 inside), the simulated gradient is that of autograd with attention probabilities "
        f"detached to {GRADIENT:g}, and fused and literal execution agree to {EXECUTORS:g} of the update after one "
        f"step and after two; all in fp64, on batches of {checked} tokens.",
        "",
        "| type | norms | positions | attention | feed-forward |",
        "|---|---|---|---|---|",
    ]
    for family in data["families"]:
        if family["passed"]:
            cells = (family[key] for key in ("norms", "positions", "attention", "feed_forward"))
            lines.append(f"| {' | '.join((name_of(family), *cells))} |")
    for title, dense in (("Dense decoders that do not pass", True), ("Other types, refused", False)):
        rows = [family for family in data["families"] if not family["passed"] and family["dense"] is dense]
        if rows:
            lines += ["", f"## {title}", "", "| type | ends at | why |", "|---|---|---|"]
            lines += [f"| {name_of(row)} | {row['stage']} | {_escaped(shown_reasons(row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def name_of(family: dict[str, Any]) -> str:
    """The type, and the variant if it is one."""
    return f"{family['type']}, {family['variant']}" if family["variant"] else family["type"]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
