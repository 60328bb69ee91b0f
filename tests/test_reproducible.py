"""The same input gives the same bytes; what a row gives depends on its batch and on threads by rounding alone.

Relative to the largest logit: measured in fp32 2e-5 (literal execution) and below 1e-5 (fused), in fp64 below 1e-13.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command import ROOT, contents, finished, forked
from fused_cases import run, token_ids
from programs import build, gpt_like
from tiny_models import relative

import tintc
from tintc import stages
from tintc.options import Options

BOUNDS = {torch.float32: 1e-4, torch.float64: 1e-12}
IDS = token_ids(1, 12, 23)


def everything(model: Path, out: Path) -> None:
    """Write what can be written of a model: a simulator, whole and in shards, a state, an export."""
    sim = tintc.compile(model, inner_lr=0.05, output=out / "sim")
    sim = tintc.load(out / "sim")
    sim.save_pretrained(out / "saved", max_shard_size="8KB")
    state = sim.adapt(IDS)
    state.save(out / "state")
    state.export(out / "export")


def same(first: Path, second: Path) -> None:
    written, again = contents(first), contents(second)
    assert written.keys() == again.keys() and len(written) > 20
    assert not [name for name in written if written[name] != again[name]]


def test_two_processes_write_the_same_bytes(llama_sim: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
        result = finished(forked(lambda folder=folder: everything(llama_sim.parent / "model", folder)))
        assert result.code == 0, result.err
    same(*folders)


@pytest.mark.slow
def test_two_interpreters_write_the_same_bytes(llama_sim: Path, tmp_path: Path) -> None:
    """Sets of strings have another order in each, and one has two threads."""
    code = "import sys, pathlib, test_reproducible as t; t.everything(*map(pathlib.Path, sys.argv[1:]))"
    folders = [tmp_path / name for name in ("first", "second")]
    for number, folder in enumerate(folders, 1):
        folder.mkdir()
        paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
        environment = {"PYTHONHASHSEED": str(number), "OMP_NUM_THREADS": str(number), "PYTHONPATH": paths}
        given = [sys.executable, "-c", code, str(llama_sim.parent / "model"), str(folder)]
        subprocess.run(given, env=os.environ | environment, check=True, capture_output=True)
    same(*folders)


@pytest.mark.parametrize("executor", ["fused", "literal"])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_rows_and_threads(executor: str, dtype: torch.dtype) -> None:
    """A text alone, in a batch, elsewhere in a batch, in parts, and on two threads."""
    program, tensors = gpt_like(layers=1)
    sim = build(stages.lower(program, Options(), 24), tensors, 0.02, dtype)
    ids = token_ids(4, 12, 11)
    alone = run(sim, ids[2:3], executor).logits[0]
    inside = run(sim, ids, executor).logits[2]
    turned = run(sim, ids.roll(1, 0), executor).logits[3]
    parts = run(sim, ids, executor, max_batch=2).logits[2]
    for other in (inside, turned, parts):
        assert relative(other, alone) < BOUNDS[dtype]

    def on_two_threads() -> None:
        torch.set_num_threads(2)
        print(json.dumps(run(sim, ids[2:3], executor).logits[0].tolist()))

    result = finished(forked(on_two_threads))
    assert result.code == 0, result.err
    assert relative(torch.tensor(json.loads(result.out), dtype=dtype), alone) < BOUNDS[dtype]
