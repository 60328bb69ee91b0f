"""The compiled folder: what stands in it, how it is written in one step, and how it is read back with clear errors."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoTokenizer

from tintc.analysis.head_roles import Roles
from tintc.errors import ArtefactError, IRError, OptionError, TintcError
from tintc.hub import MODEL_TYPE, why_missing
from tintc.ir.core import Program
from tintc.ir.text import parse_program
from tintc.runtime.artefact.beside import AUXILIARY_FILE, DESCRIPTION_FILE, file_beside, text_beside, text_digest
from tintc.runtime.artefact.card import model_card
from tintc.runtime.artefact.config import FORMAT_VERSION, TintConfig, check_choices, check_format
from tintc.runtime.artefact.staging import PROGRAM_FILE, staged

CARD_FILE = "README.md"
ROLES_FILE = "roles.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return the torch dtype of a dtype or its name; raise `OptionError` for any but float32, bfloat16, float64."""
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise OptionError(f"The dtype {name!r} is not supported; choose one of {', '.join(DTYPES)}.")
    return DTYPES[name]


def is_edited(program: str, digests: Mapping[str, str]) -> bool:
    """Return whether a program's text is not what the compiler wrote, whose digests stand in the configuration."""
    return text_digest(program) != digests.get("program")


def read_program(path: str | os.PathLike[str], **hub: Any) -> tuple[str, Program]:
    """Return the program of an artefact, local or on the hub, as text and parsed; raise `IRError` if it is damaged."""
    read_config(path, **hub)
    text = _read_text(path, PROGRAM_FILE, **hub)
    if text is None:
        raise ArtefactError(f"{path} has no {PROGRAM_FILE}; compile the model again.")
    try:
        return text, parse_program(text)
    except IRError as error:
        advice = "Undo what was edited, or compile the model again."
        raise IRError(f"{path}/{PROGRAM_FILE} is damaged. {error} {advice}") from error


def read_auxiliary(path: str | os.PathLike[str], **hub: Any) -> str | None:
    """Return the text of the auxiliary program that an artefact was made from; nothing needs it to run."""
    return _read_text(path, AUXILIARY_FILE, **hub)


def _read_text(path: str | os.PathLike[str], name: str, **hub: Any) -> str | None:
    try:
        return text_beside(path, name, **hub)
    except UnicodeDecodeError as error:
        raise ArtefactError(f"{path}/{name} is damaged: it is not UTF-8. Compile the model again.") from error


def files_of(path: str | os.PathLike[str], **hub: Any) -> Path:
    """Return the local folder that holds an artefact's files, which for a hub id is transformers' cache."""
    file = file_beside(path, "config.json", **hub)
    assert file is not None, "read_program has checked that the folder is an artefact"
    return Path(file).parent


def is_artefact(path: str | os.PathLike[str]) -> bool:
    """Return whether a local folder is a compiled simulator."""
    return (Path(path) / PROGRAM_FILE).is_file()


def says_simulator(path: str | os.PathLike[str]) -> bool:
    """Return whether a local folder's configuration is a simulator's, whatever else the folder holds."""
    try:
        return _model_type(_parsed(Path(path) / "config.json")) == MODEL_TYPE
    except (OSError, ValueError):
        return False


def _parsed(file: str | Path) -> Any:
    return json.loads(Path(file).read_text(encoding="utf-8"))


def _model_type(config: Any) -> Any:
    if not isinstance(config, dict):
        return None
    return config.get("model_type")


def read_config(path: str | os.PathLike[str], **hub: Any) -> dict[str, Any]:
    """Return the configuration as it is stored; raise `ArtefactError` unless it is that of a simulator this version
    can read."""
    why = None
    if not Path(path).exists():
        why = why_missing(str(path), **hub)
    if why is not None:
        raise ArtefactError(f"There is no folder {path}, and {why}; check the path, or the connection.")
    if Path(path).is_file():
        raise ArtefactError(f"{path} is a file and not a compiled simulator; pass the folder that it is in.")
    file = file_beside(path, "config.json", **hub)
    if file is None:
        raise ArtefactError(f"{path} is not a compiled simulator: it has no config.json. Check the path.")
    try:
        config = _parsed(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtefactError(f"{path}/config.json is damaged ({error}); compile the model again.") from error
    kind = _model_type(config)
    if kind != MODEL_TYPE:
        raise ArtefactError(
            f"{path} holds a model of type {kind!r}, not a compiled simulator; run 'tintc compile {path} -o OUT' first."
        )
    check_format(config.get("format_version", FORMAT_VERSION), str(path))
    check_choices(config, str(path))
    return config


def read_tokenizer(path: str | os.PathLike[str], **hub: Any) -> Any:
    """Return the tokenizer stored with an artefact, local or on the hub; None if there is none."""
    if file_beside(path, "tokenizer_config.json", **hub) is None:
        return None
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False, **hub)
    except (OSError, ValueError, KeyError):
        return None


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer without what transformers notes about where it was loaded from."""
    for key in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.save_pretrained(folder)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


@contextmanager
def writing(out: str | os.PathLike[str], force: bool) -> Iterator[Path]:
    """Give a folder to write an artefact into, which becomes `out` at the end; errors as of `write_artefact`."""
    target = check_output(out, force)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtefactError(f"Cannot write to {target.parent}: {error.strerror or error}.") from error
    with explained(target), staged(target) as folder:
        yield folder


@contextmanager
def explained(target: Path) -> Iterator[None]:
    """Raise `ArtefactError` for what a disk has against the block, which writes `target` whole or not at all."""
    try:
        yield
    except TintcError:
        raise
    except Exception as error:  # tokenizers raises bare ones for a full disk
        if not isinstance(error, OSError | SafetensorError | RuntimeError) and type(error) is not Exception:
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ArtefactError(
            f"Could not write {target}: {reason}. Nothing was changed; mend that, or choose another folder."
        ) from error


def check_space(folder: Path, needed: int) -> None:
    """Raise `ArtefactError` unless the disk that holds `folder` has room for that many bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ArtefactError(
            f"The simulator takes {needed / 1e9:.3g} GB and {folder.parent} has {free / 1e9:.3g} GB left; make room, "
            "or choose another output folder."
        )


def write_texts(folder: Path, config: TintConfig, program: str, tokenizer: Any | None, edited: bool = False) -> None:
    """Write what an artefact holds besides configuration and tensors: programs, the roles of its heads, model card
    and, if known, the tokenizer.

    edited: whether the structural tensors are not the compiler's own. The program comes last: without it a folder is no
    artefact.
    """
    if config.auxiliary is not None:
        (folder / AUXILIARY_FILE).write_text(config.auxiliary, encoding="utf-8")
    if config.described is not None:
        (folder / DESCRIPTION_FILE).write_text(config.described, encoding="utf-8")
    (folder / CARD_FILE).write_text(model_card(config, tokenizer is not None, edited), encoding="utf-8")
    (folder / ROLES_FILE).write_text(Roles(parse_program(program)).to_json(), encoding="utf-8")
    if tokenizer is not None:
        write_tokenizer(tokenizer, folder)
    (folder / PROGRAM_FILE).write_text(program, encoding="utf-8")


def check_output(out: str | os.PathLike[str], force: bool) -> Path:
    """Return the absolute output path; raise `ArtefactError` if it exists and may not, or is no folder."""
    target = Path(out).resolve()
    if target.exists() and not target.is_dir():
        raise ArtefactError(f"{out} is a file; choose another output folder.")
    if target.exists() and not force:
        raise ArtefactError(
            f"{out} exists already; pass force=True (--force) to replace it, or choose another output folder."
        )
    if target.exists() and any(target.iterdir()) and not is_artefact(target):
        raise ArtefactError(f"{out} is not a compiled simulator, so it will not be replaced; choose another folder.")
    return target
