"""`check_files`: a model folder's files, looked at before transformers opens, loops or allocates by what they say.

A pipe would be waited for, a configuration of a billion layers be built, an index be followed to files elsewhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from tintc.bounded import (
    MOST_CONFIG,
    MOST_GENERATION,
    MOST_TOKENIZER,
    UnfitFileError,
    is_plain_name,
    open_regular,
    parse_json,
    read_file,
)
from tintc.errors import ModelError

LIMITS = (
    (re.compile(r"position|length|window|context|ctx|token|_ids?$"), 1 << 53),
    (re.compile(r"layers?$|^block_count$"), 1 << 10),
    (re.compile(r"label"), 1 << 16),
    (re.compile(r"head_dim|hidden|width|d_model|embd|embed|intermediate|inner|ffn|_dim$|_size$"), 1 << 24),
    (re.compile(r"head|expert|group"), 1 << 16),
)
"""The most that an entry of a configuration may be, by the words of its name: the first that fits."""
MOST = 1 << 53
LAYERS = re.compile(r"layers?$")
MANY_LAYERS = 128
"""So many are built in less than a second."""
NUMBER = re.compile(r"(?<=\.)\d{1,9}(?=\.)")
"""A number between dots: that of a layer, in a tensor's name."""
IN_A_BYTE = 8
"""Parameters that a byte of a file holds at most: quantised ones take a bit or more."""
FEW_PARAMETERS = 1 << 24
"""So many are built whatever the files hold: 64 MB."""
LABELS = "id2label"
INDEX = re.compile(r"\.index\.json$")
MOST_INDEX = 1 << 26
READ = ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja", "*.tiktoken", "*.gguf")
"""Names of files that may be opened."""


def check_files(folder: str | Path, name: str) -> None:
    """Raise `ModelError` unless a local folder's files are regular, short enough and name no files elsewhere, and its
    configuration's sizes are ones that there may be. name: what the user calls it."""
    place = Path(folder)
    for pattern in READ:
        for file in sorted(place.glob(pattern)):
            _check_file(file, name)
    config = place / "config.json"
    if config.is_file():
        entries = _json(config, name, MOST_CONFIG)
        check_sizes(name, entries)
        _check_layers(place, name, entries)
    generation = place / "generation_config.json"
    if generation.is_file():
        _json(generation, name, MOST_GENERATION)


def _check_layers(folder: Path, name: str, config: dict[str, Any]) -> None:
    """Raise `ModelError` for more layers than the files of weights have, where it would take seconds to build them."""
    if absent := absent_layers(config, lambda: _tensors(folder)):
        key, most, held = absent
        raise ModelError(
            f"{name} has {key} {most:,} in its config.json, and its files have weights of {held:,} at most; get "
            "both from one place."
        )


def absent_layers(config: Mapping[str, Any], tensors: Callable[[], Iterable[str]]) -> tuple[str, int, int] | None:
    """Return an entry of a configuration, its number of layers, and the smaller number that tensors' names have.

    None: the layers are there, or so few that building them takes no time. tensors: returns the names.
    """
    asked = [(value, key) for key, value in _entries(config) if LAYERS.search(key) and type(value) is int]
    most, key = max(asked, default=(0, ""))
    if most <= MANY_LAYERS:
        return None
    numbers = [int(number) for tensor in tensors() for number in NUMBER.findall(tensor)]
    held = max(numbers, default=most) + 1
    if held >= most:
        return None
    return key[:80], most, held


def _tensors(folder: Path) -> list[str]:
    """Return the names of tensors in a folder's safetensors files; none where a file cannot be read, which is said when
    it is."""
    names: list[str] = []
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, "pt") as opened:
                names += opened.keys()
        except (OSError, SafetensorError):
            return []
    return names


def _check_file(file: Path, name: str) -> None:
    try:
        descriptor = open_regular(file)
    except UnfitFileError as error:
        raise ModelError(f"{name} has {file.name}, which is not read: {error}.") from error
    except OSError as error:
        raise ModelError(f"{name} has {file.name}, which cannot be opened: {error.strerror or error}.") from error
    size = os.fstat(descriptor).st_size
    os.close(descriptor)
    if INDEX.search(file.name):
        _check_index(file, name)
    elif file.suffix == ".json" and size > MOST_TOKENIZER:
        raise ModelError(f"{name} has {file.name} of {size:,} bytes, and at most {MOST_TOKENIZER:,} are read.")


def _check_index(file: Path, name: str) -> None:
    """Raise `ModelError` for an index that names anything but files of its folder, as a path elsewhere."""
    index = _json(file, name, MOST_INDEX)
    shards = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(shards, dict):
        raise ModelError(f"{name} has {file.name}, which has no weight_map; get it again.")
    for shard in shards.values():
        if not is_plain_name(shard):
            raise ModelError(f"{name} has {file.name}, which names {str(shard)[:80]!r}, no file of its folder.")


def _json(file: Path, name: str, most: int) -> Any:
    try:
        return parse_json(read_file(file, most))
    except OSError as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{name} has a broken {file.name}: {reason}.") from error


def check_sizes(name: str, config: Any) -> None:
    """Raise `ModelError` for an entry of a configuration, nested ones too, that no model has and somebody would build
    or allocate by."""
    if not isinstance(config, dict):
        raise ModelError(f"{name} has a broken config.json: it is no object of settings.")
    for key, value in _entries(config):
        if key == LABELS and isinstance(value, dict):
            value = len(value)
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        most = next((most for words, most in LIMITS if words.search(key)), MOST)
        if abs(value) > most:
            raise ModelError(
                f"{name} has {key[:80]} {_shown(value)} in its config.json, and at most {most:,} is built; mend it."
            )


def check_parameters(name: str, asked: int, files: Iterable[Path]) -> None:
    """Raise `ModelError` for a configuration of many more parameters than its files of weights can hold.

    transformers allocates, and draws at random, what a configuration asks for and the files do not have.
    """
    held = sum(file.stat().st_size for file in files) * IN_A_BYTE
    if asked > held + FEW_PARAMETERS:
        raise ModelError(
            f"{name} has a configuration of {asked:,} parameters, and its files hold {held:,} at most; get both from "
            "one place."
        )


def _shown(value: int) -> str:
    if abs(value) > MOST:
        return "of over 15 digits"
    return f"{value:,}"


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the entries of a configuration, and of those in it."""
    for key, value in config.items():
        yield str(key), value
        if isinstance(value, dict):
            yield from _entries(value)
        elif isinstance(value, list):
            for inner in value:
                if isinstance(inner, dict):
                    yield from _entries(inner)
                elif isinstance(inner, int):
                    yield str(key), inner
