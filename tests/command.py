"""The command line in a test: run in this process or another, and small model folders for it."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pytest
import tiny_models
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

import tintc
import tintc_cli

WORDS = """
a the cat dog bird sat ran saw on under mat tree and then it was happy sad big small red
""".split()  # noqa: SIM905
STORY = " ".join(WORDS[index % len(WORDS)] for index in range(0, 7 * 40, 7))
"""Forty tokens of the tiny tokenizer."""
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Result:
    """Exit code, standard output and standard error of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on standard output."""
        (line,) = self.out.splitlines()
        return json.loads(line)


Command = Callable[..., Result]


def make_command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """``command("compile", folder, ...)`` runs `tintc` in this process."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def command(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["tintc", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            tintc_cli.main()
        found = capfd.readouterr()
        return Result(int(stopped.value.code or 0), found.out, found.err)

    return command


@dataclass(frozen=True)
class Running:
    """A process forked from this one, and the ends from which its standard output and error are read."""

    pid: int
    stdout: TextIO
    stderr: TextIO

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Return its exit code, or the signal that ended it with a minus."""
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


def forked(action: Callable[[], object]) -> Running:
    """Run that in a process of its own, which has all that is imported here, and leave it with `sys.exit`'s code.

    SIGINT interrupts it, also where this process ignores it (a job in the background of a shell), which a fork
    inherits. After four minutes it is ended.
    """
    pipes = [os.pipe(), os.pipe()]
    pid = os.fork()
    if pid:
        for _, write in pipes:
            os.close(write)
        return Running(pid, *(open(read, encoding="utf-8") for read, _ in pipes))
    code = 1
    try:
        signal.alarm(240)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, (_, write) in enumerate(pipes, 1):
            os.dup2(write, number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.environ.update({"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
        action()
        code = 0
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def process(*arguments: object, before: str = "") -> Running:
    """`tintc` in a process of its own; `before` is Python that runs there first."""

    def action() -> None:
        sys.argv = ["tintc", *map(str, arguments)]
        exec(before, {})
        tintc_cli.main()

    return forked(action)


def finished(running: Running) -> Result:
    with running.stdout as out, running.stderr as err:
        texts = out.read(), err.read()
    return Result(running.wait(), *texts)


def simulator_folder(path: Path) -> Path:
    """A compiled simulator of a tiny Llama, as it is saved."""
    model = tiny_models.llama(n_layers=1, n_heads=2, n_kv_heads=1, head_dim=4, d_ff=12, vocab=23)
    tintc.compile(model_folder(path / "model", model), inner_lr=0.02).save_pretrained(path / "sim")
    return path / "sim"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def joins(index: int, port: int) -> None:
    """This process, just forked, becomes the index-th of two that a launcher has started."""
    places = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in places.items()})
    torch.set_num_threads(1)
    PartialState._reset_state()  # what another test has left: a launcher's processes begin without it


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    vocabulary = {word: index for index, word in enumerate(["[UNK]", *WORDS])}
    base = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    base.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=base, unk_token="[UNK]")


def model_folder(path: Path, model: Any = None, with_tokenizer: bool = True) -> Path:
    """A model folder as transformers writes it."""
    (tiny_models.gpt2() if model is None else model).save_pretrained(path)
    if with_tokenizer:
        tokenizer().save_pretrained(path)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, by name."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
