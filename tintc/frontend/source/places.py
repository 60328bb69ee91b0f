"""Places of models: folders, GGUF files and hub ids; and their configurations, read before anything is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tintc.errors import ModelError
from tintc.frontend.source.kinds import adapter_sentence
from tintc.hub import why_missing


@dataclass(frozen=True)
class Place:
    """The place of a model's files: a folder or hub id, and the GGUF file in it if that is the one to read.

    trusted: whether Python code that comes with the model may be run.
    """

    name: str
    folder: str
    gguf_file: str | None
    local: bool
    trusted: bool = False

    @property
    def format(self) -> str:
        """Return the format of the weights: "gguf" or "safetensors"."""
        return "gguf" if self.gguf_file else "safetensors"

    @property
    def options(self) -> dict[str, Any]:
        """Return arguments for `from_pretrained`."""
        options: dict[str, Any] = {"local_files_only": self.local, "trust_remote_code": self.trusted}
        if self.gguf_file:
            options["gguf_file"] = self.gguf_file
        return options


def find_place(text: str, trusted: bool = False) -> Place:
    """Return the place that a user names by a path or hub id; raise `ModelError` if there is none.

    trusted: see `Place`.
    """
    path = Path(text).expanduser()
    if path.is_file() and path.name == "config.json":
        path = path.absolute().parent
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{text} is a file and not a GGUF file; pass the folder that holds config.json.")
        return Place(path.name, str(path.parent), path.name, True)
    if path.is_dir():
        if not (path / "config.json").is_file():
            if (path / "adapter_config.json").is_file():
                raise ModelError(adapter_sentence(text, read_json(path / "adapter_config.json")))
            return _gguf_in(path, text)
        return Place(path.resolve().name, str(path), None, True, trusted)
    if text.endswith(".gguf"):
        kind = "file"
        why = "it is not looked for on the hub"
    else:
        kind = "folder"
        why = why_missing(text)
    if why is not None:
        raise ModelError(
            f"There is no {kind} {text}, and {why}; pass a folder, a .gguf file or the id of a model on the hub."
        )
    return Place(text, text, None, False, trusted)


def _gguf_in(path: Path, text: str) -> Place:
    """Return the only GGUF file in a folder; raise `ModelError` if there is none or are several."""
    files = sorted(path.glob("*.gguf"))
    if not files:
        raise ModelError(f"{text} has no config.json and no GGUF file, pass a model's folder.")
    if len(files) > 1:
        raise ModelError(f"{text} has no config.json and {len(files)} GGUF files, name the one to read.")
    return Place(files[0].name, str(path), files[0].name, True)


def has_weights(place: Place) -> bool:
    """Return True if there are weights on this machine, without asking the hub."""
    return place.gguf_file is not None or any(Path(place.folder).glob("*.safetensors"))


def configuration(place: Place) -> dict[str, Any]:
    """Return the folder's configuration as it is written; empty if it cannot be read."""
    return read_json(Path(place.folder) / "config.json")


def read_json(file: Path) -> dict[str, Any]:
    """Return the entries of a JSON file; none if it is not there or holds anything else."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(entries, dict):
        return {}
    return entries
