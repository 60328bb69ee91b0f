"""`tintc inspect`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tintc.analysis.report import OPTIONS, parameter_report, summary
from tintc.bounded import check_path
from tintc.cli.console import print_json, print_table, silence_libraries, stages
from tintc.cli.legend import print_legend
from tintc.cli.params import print_modules, print_paper
from tintc.cli.roles import chosen_roles, print_roles
from tintc.errors import ArtefactError, OptionError
from tintc.frontend.source.load import load_auxiliary
from tintc.ir.core import Program
from tintc.ir.text import parse_program, print_program
from tintc.lowering.emission.emit import specs
from tintc.options import Options
from tintc.runtime.artefact.checks import check_config
from tintc.runtime.artefact.digests import changed_files, say_edited
from tintc.runtime.artefact.folder import config_in, is_artefact, is_edited, opened, program_in, says_simulator
from tintc.runtime.artefact.names import AUXILIARY_FILE
from tintc.runtime.artefact.tensor_files import TensorFiles, check_shapes
from tintc.stages import import_auxiliary, lower

PAPERS = "opt"
"""The type of the models whose parameters the paper counts."""


@dataclass(frozen=True)
class Subject:
    """The subject of `inspect`: a model, or a compiled simulator, which does not hold the auxiliary's program.

    facts: what is known besides the program; simulator: makes or gives the simulator's program.
    """

    kind: str
    facts: dict[str, Any]
    auxiliary: Program | None
    simulator: Callable[[], Program]


def inspect_path(
    path: str, ir: str | None, params: bool, paper: bool, roles: str | None, trusted: bool, as_json: bool
) -> None:
    """Print what was asked for, or a summary if nothing was.

    paper: counts, and the paper's beside them; trusted: whether Python code that comes with a model may be run.
    """
    silence_libraries()
    path = folder_of(path)
    with stages():
        subject = read_artefact(path) if holds_simulator(path) else read_model(path, trusted)
        shown = parameter_report(subject.simulator()) if params or paper else {}
        if roles is not None:
            shown |= {"roles": chosen_roles(subject.simulator(), roles)}
        if ir is not None:
            shown |= {"ir": ir, "program": print_program(_program(path, subject, ir))}
        shown = shown or {"kind": subject.kind, **subject.facts, **summary(subject.simulator())}
    if as_json:
        print_json(shown)
        return
    text = shown.pop("program", "")
    published = shown.pop("paper", None)
    counts = None if published is None else shown.pop("modules")
    if "roles" in shown:
        print_roles(f"{subject.kind} {path}", shown.pop("roles"))
        if not shown:
            return
    if shown.pop("ir", None) is None or shown:
        print_table(f"{subject.kind} {path}", shown)
        print_legend((*shown, *shown.get("parameters", ())))
    if counts is not None:
        print_modules(counts)
    if published is not None and (paper or subject.facts["provenance"].get("model_type") == PAPERS):
        print_paper(published)
    print(text, end="")


def _program(path: str, subject: Subject, ir: str) -> Program:
    if ir == "sim":
        return subject.simulator()
    if subject.auxiliary is None:
        raise OptionError(
            f"{path} has no auxiliary.tint beside its program; pass the model it was compiled from, or ask for "
            "--ir sim."
        )
    return subject.auxiliary


def folder_of(path: str) -> str:
    """Return the folder of a config.json, which stands for it; other paths as they are."""
    check_path(path, ArtefactError)
    file = Path(path).expanduser()
    if file.name == "config.json" and file.is_file():
        return str(file.absolute().parent)
    return path


def holds_simulator(path: str) -> bool:
    """Return True if a local folder is, or says it is, a compiled simulator."""
    check_path(path, ArtefactError)
    return is_artefact(path) or says_simulator(path)


def read_artefact(path: str) -> Subject:
    """Return an artefact's program and configuration, checked against the headers of its weight files; reads no
    weights."""
    with opened(path, weights=True) as snapshot:
        text, program = program_in(path, snapshot)
        config = config_in(path, snapshot)
        check_config(path, config, program)
        edited = is_edited(text, config.get("digests") or {})
        check_shapes(path, TensorFiles(snapshot).shapes(), specs(program), edited)
        say_edited(path, changed_files(snapshot), edited)
        stored = snapshot.text(AUXILIARY_FILE)
    facts = {name: config.get(name) for name in (*OPTIONS, "dtype")} | {"provenance": config.get("provenance") or {}}
    auxiliary = None
    if stored is not None:
        auxiliary = parse_program(stored)
    return Subject("simulator", facts, auxiliary, lambda: program)


def read_model(path: str, trusted: bool) -> Subject:
    """Return a model as the compiler sees it, with the simulator that default options give.

    trusted: whether Python code that comes with it may be run.
    """
    source = load_auxiliary(path, values=False, trust_remote_code=trusted)
    auxiliary = import_auxiliary(source).program
    simulator = partial(lower, auxiliary, Options(), source.max_length)
    return Subject("model", {"provenance": source.provenance}, auxiliary, simulator)
