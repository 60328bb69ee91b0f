"""How a compiled folder is written: in one step, whole or not at all, with clear errors."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from tintc.analysis.head_roles import Roles
from tintc.bounded import check_path
from tintc.errors import ArtefactError, TintcError, first_line
from tintc.ir.text import parse_program
from tintc.runtime.artefact.card import model_card
from tintc.runtime.artefact.config import TintConfig
from tintc.runtime.artefact.digests import write_digests
from tintc.runtime.artefact.folder import is_artefact
from tintc.runtime.artefact.names import AUXILIARY_FILE, CARD_FILE, DESCRIPTION_FILE, PROGRAM_FILE, ROLES_FILE
from tintc.runtime.artefact.staging import TakenError, staged


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


def exists_already(out: object) -> ArtefactError:
    """Return the error for an output that may not be replaced."""
    return ArtefactError(
        f"{out} exists already; pass force=True (--force) to replace it, or choose another output folder."
    )


def check_new(out: str | os.PathLike[str]) -> None:
    """Raise `ArtefactError` for a path at which something is, or nothing can be."""
    check_path(out, ArtefactError)
    if Path(out).exists():
        raise ArtefactError(f"{out} exists already; choose another folder.")


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
    """Raise `ArtefactError` where the disk fails in the block, which writes `target` whole or not at all."""
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


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer without what transformers notes about where it was loaded from."""
    for key in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(key, None)
    tokenizer.save_pretrained(folder)
