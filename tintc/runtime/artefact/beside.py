"""Texts that lie beside a configuration, in a local folder or on the hub."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

AUXILIARY_FILE = "auxiliary.tint"
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "subfolder", "local_files_only", "force_download")
"""Keyword arguments of `from_pretrained` that say which file is meant."""


def file_beside(path: str | os.PathLike[str], name: str, **hub: Any) -> str | None:
    """The local path of a file of an artefact; None if there is none."""
    try:
        return cached_file(str(path), name, **hub)
    except (OSError, ValueError):
        return None


def text_beside(path: str | os.PathLike[str], name: str, **hub: Any) -> str | None:
    """The text of a file of an artefact; None if there is none. Raises `UnicodeDecodeError` if it is not UTF-8."""
    found = file_beside(path, name, **hub)
    return None if found is None else Path(found).read_text(encoding="utf-8")


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
