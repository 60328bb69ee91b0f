"""Where a user's model is: a folder, a GGUF file or a hub id, and what its configuration says before it is loaded."""

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
    """Where a model's files are: a folder or hub id, and the GGUF file in it if that is what to read."""

    name: str
    folder: str
    gguf_file: str | None
    local: bool

    @property
    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"local_files_only": self.local, "trust_remote_code": False}
        return options | ({"gguf_file": self.gguf_file} if self.gguf_file else {})


def find_place(text: str) -> Place:
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
        return Place(path.resolve().name, str(path), None, True)
    kind, why = ("file", "it is not looked for on the hub") if text.endswith(".gguf") else ("folder", why_missing(text))
    if why is not None:
        raise ModelError(
            f"There is no {kind} {text}, and {why}; pass a folder, a .gguf file or the id of a model on the hub."
        )
    return Place(text, text, None, False)


def _gguf_in(path: Path, text: str) -> Place:
    files = sorted(path.glob("*.gguf"))
    if len(files) != 1:
        found = f"{len(files)} GGUF files, name the one to read" if files else "no GGUF file, pass a model's folder"
        raise ModelError(f"{text} has no config.json and {found}.")
    return Place(files[0].name, str(path), files[0].name, True)


def has_weights(place: Place) -> bool:
    """Whether there are weights on this machine, without asking the hub."""
    return place.gguf_file is not None or any(Path(place.folder).glob("*.safetensors"))


def configuration(place: Place) -> dict[str, Any]:
    """The folder's configuration as it is written; empty if it cannot be read."""
    return read_json(Path(place.folder) / "config.json")


def read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
