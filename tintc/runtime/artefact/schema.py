"""The schema of an artefact's configuration and digests: what each entry may be, checked before it is believed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PretrainedConfig

from tintc.bounded import is_plain_name
from tintc.errors import ArtefactError
from tintc.option_conflicts import objection_to
from tintc.option_facts import DTYPES
from tintc.options import ABOUT, Options
from tintc.runtime.artefact.names import TEMPLATES
from tintc.runtime.artefact.snapshot import damaged

Rule = Callable[[Any], bool]
"""A function that returns True for a value that an entry may have."""
LARGEST = 1 << 31
LONGEST_TEXT = 1 << 16
"""Characters of the longest string of a configuration."""
MOST_ENTRIES = 1 << 12
DIGEST = re.compile(r"[0-9a-f]{64}")
REFUSED = (
    *("auto_map", "quantization_config", "num_labels", "id2label", "label2id", "transformers_weights"),
    *("text_config", "text_encoder", "decoder", "generator"),
)
"""Entries that transformers acts on and no simulator has: code, other files, labels without end, nested models."""
PROGRAMS = ("program", "auxiliary", "described")
"""Fields of a configuration in memory that stand in files of their own."""


def is_size(value: Any) -> bool:
    """Return True for a count: a whole number from 0 on, no bool, and not absurd."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST


def is_number(value: Any) -> bool:
    """Return True for a finite number that is no bool."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) <= 1 << 53
    return isinstance(value, float) and math.isfinite(value)


def is_text(value: Any) -> bool:
    """Return True for a text of no more than `LONGEST_TEXT` characters."""
    return isinstance(value, str) and len(value) <= LONGEST_TEXT


def is_scalar(value: Any) -> bool:
    """Return True for null, a boolean, a number or a text."""
    return value is None or isinstance(value, bool) or is_number(value) or is_text(value)


def is_list_of(rule: Rule) -> Rule:
    """Return the rule of lists whose entries fit that one."""
    return lambda value: isinstance(value, list) and len(value) <= LARGEST >> 10 and all(map(rule, value))


def is_mapping_of(rule: Rule) -> Rule:
    """Return the rule of mappings whose values fit that one."""

    def fits(value: Any) -> bool:
        return isinstance(value, dict) and len(value) <= MOST_ENTRIES and all(map(rule, value.values()))

    return fits


def _or_none(rule: Rule) -> Rule:
    return lambda value: value is None or rule(value)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and DIGEST.fullmatch(value) is not None


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def _is_token(value: Any) -> bool:
    return value is None or is_size(value) or is_list_of(is_size)(value)


def _is_dtype(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.removeprefix("torch.") in (*DTYPES, "float16"))


SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "max_position_embeddings",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "d_sim",
    "n_sim_heads",
    "n_prefixes",
    "stack",
    "shards",
)
RULES: dict[str, Rule] = {name: _or_none(is_size) for name in SIZES} | {
    "model_type": is_text,
    "format_version": is_size,
    "train_fraction": _is_share,
    "provenance": _or_none(is_mapping_of(lambda value: is_scalar(value) or is_list_of(is_scalar)(value))),
    "placeholders": _or_none(is_list_of(is_size)),
    "digests": _or_none(is_mapping_of(_is_digest)),
    "dtype": _is_dtype,
    "torch_dtype": _is_dtype,
    "architectures": _or_none(is_list_of(is_text)),
    "bos_token_id": _or_none(is_size),
    "eos_token_id": _is_token,
    "pad_token_id": _or_none(is_size),
}


@cache
def _defaults() -> dict[str, Any]:
    """Return what transformers puts into a configuration where nothing is said."""
    return PretrainedConfig().to_dict()


def _fits_default(name: str, value: Any) -> bool:
    """Return True for a value like transformers' own default of an entry, and for scalars in any other."""
    default = _defaults().get(name)
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int):
        return is_size(value)
    return is_scalar(value)


def _fits_option(name: str, value: Any) -> bool:
    """Return True for a value that a recorded option may have."""
    one = next(one for one in fields(Options) if one.name == name)
    if value is None and one.default is None:
        return True
    if isinstance(one.default, str) or (ABOUT[name].choices and one.default is None):
        return is_text(value) and (name != "descend" or _is_groups(str(value)))
    if "float" in str(one.type):
        return is_number(value) and objection_to(one, value) is None
    return is_size(value) and objection_to(one, value) is None


def _is_groups(value: str) -> bool:
    return re.fullmatch(r"[\w,\-]*", value) is not None


def check_entries(file: Path | str, config: Any) -> None:
    """Raise `ArtefactError`, which names the entry, unless a configuration's entries are what they may be."""
    if not isinstance(config, dict):
        raise damaged(file, "it is no object of settings")
    if len(config) > MOST_ENTRIES:
        raise damaged(file, f"it has {len(config)} entries")
    recorded = Options().recorded()
    for name, value in config.items():
        method = name not in RULES and name not in _defaults() and hasattr(PretrainedConfig, name)
        if name in REFUSED or name in PROGRAMS or method:  # in whose place transformers would put the value
            raise ArtefactError(f"{file} has the entry {name!r}, which no simulator has; remove it.")
        if name in RULES:
            fits = RULES[name](value)
        elif name in recorded:
            fits = _fits_option(name, value)
        else:
            fits = _fits_default(name, value)
        if not fits:
            raise damaged(file, f"its {name[:80]} is {_shown(value)}")


def _shown(value: Any) -> str:
    text = repr(value)
    if len(text) > 80:
        text = f"{text[:80]}..."
    return text


def generation_config(file: Path, entries: Any) -> GenerationConfig | None:
    """Return a folder's settings for generating, None if it has none; raise `ArtefactError` if they are damaged."""
    if entries is None:
        return None
    if not isinstance(entries, dict):
        raise damaged(file, "it is no object of settings")
    for name, value in entries.items():
        nested = is_scalar(value) or is_list_of(lambda one: is_scalar(one) or is_list_of(is_scalar)(one))(value)
        fits = nested or is_mapping_of(is_scalar)(value)
        if not fits or hasattr(GenerationConfig, name):  # a method, in whose place transformers would put the value
            raise damaged(file, f"its {name[:80]} is {_shown(value)}")
    try:
        return GenerationConfig.from_dict(entries)
    except Exception as error:  # of transformers, which checks some entries, and stumbles over others
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise damaged(file, reason[:200].rstrip(".")) from error


def check_manifest(file: Path, manifest: Any) -> Mapping[str, Mapping[str, Any]]:
    """Return the digests of files, by name; raise `ArtefactError` for a list of anything else."""
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        raise damaged(file, "it has no digests of files")
    for name, entry in files.items():
        plain = is_plain_name(name.removeprefix(f"{TEMPLATES}/"))
        whole = isinstance(entry, dict) and entry.keys() == {"size", "sha256", "sample"}
        if not plain or not whole or not (_is_bytes(entry["size"]) and _are_digests(entry)):
            raise damaged(file, f"its entry of {name[:80]!r} is no digest")
    return files


def _is_bytes(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 60


def _are_digests(entry: Mapping[str, Any]) -> bool:
    return _is_digest(entry["sha256"]) and _is_digest(entry["sample"])
