"""The sweep's outcomes as data (`tintc/families.json`) and as a page (`docs/families.md`)."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tintc.errors import ArtefactError, OptionError, Reason, fold
from tintc.reference.family import EAGER, EXECUTORS, GRADIENT, GRAPH, SHAPES
from tintc.reference.features import ONE_KEY_HEAD
from tintc.reference.variants import DENSE

DATA = Path(__file__).parents[1] / "families.json"
DOCUMENT = Path(__file__).parents[2] / "docs" / "families.md"
WANTED = 64
"""Of the dense decoders, how many must pass."""
SHOWN = 3
"""Reasons shown of a type that is refused."""
PLACED = re.compile(r"(\S+) in (\S+): (.*)", re.DOTALL)
"""A `Reason` as text."""
CRASHED = re.compile(r"\w*(Error|Exception): ")
"""What begins with the type of an exception that is not ours."""
ANY_KEY_HEADS = "grouped or multi-head"
"""Attention of a type whose configuration says how many heads have keys and values of their own."""
COLUMNS = ("norms", "positions", "attention", "feed_forward")

Data = dict[str, Any]


def to_data(outcomes: list[dict[str, Any]]) -> Data:
    """One entry a configuration, without what changes from run to run."""
    families = [
        _in_general(
            {
                "type": outcome["model_type"],
                "variant": outcome["variant"],
                "dense": outcome["model_type"] in DENSE,
                "passed": outcome["stage"] == "passed",
                "stage": outcome["stage"],
                "reasons": outcome["reasons"],
                **(outcome["features"] or {"norms": "", "positions": "", "attention": "", "feed_forward": ""}),
            }
        )
        for outcome in outcomes
    ]
    plain = [family for family in families if not family["variant"]]
    return {
        "checked_on": f"transformers {transformers.__version__} and torch {torch.__version__.split('+')[0]}",
        "dense_passed": sum(family["passed"] for family in plain if family["dense"]),
        "dense_wanted": WANTED,
        "dense": sum(family["dense"] for family in plain),
        "families": families,
    }


def again(data: Data) -> Data:
    """The same findings, described anew."""
    return data | {"families": list(map(_in_general, data["families"]))}


def _in_general(family: dict[str, Any]) -> dict[str, Any]:
    """With words for what the type has, where the tiny configuration has less: all its heads share one key head, and a
    configuration that counts its key heads may have any number."""
    if ONE_KEY_HEAD not in family["attention"] or not _counts_key_heads(family["type"]):
        return family
    return family | {"attention": family["attention"].replace(ONE_KEY_HEAD, ANY_KEY_HEADS)}


def _counts_key_heads(model_type: str) -> bool:
    return "num_key_value_heads" in CONFIG_MAPPING[model_type]().to_dict()


def read_data() -> Data:
    """What the last sweep found. Raises `ArtefactError` if there has been none."""
    if not DATA.exists():
        raise ArtefactError(f"There is no {DATA.name}, which a sweep writes; run `make sweep` in a checkout of tintc.")
    return json.loads(DATA.read_text(encoding="utf-8"))


def write_tables(data: Data) -> None:
    DATA.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    DOCUMENT.write_text(to_markdown(data), encoding="utf-8")


def families_of(data: Data, model_type: str) -> list[dict[str, Any]]:
    """A type and its variants. Raises `OptionError` for a type that no sweep has seen."""
    found = [family for family in data["families"] if family["type"] == model_type]
    if not found:
        near = difflib.get_close_matches(model_type, {family["type"] for family in data["families"]})
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        raise OptionError(
            f"{model_type} is not among the types that were checked: {meant}`tintc families` lists them by the "
            "model_type of their config.json."
        )
    return found


def summary(data: Data) -> str:
    families = data["families"]
    variants = [family for family in families if family["variant"] and family["dense"]]
    others = [family for family in families if not (family["variant"] or family["dense"])]
    checked = [family for family in others if not is_unchecked(family)]
    counts = (
        (data["dense_passed"], data["dense"], "dense decoder types"),
        (_passed(variants), len(variants), "variants of theirs"),
        (_passed(checked), len(checked), "other types"),
    )
    parts = [f"{passed} of {total} {what}" for passed, total, what in counts if total]
    unchecked = len(others) - len(checked)
    more = f" (of {unchecked} more no tiny model could be made)" if unchecked else ""
    return f"Passed: {', '.join(parts)}{more}."


def _passed(families: list[dict[str, Any]]) -> int:
    return sum(family["passed"] for family in families)


def is_unchecked(family: dict[str, Any]) -> bool:
    """Whether the compiler never saw the type, because transformers made no tiny model of it."""
    return family["stage"] == "build"


def shown_reasons(family: dict[str, Any]) -> str:
    """The first distinct reasons why a type does not compile, without their places."""
    if is_unchecked(family):
        return f"not checked: no tiny model could be made ({'; '.join(family['reasons']).rstrip(':')})"
    reasons = map(_described, family["reasons"])
    distinct = list(dict.fromkeys(reason.why if isinstance(reason, Reason) else reason for reason in reasons))
    more = f" (and {len(distinct) - SHOWN} more)" if len(distinct) > SHOWN else ""
    return "; ".join(distinct[:SHOWN]) + more


def all_reasons(family: dict[str, Any]) -> list[str]:
    """Every reason, with operation and module; the same in several layers is one line."""
    if is_unchecked(family):
        return [shown_reasons(family)]
    reasons = [_described(reason) for reason in family["reasons"]]
    sentences = [reason for reason in reasons if isinstance(reason, str)]
    return [*sentences, *fold(reason for reason in reasons if isinstance(reason, Reason))]


def _described(reason: str) -> Reason | str:
    """What the sweep wrote down of a refusal; of one without a place, what a table needs to say of it."""
    if placed := PLACED.fullmatch(reason):
        return Reason(*placed.groups())
    if CRASHED.match(reason):
        return f"an unexpected {reason}"
    sentence = reason.partition(": ")[2] or reason
    return sentence.removesuffix(" Please report it.")


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
        "**Dense** are decoders of text in which softmax attention and a feed-forward that every token takes follow "
        "each other (`DENSE` in `tintc/reference/variants.py`). **Other** is what else transformers registers as a "
        "causal language model: mixtures of experts, recurrent and hybrid models, encoders, decoders that read an "
        "encoder, and models of images or sound, of which the language model is checked, on token ids alone. A type "
        "has the kinds of layers that its default configuration has; options that change the graph are variants, "
        "in rows of their own.",
    ]
    for title, dense in (("Dense decoders that pass", True), ("Other types that pass", False)):
        rows = [family for family in data["families"] if family["passed"] and family["dense"] is dense]
        cells = [(name_of(row), *(row[column] for column in COLUMNS)) for row in rows]
        lines += _table(title, ("type", *(column.replace("_", "-") for column in COLUMNS)), cells)
    failed = [family for family in data["families"] if not family["passed"]]
    refused = [family for family in failed if not is_unchecked(family)]
    for title, dense in (("Dense decoders that do not pass", True), ("Other types, refused", False)):
        rows = [family for family in refused if family["dense"] is dense]
        lines += _table(
            title, ("type", "ends at", "why"), [(name_of(row), row["stage"], shown_reasons(row)) for row in rows]
        )
    cells = [(name_of(row), shown_reasons(row)) for row in failed if is_unchecked(row)]
    return "\n".join([*lines, *_table("Not checked", ("type", "why"), cells)]) + "\n"


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a section with a table; none if the table would be empty."""
    if not rows:
        return []
    shown = [f"| {' | '.join(map(_escaped, row))} |" for row in rows]
    return ["", f"## {title}", "", f"| {' | '.join(header)} |", "|---" * len(header) + "|", *shown]


def name_of(family: dict[str, Any]) -> str:
    """The type, and the variant if it is one."""
    return f"{family['type']}, {family['variant']}" if family["variant"] else family["type"]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
