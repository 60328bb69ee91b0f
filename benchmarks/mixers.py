"""A decoder of delta rules, convolutions and attention: fused simulation against explicit fine-tuning.

    python benchmarks/mixers.py [--rounds 5] [--threads 2] [--batches 1,8] [--small] [--compiled] [--processor]
        [--copied] [--no-write]

The auxiliary has the shape of a qwen3_5_text of about 0.5e9 parameters with random weights, in fp32. The peer is
`peer.py` with transformers' own functions for tokens to be mixed by, eager and, if asked for, under torch.compile
(which leaves the delta rule's loops eager), with weights swapped and, if asked for, also copied back, which takes 2 GB
more: the fastest on one text counts, for batches too, which it takes text by text. All run in one process, in turn, on
the same texts; a ratio is taken in every round. What a token costs while decoding: `decoding.py`.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from torch import Tensor
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig
from transformers.models.qwen3_5 import modeling_qwen3_5

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import report
from peer import Peer, update_error

import tintc
from tintc.runtime.model.causal_lm import TintForCausalLM

LENGTH, TRAIN, RATE = 256, 128, 1e-5
TARGET = 0.85


def shape(small: bool) -> Qwen3_5TextConfig:
    """About 0.5e9 parameters: 24 layers, of which every fourth is attention."""
    width = 256 if small else 1024
    return Qwen3_5TextConfig(
        vocab_size=32000,
        hidden_size=width,
        intermediate_size=width * 7 // 2,
        num_hidden_layers=4 if small else 24,
        num_attention_heads=width // 128,
        num_key_value_heads=2,
        head_dim=width // 4,
        linear_num_key_heads=width // 64,
        linear_num_value_heads=width // 64,
        tie_word_embeddings=True,
    )


def peers(
    model: Qwen3_5ForCausalLM, sim: TintForCausalLM, ids: Tensor, compiled: bool, copied: bool
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Explicit fine-tuning in every way, by name."""
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    eager_rule: Any = modeling_qwen3_5.torch_chunk_gated_delta_rule
    ways = {"eager": False} | ({"compiled": True} if compiled else {})
    for way, compile_it in ways.items():
        call = None
        for swap in (True, False) if copied else (True,):
            peer = Peer(model, sim.program, RATE, swap=swap).detach_scores()
            if call is not None:
                peer.call = call
            elif compile_it:
                # The loop over a chunk's rows, unrolled in every layer, was not compiled after 15 minutes.
                modeling_qwen3_5.torch_chunk_gated_delta_rule = torch.compiler.disable(eager_rule)
                start = time.perf_counter()
                call = peer.compile().call
                peer.run(ids[:1], TRAIN)
                print(f"compiled the peer in {time.perf_counter() - start:.0f} s", file=sys.stderr)
            found[f"{way}, {'swapped' if swap else 'copied'}"] = lambda ids, peer=peer: peer.run_batch(ids, TRAIN)
    return found


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    small: Annotated[bool, typer.Option(help="A shape of a fiftieth, to try the script.")] = False,
    compiled: Annotated[bool, typer.Option(help="Also run the peer under torch.compile, which takes long.")] = False,
    copied: Annotated[bool, typer.Option(help="Also run peers that copy their weights back.")] = False,
    batches: Annotated[str, typer.Option(help="How many texts at a time.")] = "1,8",
    processor: Annotated[
        bool, typer.Option(help="Processor time, for one thread on a machine that others use.")
    ] = False,
    write: Annotated[bool, typer.Option()] = True,
) -> None:
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    clock = time.process_time if processor else time.perf_counter
    model = Qwen3_5ForCausalLM(shape(small)).eval()
    count = sum(parameter.numel() for parameter in model.parameters())
    counts = [int(count) for count in batches.split(",")]
    ids = torch.randint(5, 32000, (max(counts), LENGTH), generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    sim = tintc.compile(model, inner_lr=RATE, max_length=LENGTH)
    print(f"{count / 1e9:.2f}e9 parameters, compiled in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    lines = compared(sim, ids, peers(model, sim, ids, compiled, copied), counts, rounds, clock)
    print("\n".join(lines))
    if write and not small:
        title = f"Mixers of tokens: {count / 1e9:.2f}e9 parameters, three of four layers a gated delta rule"
        kind = "Processor time." if processor else "Elapsed time."
        report.write_section("mixers", title, [report.setting(), kind, "", *lines])


def compared(
    sim: TintForCausalLM,
    ids: Tensor,
    runs: dict[str, Callable[[Tensor], Tensor]],
    batches: list[int],
    rounds: int,
    clock: Callable[[], float],
) -> list[str]:
    """The table of times, and how far the two are apart."""

    def seconds(run: Callable[[Tensor], Tensor], texts: Tensor) -> float:
        start = clock()
        run(texts)
        return clock() - start

    @torch.no_grad()
    def fused(texts: Tensor) -> Tensor:
        return sim(texts).logits

    with torch.no_grad():
        out = sim(ids[:1], return_before=True)
    logits = {name: run(ids[:1]) for name, run in runs.items()}
    rows = [["texts", "what", "seconds, median", "update's distance from ours"]]
    verdicts: list[str] = []
    best = ""
    for batch in batches:
        chosen = {name: run for name, run in runs.items() if best in ("", name)} | {"fused": fused}
        times: dict[str, list[float]] = {name: [] for name in chosen}
        if batch > 1:
            fused(ids[:batch])
        for _ in range(rounds):
            for name, run in chosen.items():
                times[name].append(seconds(run, ids[:batch]))
                print(f"{batch} texts, {name}: {times[name][-1]:.2f} s", file=sys.stderr)
        best = min(chosen.keys() & runs.keys(), key=lambda name: statistics.median(times[name]))
        for name, taken in times.items():
            distance = "-"
            if name in logits:
                distance = f"{update_error(logits[name], out.logits, out.logits_before):.1e}"
            rows.append([str(batch), name, f"{statistics.median(taken):.2f}", distance])
        ratios = report.ratios(times["fused"], times[best])
        judged = report.verdict(statistics.median(ratios), TARGET)
        verdicts.append(f"{batch} texts: fused / {best}: {report.spread(ratios)}, {judged}")
    return [*report.table(rows), "", *verdicts]


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    typer.run(main)
