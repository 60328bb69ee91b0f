"""The compiled folder: what stands in it, how it is written in one step, and how it is read back with clear errors."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from tintc.analysis.head_roles import Roles
from tintc.bounded import check_path, parse_json, read_file
from tintc.errors import ArtefactError, IRError, OptionError, TintcError
from tintc.hub import MODEL_TYPE, why_missing
from tintc.ir.core import Program
from tintc.ir.text import parse_program
from tintc.lowering.emission.emit import check_complete
from tintc.lowering.emission.sizes import check_sizes
from tintc.options import renamed
from tintc.runtime.artefact.beside import local_folder, text_digest
from tintc.runtime.artefact.card import model_card
from tintc.runtime.artefact.config import FORMAT_VERSION, TintConfig, check_choices, check_format
from tintc.runtime.artefact.digests import write_digests
from tintc.runtime.artefact.names import (
    AUXILIARY_FILE,
    CARD_FILE,
    CONFIG_FILE,
    DESCRIPTION_FILE,
    PROGRAM_FILE,
    ROLES_FILE,
)
from tintc.runtime.artefact.schema import check_entries
from tintc.runtime.artefact.snapshot import Snapshot, open_snapshot
from tintc.runtime.artefact.staging import TakenError, staged, writer_at_work

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


def parsed_program(text: str, where: object) -> Program:
    """Return a simulator's program from its text; raise `IRError` if it does not parse, is not whole, or its sizes do
    not fit each other."""
    try:
        program = check_complete(parse_program(text))
        check_sizes(program)
        return program
    except IRError as error:
        advice = "Undo what was edited, or compile the model again."
        sentence = str(error)
        for other in ("Compile the model again.", "compile the model again."):
            if sentence.endswith(other):
                advice = ""
        raise IRError(f"{where} is damaged. {sentence} {advice}".strip()) from error


def read_program(path: str | os.PathLike[str], **hub: Any) -> tuple[str, Program]:
    """Return the program of an artefact, local or on the hub, as text and parsed; raise `IRError` if it is damaged."""
    with opened(path, weights=False, **hub) as snapshot:
        return program_in(path, snapshot)


def program_in(path: str | os.PathLike[str], snapshot: Snapshot) -> tuple[str, Program]:
    """Return the program among open files, as text and parsed; errors as of `read_program`."""
    text = snapshot.text(PROGRAM_FILE)
    if text is None:
        raise ArtefactError(f"{path} has no {PROGRAM_FILE}; compile the model again.")
    return text, parsed_program(text, f"{path}/{PROGRAM_FILE}")


def read_auxiliary(path: str | os.PathLike[str], **hub: Any) -> str | None:
    """Return the text of the auxiliary program that an artefact was made from; nothing needs it to run."""
    with opened(path, weights=False, **hub) as snapshot:
        return snapshot.text(AUXILIARY_FILE)


@contextmanager
def opened(path: str | os.PathLike[str], weights: bool, **hub: Any) -> Iterator[Snapshot]:
    """Give the open files of an artefact, local or on the hub; raise `ArtefactError` unless they are a simulator's, and
    for a disk that fails in the block.

    weights: whether files of tensors on the hub are fetched.
    """
    try:
        with _opened(path, weights, **hub) as snapshot:
            yield snapshot
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error.strerror or first_line(error)}.") from error


def _opened(path: str | os.PathLike[str], weights: bool, **hub: Any) -> Snapshot:
    """Return the open files, which the caller closes."""
    check_path(path, ArtefactError)
    why = None
    if not Path(path).exists() and not writer_at_work(Path(path)):
        why = why_missing(str(path), **hub)
    if why is not None:
        raise ArtefactError(f"There is no folder {path}, and {why}; check the path, or the connection.")
    if Path(path).exists() and not Path(path).is_dir():
        raise ArtefactError(f"{path} is a file and not a compiled simulator; pass the folder that it is in.")
    folder = local_folder(path, weights, **hub)
    if writer_at_work(Path(path)):
        folder = Path(path)
    if folder is None:
        raise ArtefactError(f"{path} is not a compiled simulator: it has no {CONFIG_FILE}. Check the path.")
    snapshot = open_snapshot(folder)
    try:
        config_in(path, snapshot)
    except BaseException:
        snapshot.close()
        raise
    return snapshot


def config_in(path: str | os.PathLike[str], snapshot: Snapshot) -> dict[str, Any]:
    """Return the configuration among open files; raise `ArtefactError` unless it is a simulator's that is read here."""
    config = snapshot.json(CONFIG_FILE)
    if config is None:
        raise ArtefactError(f"{path} is not a compiled simulator: it has no {CONFIG_FILE}. Check the path.")
    kind = _model_type(config)
    if kind != MODEL_TYPE:
        raise ArtefactError(
            f"{path} holds a model of type {kind!r}, not a compiled simulator; run 'tintc compile {path} -o OUT' first."
        )
    check_format(config.get("format_version", FORMAT_VERSION), str(path))
    config = renamed(config)
    check_choices(config, str(path))
    check_entries(f"{path}/{CONFIG_FILE}", config)
    return config


def is_artefact(path: str | os.PathLike[str]) -> bool:
    """Return whether a local folder is a compiled simulator."""
    return (Path(path) / PROGRAM_FILE).is_file()


def says_simulator(path: str | os.PathLike[str]) -> bool:
    """Return whether a local folder's configuration is a simulator's, whatever else the folder holds."""
    try:
        return _model_type(parse_json(read_file(Path(path) / CONFIG_FILE))) == MODEL_TYPE
    except OSError:
        return False


def _model_type(config: Any) -> Any:
    if not isinstance(config, dict):
        return None
    kind = config.get("model_type")
    if len(str(kind)) > 80:
        return f"{str(kind)[:80]}..."
    return kind


def read_config(path: str | os.PathLike[str], **hub: Any) -> dict[str, Any]:
    """Return the configuration as it is stored; raise `ArtefactError` unless it is that of a simulator this version
    can read."""
    with opened(path, weights=False, **hub) as snapshot:
        return config_in(path, snapshot)


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer without what transformers notes about where it was loaded from."""
    for key in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.save_pretrained(folder)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, of a long one its beginning, without the full stop.

    An error without a message has its class's name.
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500].rstrip(".")


@contextmanager
def writing(out: str | os.PathLike[str], force: bool) -> Iterator[Path]:
    """Give a folder to write an artefact into, which becomes `out` at the end; errors as of `write_artefact`."""
    target = check_output(out, force)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtefactError(f"Cannot write to {target.parent}: {error.strerror or error}.") from error
    try:
        with explained(target), staged(target, replace=force) as folder:
            yield folder
    except TakenError as error:
        raise exists_already(out) from error


@contextmanager
def explained(target: Path) -> Iterator[None]:
    """Raise `ArtefactError` for what a disk has against the block, which writes `target` whole or not at all."""
    try:
        yield
    except (TintcError, TakenError):
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


def write_texts(
    folder: Path,
    config: TintConfig,
    program: str,
    tokenizer: Any | None,
    edited: bool = False,
    hashed: Mapping[str, str] | None = None,
) -> None:
    """Write what an artefact holds besides configuration and tensors: programs, the roles of its heads, model card
    and, if known, the tokenizer; and the digests of all.

    edited: whether the structural tensors are not the compiler's own; hashed: sha256 of files that are known.
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
    write_digests(folder, hashed)


def exists_already(out: object) -> ArtefactError:
    """Return the error for an output that may not be replaced."""
    return ArtefactError(
        f"{out} exists already; pass force=True (--force) to replace it, or choose another output folder."
    )


def check_output(out: str | os.PathLike[str], force: bool) -> Path:
    """Return the absolute output path; raise `ArtefactError` if it exists and may not, or is no folder."""
    check_path(out, ArtefactError)
    target = Path(out).resolve()
    if target.exists() and not target.is_dir():
        raise ArtefactError(f"{out} is a file; choose another output folder.")
    if target.exists() and not force:
        raise exists_already(out)
    if target.exists() and any(target.iterdir()) and not is_artefact(target):
        raise ArtefactError(f"{out} is not a compiled simulator, so it will not be replaced; choose another folder.")
    return target
