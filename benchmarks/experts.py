"""A mixture of experts: fused simulation against explicit fine-tuning, time per update and memory.

    python benchmarks/experts.py [--rounds 5] [--threads 2] [--small] [--no-write]

The auxiliary has the shape of a qwen3_moe of about 1e9 parameters with random weights, in fp32. The peer is
`peer.py` with transformers' experts by ``grouped_mm``, with weights copied back and with weights swapped: the faster
counts. All run in one process, in turn, on the same texts; a ratio is taken in every
round. A second table shows how time and memory of a simulated run grow with the experts that a text uses: the routers'
weights are changed so that all tokens choose among the first few.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import transformers
import typer
from torch import Tensor
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import report
from peer import Peer

import tintc
from tintc.runtime.model.causal_lm import TintForCausalLM

LENGTH, TRAIN, RATE = 256, 128, 1e-5
TARGET = 0.85
USED = (8, 16, 32, 64)
IMPLEMENTATIONS = ("grouped_mm",)
"""``batched_mm`` copies an expert's weights for every token that chose it, 10 GB here, and took 13 times as long on the
small shape."""


def shape(small: bool) -> Qwen3MoeConfig:
    """About 1e9 parameters: 12 layers of 64 experts, of which a token takes 8."""
    sizes: dict[str, Any] = {"hidden_size": 1024, "num_hidden_layers": 12, "num_experts": 64, "head_dim": 64}
    if small:
        sizes |= {"hidden_size": 256, "num_hidden_layers": 3}
    return Qwen3MoeConfig(
        vocab_size=32000,
        intermediate_size=sizes["hidden_size"] * 3,
        moe_intermediate_size=sizes["hidden_size"] * 3 // 8,
        num_attention_heads=sizes["hidden_size"] // 64,
        num_key_value_heads=4,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        tie_word_embeddings=True,
        **sizes,
    )


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


def update_error(found: Tensor, right: Tensor, before: Tensor) -> float:
    return float((found - right).norm() / (right - before).norm())


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    small: Annotated[bool, typer.Option(help="A shape of a fiftieth, to try the script.")] = False,
    write: Annotated[bool, typer.Option()] = True,
) -> None:
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(shape(small)).eval()
    count = sum(parameter.numel() for parameter in model.parameters())
    ids = torch.randint(5, 32000, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    sim = tintc.compile(model, inner_lr=RATE, max_length=LENGTH)
    print(f"{count / 1e9:.2f}e9 parameters, compiled in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    lines = compared(model, sim, ids, rounds)
    lines += ["", *grown(sim, ids, rounds)]
    print("\n".join(lines))
    if write and not small:
        title = f"Experts: {count / 1e9:.2f}e9 parameters, 64 experts, 8 for each token"
        report.write_section("experts", title, [report.setting(), "", f"`{report.command_line()}`", "", *lines])


def compared(model: Qwen3MoeForCausalLM, sim: TintForCausalLM, ids: Tensor, rounds: int) -> list[str]:
    """The table of times, and how far the two are apart."""
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


def grown(sim: TintForCausalLM, ids: Tensor, rounds: int) -> list[str]:
    """The table of time and memory by the number of experts that the text can choose among."""
    routers = {
        name: parameter.detach().clone()
        for name, parameter in sim.named_parameters()
        if name.endswith("mlp.gate.weight")
    }
    rows = [["experts in use", "seconds, median", "resident memory above the start, GB"]]
    process = psutil.Process()
    for used in USED:
        with torch.no_grad():
            for name, kept in routers.items():
                parameter = sim.get_parameter(name)
                parameter.copy_(kept)
                rows_of = parameter.view(-1, parameter.shape[-1])
                rows_of[used:] = rows_of[: rows_of.shape[0] - used].clone()
                rows_of[used:] -= 10 * rows_of[used:].abs()
        start = process.memory_info().rss
        with torch.no_grad():
            taken = [seconds(lambda: sim(ids)) for _ in range(rounds)]
        rows.append([str(used), f"{statistics.median(taken):.2f}", f"{(process.memory_info().rss - start) / 1e9:.2f}"])
    return report.table(rows)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    typer.run(main)
