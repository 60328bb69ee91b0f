"""One process of `experts.py`: a fused run whose tokens choose among the first few experts, and what it took as JSON.

    python benchmarks/experts_worker.py COMPILED USED ROUNDS

The routers' rows of the experts that are used come in pairs, w and -w, so that half of their logits are positive; the
others' rows are zero, so that no token chooses these. chosen: how many experts of a layer were chosen, at most.

seconds: processor seconds of a run, the median; peak: bytes of resident memory at most, beyond those of the loaded
model, in these runs and in `sim.adapt`, whose state is kept.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import psutil
import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from experts import text

import tintc
from tintc.ir import simulator as sim_ops
from tintc.runtime.execution.available import peak_rss_bytes
from tintc.runtime.model.causal_lm import TintForCausalLM


def routers(sim: TintForCausalLM) -> list[Tensor]:
    """Weights of the layers whose outputs are routed by."""
    made_by = {result: op for op in sim.program.ops for result in op.results}
    names = set[str]()
    for op in sim.program.ops:
        if isinstance(op, sim_ops.Route):
            weights = made_by[made_by[op.operands[0]].operands[0]]
            assert isinstance(weights, sim_ops.StoredWeights), "no step updates a router"
            names.add(weights.name)
    return [sim.prefix(name).weight for name in sorted(names)]


def confine(sim: TintForCausalLM, used: int) -> None:
    """Have every token choose among the first `used` experts."""
    weights = routers(sim)
    if not weights:
        raise SystemExit("The program has no routers.")
    with torch.no_grad():
        for weight in weights:
            rows = weight.view(-1, weight.shape[-1])  # [experts, D]
            rows[used // 2 : used] = -rows[: used // 2]
            rows[used:] = 0


def chosen(sim: TintForCausalLM, ids: Tensor) -> int:
    """Return the most experts that the tokens of the text choose in one layer."""
    names = {f"pass0.modules.{op.origin}" for op in sim.program.ops if isinstance(op, sim_ops.Route)}
    with sim.capture(*names) as seen, torch.no_grad():
        sim(ids)
    return max(int((routing != 0).any(1).sum()) for routing in seen.values())


def main(folder: str, used: int, rounds: int) -> None:
    ids = text()
    sim = tintc.load(folder, executor="fused")
    confine(sim, used)
    for parameter in sim.parameters():
        parameter.detach().sum()  # its pages are in memory from here on
    base = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # the largest resident size is counted from here on (Linux)
    taken: list[float] = []
    with torch.no_grad():
        for _ in range(rounds + 1):
            start = time.process_time()
            sim(ids)
            taken.append(time.process_time() - start)
        state = sim.adapt(ids)
    peak = peak_rss_bytes() - base
    del state
    print(json.dumps({"seconds": statistics.median(taken[1:]), "peak": peak, "chosen": chosen(sim, ids)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
