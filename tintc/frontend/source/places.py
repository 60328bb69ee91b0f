"""Places of models: folders, GGUF files and hub ids; and their configurations, read before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tintc.bounded import parse_json, read_file
from tintc.errors import ModelError
from tintc.hub import why_missing

PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
"""Files that torch's weights-only loader reads, and that hold or name all weights of a model."""
ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class Place:
    """The place of a model's files: a folder or hub id, and the GGUF file in it if that is the one to read.

    trusted: whether Python code that comes with the model may be run; adapter: the folder of an adapter of peft, of
    which this is the base; name: what the user named.
    """

    name: str
    folder: str
    gguf_file: str | None
    local: bool
    trusted: bool = False
    adapter: str | None = None

    @property
    def format(self) -> str:
        """Return the format of the weights: "gguf", "pytorch" (pickled by torch) or "safetensors"."""
        if self.gguf_file:
            return "gguf"
        if self.local and not _any(self.folder, "*.safetensors") and _any(self.folder, *PICKLED):
            return "pytorch"
        return "safetensors"

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
    try:
        path = Path(text).expanduser()
        path.is_file()
    except (OSError, RuntimeError) as error:  # too long, or the home of nobody
        raise ModelError(f"There is no model {text[:80]}: {getattr(error, 'strerror', None) or error}.") from error
    if path.is_file() and path.name == "config.json":
        path = path.absolute().parent
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{text} is a file and not a GGUF file; pass the folder that holds config.json.")
        return Place(path.name, str(path.parent), path.name, True)
    if path.is_dir():
        if (path / ADAPTER).is_file():
            return _of_adapter(path, text, trusted)
        if not (path / "config.json").is_file() or _has_gguf_alone(path):
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


def _of_adapter(path: Path, text: str, trusted: bool) -> Place:
    """Return the place of the model that an adapter in a folder is for."""
    base = read_json(path / ADAPTER).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{text} is an adapter of peft that does not say which model it is for; write the model's folder or id as "
            f"base_model_name_or_path into its {ADAPTER}."
        )
    shown = " ".join(base[:80].split())
    if _is_adapter(base):
        raise ModelError(
            f"{text} is an adapter for {shown}, which is an adapter too; merge that into its base first: "
            "PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(folder) in Python."
        )
    try:
        place = find_place(base, trusted)
    except ModelError as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ModelError(
            f"{text} is an adapter of peft for {shown}, which cannot be had ({reason}); write the "
            f"model's folder as base_model_name_or_path into its {ADAPTER}."
        ) from error
    return replace(place, name=path.resolve().name, adapter=str(path))


def _is_adapter(path: str) -> bool:
    try:
        return (Path(path).expanduser() / ADAPTER).is_file()
    except (OSError, RuntimeError):
        return False


def _gguf_in(path: Path, text: str) -> Place:
    """Return the only GGUF file in a folder; raise `ModelError` if there is none or are several."""
    files = sorted(path.glob("*.gguf"))
    if not files:
        raise ModelError(f"{text} has no config.json and no GGUF file, pass a model's folder.")
    if len(files) > 1:
        raise ModelError(f"{text} has {len(files)} GGUF files, name the one to read: {files[0]}, for instance.")
    return Place(files[0].name, str(path), files[0].name, True)


def _has_gguf_alone(path: Path) -> bool:
    """Return True if a folder has GGUF files and weights in no other form."""
    return _any(str(path), "*.gguf") and not _any(str(path), "*.safetensors", *PICKLED)


def has_weights(place: Place) -> bool:
    """Return True if there are weights on this machine, without asking the hub."""
    return place.gguf_file is not None or _any(place.folder, "*.safetensors", *PICKLED)


def weight_files(place: Place) -> list[Path]:
    """Return the files of weights on this machine."""
    folder = Path(place.folder)
    if place.gguf_file is not None:
        return [folder / place.gguf_file]
    return [*folder.glob("*.safetensors"), *folder.glob("*.bin")]


def _any(folder: str, *patterns: str) -> bool:
    """Return True if a folder has a file of one of these patterns."""
    return any(True for pattern in patterns for _ in Path(folder).glob(pattern))


def configuration(place: Place) -> dict[str, Any]:
    """Return the folder's configuration as it is written; empty if it cannot be read."""
    return read_json(Path(place.folder) / "config.json")


def read_json(file: Path) -> dict[str, Any]:
    """Return the entries of a JSON file; none if it is not there or holds anything else."""
    try:
        entries = parse_json(read_file(file))
    except OSError:
        return {}
    if not isinstance(entries, dict):
        return {}
    return entries
