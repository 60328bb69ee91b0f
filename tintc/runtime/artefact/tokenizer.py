"""The tokenizer of an artefact: read from copies of its files alone, so that none of them leads elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoTokenizer

from tintc.bounded import is_plain_name
from tintc.errors import ArtefactError
from tintc.runtime.artefact.beside import fetch_tokenizer
from tintc.runtime.artefact.folder import opened
from tintc.runtime.artefact.names import CONFIG_FILE, TOKENIZER_CONFIG
from tintc.runtime.artefact.snapshot import Snapshot, Stamp, damaged


def read_tokenizer(path: str | os.PathLike[str], stamp: Stamp, **hub: Any) -> Any:
    """Return the tokenizer stored with an artefact, local or on the hub; None if there is none, or it cannot be read.

    stamp: of the files when the simulator was loaded. Raises `ArtefactError` if its files are others by now, are not
    regular files of the folder, or name files elsewhere.
    """
    fetch_tokenizer(path, **hub)
    with opened(path, weights=False, **hub) as snapshot:
        if TOKENIZER_CONFIG not in snapshot.files:
            return None
        now = snapshot.stamp()
        changed = [name for name in snapshot.tokenizer_files if name in stamp and now[name] != stamp[name]]
        if changed:
            raise ArtefactError(
                f"{path} was replaced after the simulator was loaded, so its tokenizer ({changed[0]}) may be "
                "another's; load the simulator again."
            )
        check_names(snapshot)
        return _read(path, snapshot)


def check_names(snapshot: Snapshot) -> None:
    """Raise `ArtefactError` if the tokenizer's settings name a file that is not one of its folder."""
    settings = snapshot.json(TOKENIZER_CONFIG)
    if not isinstance(settings, dict):
        raise damaged(snapshot.folder / TOKENIZER_CONFIG, "it is no object of settings")
    for name, value in settings.items():
        names_file = name.endswith(("_file", "_files")) or name == "chat_template_path"
        if names_file and value is not None and not is_plain_name(value):
            raise ArtefactError(
                f"{snapshot.folder / TOKENIZER_CONFIG} names {str(value)[:80]!r} as {name[:80]}, which is not a file "
                "of its folder; remove it."
            )


def _read(path: str | os.PathLike[str], snapshot: Snapshot) -> Any:
    """Return the tokenizer made of copies of its files, None if there is none to be made."""
    with TemporaryDirectory(prefix="tintc-") as copies:
        for name in (CONFIG_FILE, *snapshot.tokenizer_files):
            copy = Path(copies) / name
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(snapshot.read(name) or b"")
        try:
            tokenizer = AutoTokenizer.from_pretrained(copies, trust_remote_code=False, local_files_only=True)
        except BaseException as error:  # tokenizers panics, which is no Exception
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            return None
    tokenizer.name_or_path = str(path)
    tokenizer.init_kwargs.pop("name_or_path", None)
    return tokenizer
