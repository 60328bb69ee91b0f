"""The compiled folder: how it is read, with clear errors."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tintc.bounded import check_path, parse_json, read_file
from tintc.errors import ArtefactError, IRError, first_line
from tintc.hub import MODEL_TYPE, why_missing
from tintc.ir.core import Program
from tintc.ir.text import parse_program
from tintc.lowering.emission.sizes import check_sizes
from tintc.lowering.whole_program import check_complete
from tintc.options import renamed
from tintc.runtime.artefact.beside import local_folder, text_digest
from tintc.runtime.artefact.config import FORMAT_VERSION, check_choices, check_format
from tintc.runtime.artefact.names import AUXILIARY_FILE, CONFIG_FILE, PROGRAM_FILE
from tintc.runtime.artefact.schema import check_entries
from tintc.runtime.artefact.snapshot import Snapshot, open_snapshot
from tintc.runtime.artefact.staging import writer_at_work


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
