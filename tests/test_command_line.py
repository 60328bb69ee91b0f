"""The command around its commands: help that is whole at 80 columns, the version, how much is said; chats; progress."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
import typer
import typer.rich_utils
from command import ROOT as REPOSITORY
from command import STORY, Command, tokenizer
from typer.main import get_command

import tintc
import tintc_cli

TEMPLATE = "{% for m in messages %}the {{ m['content'] }} on{% endfor %}{% if add_generation_prompt %} a{% endif %}"
ROOT: Any = get_command(tintc_cli.app)


def functions_of(app: typer.Typer, before: str = "") -> dict[str, Callable[..., Any]]:
    """What every command calls, by its name with those of the groups before it."""
    functions = {
        before + (one.name or one.callback.__name__): one.callback for one in app.registered_commands if one.callback
    }
    for group in app.registered_groups:
        assert group.typer_instance and isinstance(group.name, str)
        functions |= functions_of(group.typer_instance, f"{before}{group.name} ")
    return functions


FUNCTIONS = functions_of(tintc_cli.app)


def values_of(annotation: Any) -> set[object]:
    """What an option may be, if it is one of a few."""
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    return {value for part in get_args(annotation) for value in values_of(part)}


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "lm-eval"])
def test_help_is_whole_at_80_columns(command: Command, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """No name, value or default is cut or broken."""
    monkeypatch.setattr(typer.rich_utils, "MAX_WIDTH", 80)
    shown = command(*name.split(), "--help")
    assert shown.code == 0 and "…" not in shown.out and max(map(len, shown.out.splitlines())) <= 80
    words = set(re.split(r"[^\w.,/+-]+", shown.out)) | set(re.split(r"[^\w.+-]+", shown.out))
    wanted: set[str] = set()
    for one in signature(FUNCTIONS[name], eval_str=True).parameters.values():
        wanted |= {value for value in values_of(one.annotation) if isinstance(value, str)}
        if isinstance(one.default, str | int | float) and not isinstance(one.default, bool):
            wanted.add(str(one.default))
    described = ROOT
    for word in name.split():
        described = described.commands[word]
    wanted |= {name for one in described.params for name in one.opts if name.startswith("-")}
    assert "--json" in wanted and wanted <= words, wanted - words


def test_version(command: Command) -> None:
    shown = command("--version")
    assert (shown.code, shown.out, shown.err) == (0, f"tintc {tintc.__version__}\n", "")


def test_verbose_says_stages_with_times(command: Command, one_layer: Path, tmp_path: Path) -> None:
    found = command("--verbose", "compile", one_layer, "-o", tmp_path / "sim", "--json")
    lines = found.err.splitlines()
    assert found.json["dtype"] == "float32" and len(lines) > 4
    assert all(re.fullmatch(r" *\d+\.\d\d s  \S.*", line) for line in lines), lines
    assert "loading the model" in lines[0] and lines[-1].endswith("done")
    seconds = [float(line.split()[0]) for line in lines]
    assert seconds == sorted(seconds)


def test_quiet_says_nothing(command: Command, one_layer_sim: Path) -> None:
    """Not even a warning; mistakes are said."""
    bf16 = ("run", one_layer_sim, "--text", STORY, "--block-size", 16, "--dtype", "bfloat16")
    assert command(*bf16).err.startswith("warning: ")
    quiet = command("--quiet", *bf16)
    assert (quiet.code, quiet.err) == (0, "")
    assert command("--quiet", "run", one_layer_sim, "--text", "").err.startswith("error: ")
    both = command("--quiet", "--verbose", "families")
    assert both.code == 2 and "exclude each other" in both.err


def test_python_shows_progress_when_asked(one_layer: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tintc.compile(one_layer)
    assert capfd.readouterr().err == ""
    tintc.compile(one_layer, progress=True)
    found = capfd.readouterr()
    assert found.out == "" and "loading the model" in found.err and found.err.splitlines()[-1].endswith("done")


def test_chat_applies_the_template(command: Command, one_layer: Path, one_layer_sim: Path, tmp_path: Path) -> None:
    refused = command("generate", one_layer_sim, "--text", "cat", "--chat")
    assert refused.code == 2 and "no chat template" in refused.err and len(refused.err.splitlines()) == 1
    chatting = tokenizer()
    chatting.chat_template = TEMPLATE
    model = Path(shutil.copytree(one_layer, tmp_path / "tiny"))
    chatting.save_pretrained(model)
    tintc.compile(model, inner_lr=1e-2, output=tmp_path / "chat")
    made = command("generate", tmp_path / "chat", "--text", "cat sat", "--chat", "--max-new-tokens", 4, "--json")
    ids = torch.tensor([chatting("the cat sat on a")["input_ids"]])
    wanted = tintc.load(tmp_path / "chat").generate(ids, max_new_tokens=4, do_sample=False)[0, 5:]
    assert made.json["prompt_tokens"] == 5 and made.json["ids"] == wanted.tolist()
    shown = command("generate", tmp_path / "chat", "--text", "cat sat", "--chat", "--max-new-tokens", 4)
    assert shown.out.splitlines()[0] == "cat sat" and shown.code == 0


def test_a_simulator_prints_in_ten_lines(one_layer_sim: Path) -> None:
    lines = repr(tintc.load(one_layer_sim)).splitlines()
    assert len(lines) == 10 and lines[0] == "TintForCausalLM("
    text = "\n".join(lines)
    assert all(part in text for part in ("tiny, 1 layers of width 32", "1 step", "0.01, ce", "float32 on cpu"))


def test_tables_explain_themselves(command: Command, one_layer: Path, one_layer_sim: Path) -> None:
    """Every heading of `plan` that is a letter or a count; of `inspect` the terms that it shows."""
    plan = command("plan", one_layer).out
    for term in ("S", "S'", "K", "d_h", "D_sim", "work", "cost", "table", "unrolled", "unique", "text left"):
        assert re.search(rf"^{re.escape(term)}: \w+", plan, re.MULTILINE), term
    summary = command("inspect", one_layer_sim).out
    assert "memory_slots: values" in summary and "sim_seq_len: positions" in summary and "unique:" not in summary
    assert "unique: parameters as stored" in command("inspect", one_layer_sim, "--params").out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run", "sim", "--executor", "quick"), "'--executor': 'quick' is not one of 'auto', 'fused', 'literal'; "),
        (("compile", "model", "-o", "sim", "--loss", "l1"), "'--loss': 'l1' is not one of 'ce', 'quad', 'mse'; "),
        (("run", "sim", "--block-size", "ten"), "'--block-size': it must be a valid integer; tintc run --help"),
        (("run", "sim", "--blocksize", "10"), "--block-size"),
        (("rn", "sim"), "'rn' (Did you mean 'run'?); tintc --help"),
        (("compile",), "Missing argument 'MODEL'; tintc compile --help shows"),
        (("run", "sim", "--max-blocks"), "'--max-blocks' requires an argument."),
        (("--quiet", "--verbose", "run"), "exclude each other"),
    ],
)
def test_mistyped_commands_are_told_in_one_sentence(command: Command, arguments: tuple[str, ...], says: str) -> None:
    """In one line on standard error, without a box."""
    found = command(*arguments)
    assert (found.code, found.out) == (2, "") and says in found.err
    assert found.err.startswith("error: ") and found.err.count("\n") == 1


def test_no_command_shows_the_help(command: Command) -> None:
    found = command()
    assert (found.code, found.err) == (2, "") and found.out.count("Usage: ") == 1


def test_a_config_json_stands_for_its_folder(command: Command, one_layer_sim: Path) -> None:
    assert (
        command("inspect", one_layer_sim / "config.json", "--json").json
        == command("inspect", one_layer_sim, "--json").json
    )
    refused = command("run", one_layer_sim / "config.json", "--text", STORY)
    assert refused.code == 2 and "is a file and not a compiled simulator; pass the folder" in refused.err


def test_the_plan_is_read_where_no_terminal_breaks_lines(command: Command, one_layer: Path) -> None:
    """In a pipe: no line of more than 100 characters, sentences broken between words."""
    found = command("plan", one_layer, "--all").out
    assert max(map(len, found.splitlines())) <= 100 and "\n     " in found
    sentence = " ".join(found.split())
    assert "heads hold weight rows. no layouts" in sentence or "the bias. no layouts" in sentence


def test_help_says_what_sampling_starts_from(command: Command) -> None:
    shown = " ".join(command("generate", "--help").out.replace("\u2502", " ").split())
    assert "Seed of the sampling; without one, every run samples another text." in shown


SAID: dict[str, list[str]] = {
    "plan": ["plan", "{model}"],
    "explain": ["explain", "{model}"],
    "opt": ["opt", "{model}", "--passes", "canonicalise"],
    "inspect": ["inspect", "{sim}"],
    "program": ["inspect", "{sim}", "--ir", "sim"],
    "roles": ["inspect", "{sim}", "--roles", "descent_0.*"],
    "run": ["run", "{sim}", "--file", "{text}", "--block-size", "12"],
    "rates": ["rates", "{sim}", "--file", "{text}", "--block-size", "12", "--lr", "0.01,0.1"],
    "generate": ["generate", "{sim}", "--text", "the cat sat on the mat", "--max-new-tokens", "3"],
    "verify": ["verify", "{sim}", "{model}", "--text", "{text}", "--length", "8"],
    "families": ["families", "llama"],
}
"""Commands that print a result."""


@pytest.mark.parametrize("name", SAID)
def test_results_go_to_standard_output_and_everything_else_to_standard_error(
    command: Command, one_layer: Path, one_layer_sim: Path, tmp_path: Path, name: str
) -> None:
    """What is on standard output does not depend on how much is said beside it."""
    text = tmp_path / "text.txt"
    text.write_text(STORY, encoding="utf-8")
    places = {"model": one_layer, "sim": one_layer_sim, "text": text}
    arguments = [part.format(**places) for part in SAID[name]]
    silent, plain, telling = (command(*before, *arguments) for before in (["--quiet"], [], ["--verbose"]))
    assert (silent.code, silent.err) == (0, "") and silent.out.strip()
    assert [without_seconds(one.out) for one in (plain, telling)] == [without_seconds(silent.out)] * 2
    assert all(re.match(r"(note|hint|warning): ", line) for line in plain.err.splitlines()), plain.err
    said = [line for line in telling.err.splitlines() if not re.match(r" *\d+\.\d\d s  \S", line)]
    assert said == plain.err.splitlines()


def without_seconds(text: str) -> list[str]:
    """The lines of a result but for times and memory, which are another's every time."""
    return [line for line in text.splitlines() if not re.search(r"second|rss|time|took", line)]


COMPLETE = """
import os, sys, tintc_cli
for line in sys.argv[1:]:
    os.environ.update(COMP_WORDS=line, COMP_CWORD=str(len(line.split(" ")) - 1))
    try:
        tintc_cli.main()
    except SystemExit as stopped:
        assert not stopped.code
    print("end")
assert "torch" not in sys.modules
"""
"""What completes lines, one after the other, in a process of its own."""


def test_completion_is_quick_and_knows_options_and_their_values() -> None:
    """A shell asks the command itself, which imports neither torch nor tintc for it; bash, as its script asks."""

    lines = ["tintc com", "tintc compile --opt", "tintc compile --optimizer "]
    done = subprocess.run(
        [sys.executable, "-c", COMPLETE, *lines],
        env={"PYTHONPATH": str(REPOSITORY), "PATH": os.environ["PATH"], "_TINTC_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
        check=True,
    )
    command, option, value = (shown.split() for shown in done.stdout.split("end\n")[:-1])
    assert command == ["compile"]
    assert "--optimizer" in option
    assert {"sgd", "momentum", "normalized"} <= set(value)
