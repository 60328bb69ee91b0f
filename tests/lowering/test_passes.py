"""Passes on texts, pinned as files: ``passes/<name>.tint`` and beside it ``<name>.expected.tint``.

The first line of a file says what is run on it, as `tintc opt` takes it. Also what `run_passes` says of passes that
fail.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from programs import gpt_like
from tiny_models import gpt2, llama, opt
from transformers import PreTrainedModel

from tintc.errors import OptionError, PassError, UnsupportedModelError
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.importer import import_graph
from tintc.ir.core import Program
from tintc.ir.text import parse_program, print_program
from tintc.lowering.pipeline import PIPELINE, SIMULATOR_PASSES, Pass, passes_named, run_passes
from tintc.options import Options

FOLDER = Path(__file__).parent / "passes"
CASES = sorted(path.stem for path in FOLDER.glob("*.tint") if not path.stem.endswith(".expected"))


def request_of(text: str) -> tuple[str, Options]:
    """Passes and options of a first line ``// -p NAMES --option value ...``."""
    words = shlex.split(text.splitlines()[0].removeprefix("//"))
    options: dict[str, Any] = {}
    for flag, value in zip(words[::2], words[1::2], strict=True):
        options[flag.lstrip("-").replace("-", "_")] = value
        with suppress(json.JSONDecodeError):
            options[flag.lstrip("-").replace("-", "_")] = json.loads(value)
    return options.pop("p"), Options(**options)


@pytest.mark.parametrize("case", CASES)
def test_text(case: str, request: pytest.FixtureRequest) -> None:
    text = (FOLDER / f"{case}.tint").read_text()
    names, options = request_of(text)
    result = print_program(run_passes(passes_named(names), parse_program(text), options))
    assert print_program(parse_program(result)) == result
    expected = FOLDER / f"{case}.expected.tint"
    if request.config.getoption("--update-golden"):
        expected.write_text(result)
    assert expected.exists(), f"{expected} is missing; run pytest with --update-golden and read what it wrote"
    assert result == expected.read_text()


@pytest.mark.parametrize(
    ("name", "make"), [("gpt2", lambda: gpt2(2)), ("opt", lambda: opt(1)), ("llama", lambda: llama(2))]
)
def test_models_are_imported_as_the_texts_say(
    name: str, make: Callable[[], PreTrainedModel], request: pytest.FixtureRequest
) -> None:
    path = FOLDER / f"canonicalise.{name}.tint"
    header, _, body = path.read_text().partition("\n")
    imported = print_program(import_graph(capture(make())))
    if request.config.getoption("--update-golden"):
        path.write_text(f"{header}\n{imported}")
        body = imported
    assert imported == body


def test_every_pass_has_a_text() -> None:
    run = {name for case in CASES for name in request_of((FOLDER / f"{case}.tint").read_text())[0].split(",")}
    assert run == {one.name for one in PIPELINE}


def test_the_pipeline_fits_together() -> None:
    assert [one.takes for one in PIPELINE[1:]] == [one.gives for one in PIPELINE[:-1]]


def test_passes_are_observed_in_order() -> None:
    program, _ = gpt_like(layers=1)
    seen: list[tuple[str, str]] = []

    def observe(one: Pass, result: Program, seconds: float) -> None:
        assert seconds > 0
        seen.append((one.name, result.dialect))

    run_passes(SIMULATOR_PASSES, program, Options(max_length=24), observe)
    assert seen == [(one.name, "sim") for one in SIMULATOR_PASSES]


def broken_pass(program: Program, options: Options) -> Program:
    program.ops.pop(0)
    return program


@pytest.mark.parametrize(
    ("passes", "says"),
    [
        ("cse", "The pass cse failed at the start: it takes a program of the dialect sim, and this one is of aux"),
        ("differentiate,assign-layers", "The pass assign-layers failed after differentiate: it takes .* dialect aux"),
        ("differentiate,plan-layout", "The pass plan-layout failed after differentiate: .* unroll-steps removes"),
        ("differentiate,unroll-steps,allocate-slots", "allocate-slots failed after .*, unroll-steps: .* 'layout'"),
    ],
)
def test_a_pass_in_the_wrong_place(passes: str, says: str) -> None:
    program, _ = gpt_like(layers=1)
    with pytest.raises(PassError, match=says):
        run_passes(passes_named(passes), program, Options(max_length=24))


def test_a_pass_that_gives_what_does_not_verify() -> None:
    program, _ = gpt_like(layers=1)
    passes = (*passes_named("differentiate"), Pass("break", "sim", "sim", broken_pass))
    with pytest.raises(PassError, match=r"The pass break failed after differentiate: .*before it is defined"):
        run_passes(passes, program, Options())


def test_an_unknown_pass() -> None:
    with pytest.raises(OptionError, match="The pass 'canonicalize' is unknown; choose among canonicalise, assign-"):
        passes_named("canonicalize")


@pytest.mark.parametrize(
    ("body", "kind", "note"),
    [
        ("%y = aux.activation(%x) {fn=\"sigmoid\"} : tokens<8>", UnsupportedModelError, "In the pass canonicalise, at"),
        ("%y = aux.add(%x, %x) : tokens<8>", UnsupportedModelError, "In the pass assign-layers, after canonicalise."),
    ],
)  # fmt: skip
def test_an_obstacle_keeps_its_sentence_and_notes_the_pass(body: str, kind: type[Exception], note: str) -> None:
    text = f"""aux.program {{width=8, vocab_size=5}}
parameter @embed {{source="embed"}} : 5x8
%x = aux.embedding() {{table="embed"}} : tokens<8>
{body}
%z = aux.linear(%y) {{weight="embed"}} : tokens<5>
return logits = %z
"""
    with pytest.raises(kind, match="This model cannot be compiled") as caught:
        run_passes(PIPELINE, parse_program(text), Options())
    assert note in "".join(caught.value.__notes__)
