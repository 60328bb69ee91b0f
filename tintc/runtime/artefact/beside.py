"""Files of an artefact in a local folder, or fetched from the hub into one."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from tintc.bounded import UnfitFileError, parse_json, read_file
from tintc.runtime.artefact.names import (
    AUXILIARY_FILE,
    CONFIG_FILE,
    DESCRIPTION_FILE,
    DIGESTS_FILE,
    GENERATION_FILE,
    INDEX_FILE,
    MOST_INDEX,
    PROGRAM_FILE,
    WEIGHTS_FILE,
    most_bytes,
)

FETCHED = (GENERATION_FILE, PROGRAM_FILE, AUXILIARY_FILE, DESCRIPTION_FILE, DIGESTS_FILE)
TOKENIZER_FETCHED = (
    "tokenizer_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
)
"""Files of a tokenizer that are asked for on the hub."""
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download")
"""Keyword arguments of `from_pretrained` that say which file is meant."""


def file_beside(path: str | os.PathLike[str], name: str, **hub: Any) -> str | None:
    """Return the local path of a file of an artefact; None if there is none."""
    try:
        return cached_file(str(path), name, **hub)
    except (OSError, ValueError):
        return None


def text_beside(path: str | os.PathLike[str], name: str, **hub: Any) -> str | None:
    """Return the text of a file of an artefact; None if there is none. Raise `UnicodeDecodeError` if it is no UTF-8."""
    file = file_beside(path, name, **hub)
    if file is None:
        return None
    try:
        return read_file(file, most_bytes(name)).decode("utf-8")
    except UnfitFileError:
        return None


def local_folder(path: str | os.PathLike[str], weights: bool, **hub: Any) -> Path | None:
    """Return the folder that holds an artefact's files, which for a hub id is transformers' cache; None if it has no
    configuration. weights: whether those of the hub are fetched too."""
    if os.path.isdir(path):
        return Path(path) / str(hub.get("subfolder") or "")
    file = file_beside(path, CONFIG_FILE, **hub)
    if file is None:
        return None
    names = [*FETCHED]
    if weights:
        names += _weight_files(path, hub)
    for name in names:
        file_beside(path, name, **hub)
    return Path(file).parent


def fetch_tokenizer(path: str | os.PathLike[str], **hub: Any) -> None:
    """Have the files of a tokenizer on the hub in transformers' cache."""
    if not os.path.isdir(path):
        for name in TOKENIZER_FETCHED:
            file_beside(path, name, **hub)


def _weight_files(path: str | os.PathLike[str], hub: dict[str, Any]) -> list[str]:
    """Return the names of the files of tensors on the hub; what else an index says is for who reads it."""
    index = file_beside(path, INDEX_FILE, **hub)
    if index is None:
        return [WEIGHTS_FILE]
    try:
        return sorted(set(parse_json(read_file(index, MOST_INDEX))["weight_map"].values()))
    except (OSError, KeyError, TypeError, AttributeError):
        return []


def text_digest(text: str) -> str:
    """Return the SHA-256 of a text in UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()
