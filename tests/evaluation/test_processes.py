"""Processes that share the blocks of a text find what one finds, to the last digit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command import ROOT, STORY, free_port, joins
from hypothesis import given
from hypothesis import strategies as st

from tintc.cli.run import run_text
from tintc.evaluation.processes import Processes
from tintc_cli.groups import Execution, Reading

OPTIONS: dict[str, Any] = {
    "train_fraction": 0.5,
    "block_size": 8,
    "max_blocks": None,
    "inner_lr": None,
    "split_steps": False,
}
SAME = ("perplexity_before", "perplexity_after", "tokens_scored", "blocks", "train_tokens", "executor", "device")


@given(items=st.integers(1, 40), count=st.integers(1, 7))
def test_shares_are_gathered_in_order(items: int, count: int) -> None:
    """Every item is one process's; what they find comes together in the items' order, as `gather_object` gives it to
    each of them."""
    shares = [Processes(index, count).share(items) for index in range(count)]
    assert sorted(item for share in shares for item in share) == [*range(items)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tintc.evaluation.processes.gather_object", lambda _: [[*share] for share in shares])
        for index in range(count):
            assert Processes(index, count).gathered(shares[index]) == [*range(items)]


def _one_of_two(index: int, folder: str, out: str, port: int) -> None:
    """What a launcher starts; standard output goes to a file of the process's own."""
    joins(index, port)
    with open(f"{out}/{index}", "w") as sys.stdout:
        run_text(folder, Reading(STORY), OPTIONS, Execution(), True)


def test_two_processes(llama_sim: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Five blocks on two: the numbers of one, printed by the first."""
    run_text(str(llama_sim), Reading(STORY), OPTIONS, Execution(), True)
    alone = json.loads(capfd.readouterr().out)
    arguments = (str(llama_sim), str(tmp_path), free_port())
    torch.multiprocessing.start_processes(_one_of_two, arguments, nprocs=2, start_method="fork")  # pyright: ignore
    together = json.loads((tmp_path / "0").read_text())
    assert (tmp_path / "1").read_text() == ""
    assert (alone["processes"], together["processes"], alone["blocks"]) == (1, 2, 5)
    assert {name: together[name] for name in SAME} == {name: alone[name] for name in SAME}


@pytest.mark.slow
def test_accelerate_launch(llama_sim: Path) -> None:
    """The launcher itself. On a machine without GPUs its --multi_gpu is what starts several processes."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--multi_gpu"]
    command = ["-m", "tintc_cli", "run", str(llama_sim), "--text", STORY, "--block-size", "8", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    places = ["--main_process_port", str(free_port())]
    shown = [
        subprocess.run(start, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
        for start in ([sys.executable, *command], [*launch, *places, *command])
    ]
    alone, together = (json.loads(one.stdout) for one in shown)
    assert together["processes"] == 2
    assert {name: together[name] for name in SAME} == {name: alone[name] for name in SAME}
