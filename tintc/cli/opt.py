"""`tintc opt`: passes of the compiler, run by hand on a program's text."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tintc.bounded import read_file
from tintc.cli.console import print_json, silence_libraries, stages
from tintc.errors import InputError, OptionError
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.importer import import_graph
from tintc.ir.core import Program
from tintc.ir.text import parse_program, print_program
from tintc.lowering.pipeline import PIPELINE, Pass, passes_named, run_passes
from tintc.options import Options
from tintc.runtime.artefact.names import MOST_PROGRAM
from tintc.runtime.artefact.one_file import check_replaceable, staged_file
from tintc.stages import load_source


def run_opt(
    path: str,
    options: dict[str, Any],
    names: str | None,
    print_after: str | None,
    timed: bool,
    output: Path | None,
    trusted: bool,
    as_json: bool,
) -> None:
    """Run passes on a program's text or on the program of a model, and print or write the program they give.

    names: of the passes, with commas between (None: all); print_after: of those after which the program is printed on
    standard error (``all``: every one); trusted: whether Python code that comes with a model may be run.
    """
    silence_libraries()
    chosen = Options(**options)
    passes = PIPELINE
    if names is not None:
        passes = passes_named(names)
    printed = printed_after(passes, print_after)
    times: list[dict[str, Any]] = []

    def observe(one: Pass, program: Program, seconds: float) -> None:
        if one.name in printed:
            print(f"// after {one.name}\n{print_program(program)}", file=sys.stderr)
        times.append({"name": one.name, "seconds": seconds})
        if timed:
            print(f"{seconds:9.3f} s  {one.name}", file=sys.stderr)

    program, chosen = program_and_options(path, chosen, trusted)
    text = print_program(run_passes(passes, program, chosen, observe))
    if output is not None:
        write(output, text)
    if as_json:
        print_json({"passes": times, "program": text})
    elif output is None:
        print(text, end="")


def program_and_options(path: str, chosen: Options, trusted: bool) -> tuple[Program, Options]:
    """Return the program that a file has as text, or that a model's graph is read as, and options with its length."""
    if Path(path).suffix == ".tint":
        return read_program(Path(path)), chosen
    with stages():
        source = load_source(path, chosen, values=False, trust_remote_code=trusted)
        program = import_graph(capture(source.model, source.max_length, source.provenance["source"]))
    return program, replace(chosen, max_length=source.max_length)


def printed_after(passes: Sequence[Pass], names: str | None) -> set[str]:
    """Return the names of the passes after which the program is printed; raise `OptionError` if one does not run."""
    running = [one.name for one in passes]
    if names is None:
        return set()
    if names == "all":
        return set(running)
    wanted = [one.name for one in passes_named(names)]
    absent = [name for name in wanted if name not in running]
    if absent:
        raise OptionError(f"The pass {absent[0]} does not run, so nothing can be printed after it; name it in -p too.")
    return set(wanted)


def read_program(path: Path) -> Program:
    """Return the program in a file; raise `InputError` if it cannot be read, `IRError` if it does not parse."""
    try:
        return parse_program(read_file(path, MOST_PROGRAM).decode("utf-8"))
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); a program is text.") from error


def write(path: Path, text: str) -> None:
    """Write a program in one step: whatever happens, the file is the old one or the new one. Raises `ArtefactError` for
    a place where something else is, and `InputError` if the disk will not take it."""
    target = path.absolute()
    check_replaceable(target, _is_program, "program", advice="")
    try:
        with staged_file(target) as stream:
            stream.write(text.encode())
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror or error}.") from error


def _is_program(file: Path) -> bool:
    """Return True for a file that begins as a program, and for an empty one."""
    with file.open("rb") as opened:
        return re.match(rb"(aux|sim)\.program|//|$", opened.read(20)) is not None
