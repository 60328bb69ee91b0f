"""The sweep's outcomes as data (`tintc/families.json`) and as a page (`docs/families.md`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tintc.errors import joined
from tintc.known_families import DATA, Data
from tintc.reference.family_table import (
    ANY_KEY_HEADS,
    COLUMNS,
    KINDS,
    is_unchecked,
    name_of,
    shown_obstacles,
    shown_operations,
    shown_reasons,
    summary,
)
from tools.sweep.family import EAGER, EXECUTORS, GRADIENT, GRAPH, SHAPES
from tools.sweep.features import ONE_KEY_HEAD
from tools.sweep.kinds import kind_of
from tools.sweep.notes import WHY, WRAPPERS
from tools.sweep.use import is_widely_used
from tools.sweep.variants import DENSE, VARIANTS

DOCUMENT = Path(__file__).parents[2] / "docs" / "families.md"
WANTED = 64
"""Of the dense decoders, how many must pass."""


def to_data(outcomes: list[dict[str, Any]]) -> Data:
    """Return the data of a sweep: one entry a configuration, without what changes from run to run."""
    return _data([_entry(outcome) for outcome in outcomes])


def with_outcomes(data: Data, outcomes: list[dict[str, Any]]) -> Data:
    """Return the data with the outcomes of some types in the place of what is there of these types.

    Raises `ValueError` if the data are of other versions of transformers or torch than are installed.
    """
    if data["checked_on"] != _versions():
        raise ValueError(f"the tables are of {data['checked_on']}, and {_versions()} are installed; sweep all types")
    entries = [_entry(outcome) for outcome in outcomes]
    renewed = {entry["type"] for entry in entries}
    kept = [family for family in described_anew(data)["families"] if family["type"] not in renewed]
    return _data(sorted([*kept, *entries], key=lambda entry: entry["type"]))


def described_anew(data: Data) -> Data:
    """Return the same outcomes with the types' features in today's words."""
    families = [{"obstacles": []} | family | _of_type(family["type"], family["variant"]) for family in data["families"]]
    return data | {"families": list(map(_in_general, families))}


def _entry(outcome: dict[str, Any]) -> dict[str, Any]:
    return _in_general(
        {
            "type": outcome["model_type"],
            "variant": outcome["variant"],
            **_of_type(outcome["model_type"], outcome["variant"]),
            "passed": outcome["stage"] == "passed",
            "stage": outcome["stage"],
            "obstacles": outcome["obstacles"],
            "reasons": outcome["reasons"],
            **(outcome["features"] or dict.fromkeys(COLUMNS, "")),
        }
    )


def _of_type(model_type: str, variant: str) -> dict[str, Any]:
    """Return what is so for a type and variant whatever comes of checking it."""
    return {
        "dense": model_type in DENSE,
        "kind": kind_of(model_type),
        "widely_used": is_widely_used(model_type),
        "options": VARIANTS.get(model_type, {}).get(variant, {}),
    }


def _data(families: list[dict[str, Any]]) -> Data:
    plain = [family for family in families if not family["variant"]]
    return {
        "checked_on": _versions(),
        "transformers": transformers.__version__,
        "dense_passed": sum(family["passed"] for family in plain if family["dense"]),
        "dense_wanted": WANTED,
        "dense": sum(family["dense"] for family in plain),
        "families": families,
    }


def _versions() -> str:
    return f"transformers {transformers.__version__} and torch {torch.__version__.split('+')[0]}"


def _in_general(family: dict[str, Any]) -> dict[str, Any]:
    """Return an entry that says what the type has, where its tiny configuration has less: all heads of that share one
    key head, and a configuration that counts its key heads may have any number."""
    if ONE_KEY_HEAD not in family["attention"] or not _counts_key_heads(family["type"]):
        return family
    return family | {"attention": family["attention"].replace(ONE_KEY_HEAD, ANY_KEY_HEADS)}


def _counts_key_heads(model_type: str) -> bool:
    return "num_key_value_heads" in CONFIG_MAPPING[model_type]().to_dict()


def write_tables(data: Data) -> None:
    """Write the data into the package and the page into docs."""
    DATA.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    DOCUMENT.write_text(to_markdown(data), encoding="utf-8")


def to_markdown(data: Data) -> str:
    """Return the page: what passes, then what is refused and why."""
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
        "**Dense** are decoders of text in which softmax attention and a feed-forward that every token takes follow "
        "each other (`DENSE` in `tools/sweep/variants.py`). **Types with experts** have feed-forward layers of which a "
        "token takes a few; here eight, two for a token, in one of two layers or in both. **Types with other token "
        "mixers** have recurrences or convolutions, with experts or without. **Other** is what else transformers "
        "registers as a causal language model: encoders, decoders that read an encoder, and models of images or "
        "sound, of which the language model is checked, on token ids alone. A type has the kinds of layers that its "
        "default configuration has; options that change the graph are variants, in rows of their own.",
    ]
    lines += _by_use(data["families"])
    titles = {kind: words[0].upper() + words[1:] for kind, words in KINDS.items()}
    for kind, title in titles.items():
        rows = [family for family in data["families"] if family["passed"] and family["kind"] == kind]
        cells = [(name_of(row), *(row[column] for column in COLUMNS)) for row in rows]
        lines += _table(f"{title} that pass", ("type", *(column.replace("_", "-") for column in COLUMNS)), cells)
    failed = [family for family in data["families"] if not family["passed"]]
    refused = [family for family in failed if not is_unchecked(family)]
    for kind, title in titles.items():
        rows = [family for family in refused if family["kind"] == kind]
        lines += _table(
            f"{title}, refused",
            ("type", "ends at", "it has", "which shows in"),
            [(name_of(row), row["stage"], shown_obstacles(row), shown_operations(row)) for row in rows],
        )
        for row in rows:
            if row["type"] in WHY:
                lines += ["", f"**{row['type']}**: {WHY[row['type']]}"]
    cells = [(name_of(row), shown_reasons(row)) for row in failed if is_unchecked(row)]
    lines += ["", "## Models of images and text", "", WRAPPERS]
    return "\n".join([*lines, *_table("Not checked", ("type", "why"), cells)]) + "\n"


def _by_use(families: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of the section that weighs the types by use."""
    used = [family for family in families if family["widely_used"] and not family["variant"]]
    lines = [
        "",
        "## By use",
        "",
        "Types are not used alike. Of those for which other tools keep entries of their own, as transformers does for "
        "types that it reads from GGUF files, and peft for those whose layers it knows how to adapt, these are "
        "registered as causal language models:",
        "",
    ]
    passed = [family["type"] for family in used if family["passed"]]
    if passed:
        lines.append(f"- {len(passed)} pass: {joined(passed)}.")
    refused = [family for family in used if not family["passed"]]
    if refused:
        lines += [
            f"- {len(refused)} are refused:",
            *(f"  - {one['type']}: {shown_obstacles(one).rstrip('.')}." for one in refused),
        ]
    return lines


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a section with a table; none if the table would be empty."""
    if not rows:
        return []
    shown = [f"| {' | '.join(map(_escaped, row))} |" for row in rows]
    return ["", f"## {title}", "", f"| {' | '.join(header)} |", "|---" * len(header) + "|", *shown]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
