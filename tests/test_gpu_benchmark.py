"""What is measured on a GPU runs on a CPU in tiny sizes, so that the minutes on a GPU are not lost to a mistake."""

from __future__ import annotations

import json
import os
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import models, parts, section
from benchmarks.gpu import setup as setup_of_it
from benchmarks.gpu.setup import Setup, read_figures
from benchmarks.peer import Peer
from benchmarks.precision import RoundedProducts
from tintc.ir.simulator.kernels.measured import FILE

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
STUB = """#!/bin/sh
echo "$*" >> "$CALLS"
case "$*" in *kernels*) exit 3;; esac
"""


def test_every_part_leaves_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward pass, an update and its peers of one tiny shape; the section has a table of each part."""
    monkeypatch.setattr(setup_of_it, "make", cache(setup_of_it.make))
    setup = Setup(tmp_path, torch.device("cpu"), tiny=True, seconds=600)
    monkeypatch.setattr(Setup, "median", lambda self, run, rounds=1: (run(), 1e-3)[1])
    parts.prepare(setup)
    parts.ceilings(setup)
    parts.table(setup, "opt-125m")
    parts.lora(setup, "opt-125m", compiled=False)
    parts.kernels(setup, "opt-125m")
    parts.pairs(setup, "opt-125m")
    parts.twins(setup, "opt-125m")
    parts.graphs(setup, "opt-125m")
    parts.decode(setup, "opt-125m")
    section.write(setup)
    text = (tmp_path / section.SECTION).read_text(encoding="utf-8")
    assert {line["part"] for line in read_figures(tmp_path)} == set(section.PARTS) and "Not measured" not in text
    for head in (
        section.TABLE,
        section.LORA,
        section.KERNELS,
        section.ALONE,
        section.TWINS,
        section.GRAPHS,
        section.DECODE,
    ):
        assert "| " + " | ".join(head.split("|")) + " |" in text
    assert not any("refused" in line or "failed" in line for line in read_figures(tmp_path)) and not setup.failed
    cases = json.loads((tmp_path / FILE.name).read_text(encoding="utf-8"))["cases"]
    assert {case["kernel"] for case in cases} <= {
        "loss_gradient",
        "grouped_product",
    }  # of libraries, which run on a CPU


def test_a_section_of_what_there_is(tmp_path: Path) -> None:
    setup = Setup(tmp_path, torch.device("cpu"), tiny=True, seconds=600)
    given = {"model": "opt-125m", "dtype": "torch.bfloat16", "batch": 64}
    setup.note("table", **given, length=2048, refused="It does not fit.")
    setup.note("table", **given, length=512, fused=1.0, forward=0.2, explicit=8.0, peak=None, products=5)
    lines = section.section(read_figures(tmp_path), tmp_path, plots=False)
    assert "Not measured in this run: ceilings, lora, kernels, pairs, twins, graphs, decode." in lines
    cells = next(line for line in lines if "| 512 |" in line)
    assert "5.00 **fail** (<= 4) | 0.12 pass (<= 0.2)" in cells
    assert any("It does not fit." in line for line in lines)


def test_a_part_that_fails_costs_the_others_nothing(tmp_path: Path) -> None:
    """And all of them together have less than eight minutes."""
    stub = tmp_path / "python"
    stub.write_text(STUB, encoding="utf-8")
    stub.chmod(0o755)
    given = {**os.environ, "PYTHON": str(stub), "OUT": str(tmp_path / "out"), "CALLS": str(tmp_path / "calls")}
    done = subprocess.run([SCRIPT, "--tiny"], env=given, capture_output=True, text=True, check=False)
    calls = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    assert done.returncode == 1 and "failed: kernels opt-125m (3)" in done.stdout, done.stderr
    asked = [call.split()[2] for call in calls if "benchmarks.gpu" in call]
    assert asked[-1] == "report" and len(asked) == 14 and "prepare" in asked  # beside the tests
    limits = re.findall(r"^part (\d+)|timeout -k 5 (\d+) .*pytest", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(limits) == len(asked) and sum(int(a or b) for a, b in limits) < 480


def test_adapters_learn_as_autograd_says(tmp_path: Path) -> None:
    """The batched peer's logits move along each text's own loss: the loss of its train tokens falls."""
    from benchmarks.gpu.lora_peer import LoraPeer

    shape = models.make("tiny", torch.device("cpu"), torch.float32, tmp_path)
    ids = Setup(Path(), torch.device("cpu"), True, 60).texts(2, 12, 61)
    model = shape.auxiliary()
    before = Peer(model, shape.sim.program, 0.0).run_batch(ids, 12)
    after = LoraPeer(model, shape.sim.program, 2, lr=1e-3).run(ids, 12)

    def losses(logits: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").sum(1)

    assert bool((losses(after) < losses(before)).all())


def test_products_of_rounded_factors() -> None:
    """TF32 keeps 10 bits of mantissa, rounded to the nearest, of both factors of a product and of nothing else."""
    x = torch.tensor([[1 + 2**-10, 1 + 2**-11 + 2**-20, 1 + 2**-12, -3.0]])
    with RoundedProducts(10):
        assert (x @ torch.eye(4)).tolist() == [[1 + 2**-10, 1 + 2**-10, 1.0, -3.0]]
        assert torch.equal(torch.addmm(x, torch.zeros(1, 1), torch.zeros(1, 4)), x) and torch.equal(x * 1, x)
        assert torch.equal(x.double() @ torch.eye(4).double(), x.double())
    with RoundedProducts(7):
        assert (x @ torch.eye(4)).tolist() == [[1.0, 1.0, 1.0, -3.0]]
