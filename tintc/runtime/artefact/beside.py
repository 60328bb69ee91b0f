"""Texts that lie beside a configuration, in a local folder or on the hub."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

AUXILIARY_FILE = "auxiliary.tint"
DESCRIPTION_FILE = "auxiliary.json"
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
    return Path(file).read_text(encoding="utf-8")


def text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
