"""`tintc opt`: passes on a text or on a model; what goes to which stream; mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import Command
from programs import gpt_like

import tintc
from tintc.ir.text import parse_program, print_program
from tintc.lowering.pipeline import PIPELINE, passes_named, run_passes
from tintc.options import Options

NAMES = [one.name for one in PIPELINE]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "program.tint"
    path.write_text(print_program(gpt_like(layers=1)[0]))
    return path


def test_the_whole_pipeline_is_what_compile_runs(command: Command, one_layer: Path, tmp_path: Path) -> None:
    options = ("--n-steps", 2, "--stack", 2, "--shards", 2)
    shown = command("opt", one_layer, *options)
    assert shown.code == 0, shown.err
    tintc.compile(one_layer, n_steps=2, stack=2, shards=2, output=tmp_path / "sim")
    assert shown.out == (tmp_path / "sim" / "program.tint").read_text()
    assert command("opt", one_layer, *options, "-o", tmp_path / "out.tint").out == ""
    assert (tmp_path / "out.tint").read_text() == shown.out


def test_passes_of_a_text(command: Command, text: Path) -> None:
    shown = command("opt", text, "-p", "differentiate, unroll-steps", "--steps", 2)
    wanted = run_passes(passes_named("differentiate,unroll-steps"), gpt_like(layers=1)[0], Options(n_steps=2))
    assert (shown.code, shown.out, shown.err) == (0, print_program(wanted), "")


def test_what_happens_between_goes_to_standard_error(command: Command, text: Path) -> None:
    arguments = ("opt", text, "--max-length", 24)
    plain = command(*arguments)
    assert plain.code == 0 and plain.err == ""
    one = command(*arguments, "--print-ir-after", "unroll-steps")
    head, _, program = one.err.partition("\n")
    assert one.out == plain.out and head == "// after unroll-steps"
    assert print_program(parse_program(program)) == program.removesuffix("\n")
    every = command(*arguments, "--print-ir-after", "all")
    heads = [line for line in every.err.splitlines() if line.startswith("//")]
    assert heads == [f"// after {name}" for name in NAMES] and every.out == plain.out
    timed = command(*arguments, "--time-passes")
    assert [line.split()[-1] for line in timed.err.splitlines()] == NAMES and timed.out == plain.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-p", "canonicalize"), "choose among canonicalise, assign-layers, differentiate"),
        (("-p", "cse"), "it takes a program of the dialect sim"),
        (("-p", "differentiate", "--print-ir-after", "cse"), "The pass cse does not run"),
        (("--print-ir-after", "everything"), "The pass 'everything' is unknown"),
        ((), "--max-length"),
        (("--max-length", 24, "--stack", 1, "--shards", 16), "not a feasible layout"),
        (("-p", "differentiate", "--n-update-layers", 7), "Cannot update 7 layers"),
    ],
)
def test_mistakes(command: Command, text: Path, arguments: tuple[object, ...], says: str) -> None:
    out = text.parent / "out.tint"
    out.write_text("as it was")
    found = command("opt", text, *arguments, "-o", out)
    assert found.code == 2 and found.out == "" and says in found.err and len(found.err.splitlines()) == 1
    assert out.read_text() == "as it was" and {path.name for path in text.parent.iterdir()} == {text.name, "out.tint"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"aux.program {width=4}\n%x = aux.nonsense() : tokens<4>\n", "line 2: there is no op"),
        (b"\xff", "not UTF-8"),
        (b"", "line 1"),
        (b'aux.program {width=4}\n%x = aux.embedding() {table="t"} : tokens<4>\n', "does not return logits"),
        (b"aux.program {}\n", "no attribute 'width'"),
        (None, "Cannot read"),
    ],
)
def test_texts_that_are_none(command: Command, tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "program.tint"
    if content is not None:
        path.write_bytes(content)
    found = command("opt", path)
    assert found.code == 2 and found.out == "" and says in found.err and len(found.err.splitlines()) == 1


def test_a_place_that_cannot_be_written(command: Command, text: Path) -> None:
    found = command("opt", text, "-p", "canonicalise", "-o", text.parent / "no" / "such" / "out.tint")
    assert found.code == 2 and "Cannot write" in found.err and len(found.err.splitlines()) == 1
