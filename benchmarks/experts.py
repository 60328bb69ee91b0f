"""A mixture of experts: fused simulation against explicit fine-tuning, and what grows with the experts that are used.

    python benchmarks/experts.py [--rounds 5] [--threads 2] [--small] [--only grown] [--no-write]

The auxiliary has the shape of a qwen3_moe of about 1e9 parameters with random weights, in fp32. The peer is
`peer.py` with transformers' experts by ``grouped_mm``, with weights copied back and with weights swapped: the faster
counts. All run in one process, in turn, on the same texts; a ratio is taken in every round. A second table shows how
time and memory of a simulated run grow with the experts that a text uses, and with those that there are: in processes
of their own, which have all tokens choose among the first few (`experts_worker.py`).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from torch import Tensor
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import report
from peer import Peer, update_error

import tintc
from tintc.runtime.model.causal_lm import TintForCausalLM

LENGTH, TRAIN, RATE = 256, 128, 1e-5
TARGET = 0.85
EXPERTS = 64
USED = {16: (16,), EXPERTS: (16, 32, 64)}
"""By the number of experts of a layer: those that a text chooses among; twice 8 or more."""
IMPLEMENTATIONS = ("grouped_mm",)
"""``batched_mm`` copies an expert's weights for every token that chose it, 10 GB here, and took 13 times as long on the
small shape."""


def config(small: bool, experts: int = EXPERTS) -> Qwen3MoeConfig:
    """About 1e9 parameters with 64 experts in each of 12 layers, of which a token takes 8; small: 0.14e9."""
    width, layers = (512, 6) if small else (1024, 12)
    sizes: dict[str, Any] = {"head_dim": 64}
    return Qwen3MoeConfig(
        vocab_size=32000,
        hidden_size=width,
        num_hidden_layers=layers,
        num_experts=experts,
        intermediate_size=width * 3,
        moe_intermediate_size=width * 3 // 8,
        num_attention_heads=width // 64,
        num_key_value_heads=4,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        tie_word_embeddings=True,
        **sizes,
    )


def random_model(config: Qwen3MoeConfig) -> Qwen3MoeForCausalLM:
    torch.manual_seed(0)
    return Qwen3MoeForCausalLM(config).eval()


def text() -> Tensor:
    return torch.randint(5, 32000, (1, LENGTH), generator=torch.Generator().manual_seed(0))


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peers(model: Qwen3MoeForCausalLM, sim: TintForCausalLM) -> dict[str, Callable[[Tensor], Tensor]]:
    """Explicit fine-tuning by every implementation of the experts, weights copied back or swapped."""

    def run(implementation: str, peer: Peer, ids: Tensor) -> Tensor:
        model.set_experts_implementation(implementation)
        return peer.run(ids, TRAIN)

    found: dict[str, Callable[[Tensor], Tensor]] = {}
    for implementation in IMPLEMENTATIONS:
        for swap in (False, True):
            peer = Peer(model, sim.program, RATE, swap=swap).detach_scores()
            name = f"{implementation}, {'swapped' if swap else 'copied'}"
            found[name] = lambda ids, implementation=implementation, peer=peer: run(implementation, peer, ids)
    return found


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    small: Annotated[bool, typer.Option(help="A shape of a seventh, to try the script.")] = False,
    only: Annotated[str, typer.Option(help="One of the tables: compared or grown.")] = "",
    write: Annotated[bool, typer.Option()] = True,
) -> None:
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    lines: list[str] = []
    if only != "grown":
        lines += compared(small, rounds)
    if only != "compared":
        lines += ["", *grown(small, rounds, threads)]
    print("\n".join(lines))
    if write and not small and not only:
        title = f"Experts: 0.97e9 parameters, {EXPERTS} experts, 8 for each token"
        report.write_section("experts", title, [report.setting(), "", *lines])


def compared(small: bool, rounds: int) -> list[str]:
    """The table of times, and how far the two are apart."""
    model = random_model(config(small))
    ids = text()
    start = time.perf_counter()
    sim = tintc.compile(model, inner_lr=RATE, max_length=LENGTH)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count / 1e9:.2f}e9 parameters, compiled in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    others = peers(model, sim)

    def fused() -> Tensor:
        with torch.no_grad():
            return sim(ids).logits

    with torch.no_grad():
        before = model(ids, use_cache=False).logits
    logits = {name: run(ids) for name, run in others.items()}
    ours = fused()
    times: dict[str, list[float]] = {name: [] for name in (*others, "fused")}
    for _ in range(rounds):
        for name, run in others.items():
            times[name].append(seconds(lambda run=run: run(ids)))
        times["fused"].append(seconds(fused))
    best = min(others, key=lambda name: statistics.median(times[name]))
    ratios = [mine / theirs for mine, theirs in zip(times["fused"], times[best], strict=True)]
    rows = [["what", "seconds, median", "update's distance from ours"]]
    for name in times:
        distance = "-"
        if name in logits:
            distance = f"{update_error(logits[name], ours, before):.1e}"
        rows.append([name, f"{statistics.median(times[name]):.2f}", distance])
    ratio = statistics.median(ratios)
    verdict = f"fused / {best}: {ratio:.2f} ({min(ratios):.2f}-{max(ratios):.2f}), {TARGET} asked"
    return [*report.table(rows), "", verdict]


def grown(small: bool, rounds: int, threads: int) -> list[str]:
    """The table of time and memory by the experts that there are, and by those that the text can choose among."""
    rows = [["experts", "in use", "processor seconds, median", "memory beyond the model, GB", "weights in use, GB"]]
    for experts, all_used in USED.items():
        with tempfile.TemporaryDirectory() as work:
            built = config(small, experts)
            folder = f"{work}/sim"
            tintc.compile(random_model(built), inner_lr=RATE, max_length=LENGTH, output=folder)
            for used in all_used:
                taken = worker(folder, used, rounds, threads)
                if taken["chosen"] > used:
                    raise SystemExit(f"Tokens chose {taken['chosen']} experts of a layer, not {used} at most.")
                weights = 3 * built.hidden_size * built.moe_intermediate_size * 4 * built.num_hidden_layers
                in_use = weights * taken["chosen"] / 1e9
                cells = [f"{taken['seconds']:.2f}", f"{taken['peak'] / 1e9:.2f}", f"{in_use:.2f}"]
                rows.append([str(experts), str(taken["chosen"]), *cells])
    return report.table(rows)


def worker(folder: str, used: int, rounds: int, threads: int) -> dict[str, Any]:
    """What `experts_worker.py` measures in a fresh process."""
    command = [sys.executable, str(report.HERE / "experts_worker.py"), folder, str(used), str(rounds)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    typer.run(main)
