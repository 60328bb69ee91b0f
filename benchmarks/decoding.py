"""Seconds per token of decoders with recurrences and short convolutions, by a simulator and by transformers.

    python benchmarks/decoding.py [--types mamba,lfm2] [--rounds 2] [--new 32] [--no-write]

Auxiliaries with random weights in fp32, six layers of width 768, 32,000 words. Both go on from a prompt by
transformers' `generate`, greedily, in one process, in turn, on one thread; a ratio of processor time is taken in every
round. One round that is not counted comes first.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import report
from generate import PROMPT, generated

import tintc

PAGE = Path(__file__).parents[1] / "docs" / "mixers.md"
TARGET = 1.18
"""Most seconds per token, of transformers' own."""
RATE = 1e-6
LAYERS = 6
COMMON: dict[str, Any] = {"vocab_size": 32000, "hidden_size": 768, "tie_word_embeddings": True}
HEADS: dict[str, Any] = {"num_attention_heads": 12, "num_key_value_heads": 4}
FEED: dict[str, Any] = {"intermediate_size": 2048}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2}
DELTA = {"linear_num_key_heads": 6, "linear_num_value_heads": 12}
DELTA_WIDTHS = {"linear_key_head_dim": 64, "linear_value_head_dim": 64}
GATED: dict[str, Any] = HEADS | {"head_dim": 64} | DELTA | DELTA_WIDTHS
SHAPES: dict[str, dict[str, Any]] = {
    "mamba": {},
    "mamba2": {"num_heads": 24, "head_dim": 64, "n_groups": 1},
    "falcon_mamba": {},
    "jamba": HEADS | FEED | EXPERTS | {"attn_layer_period": 3, "attn_layer_offset": 2, "num_experts": 4},
    "nemotron_h": HEADS
    | FEED
    | {"layers_block_type": ["mamba", "mlp", "mamba", "attention", "mlp", "mamba"], "head_dim": 64}
    | {"mamba_num_heads": 24, "n_groups": 2},
    "granitemoehybrid": HEADS
    | {"mamba_n_heads": 24, "mamba_d_state": 128, "intermediate_size": 512}
    | {"layer_types": ["mamba", "mamba", "attention"] * 2},
    "kimi_linear": FEED
    | {"num_attention_heads": 12, "num_key_value_heads": 12, "linear_num_heads": 12, "linear_head_dim": 64}
    | {"num_local_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 512, "kv_lora_rank": 128}
    | {"qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64},
    "qwen3_next": GATED | FEED | EXPERTS | {"moe_intermediate_size": 512, "shared_expert_intermediate_size": 512},
    "qwen3_5_text": GATED | FEED,
    "lfm2": HEADS | FEED | {"layer_types": ["conv", "conv", "full_attention"] * 2},
}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def auxiliary(kind: str) -> Any:
    """Return a decoder of that type."""
    torch.manual_seed(0)
    layers = {"num_hidden_layers": LAYERS}
    if "layers_block_type" in SHAPES[kind]:
        layers = {}
    config = transformers.AutoConfig.for_model(kind, **COMMON, **layers, **TOKENS, **SHAPES[kind])
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def measured(kind: str, rounds: int, new: int) -> list[str]:
    """Return one row of the table."""
    model = auxiliary(kind)
    count = sum(parameter.numel() for parameter in model.parameters())
    sim = tintc.compile(model, inner_lr=RATE, max_length=PROMPT + new)
    prompt = torch.randint(5, 32000, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    taken: dict[str, list[float]] = {"auxiliary": [], "simulator": []}
    for turn in range(rounds + 1):
        for name, other in (("auxiliary", model), ("simulator", sim)):
            clock, _ = generated(other, prompt, time.process_time, max_new_tokens=new, min_new_tokens=new)
            if turn:
                taken[name].append(clock.token)
    ratios = report.ratios(taken["simulator"], taken["auxiliary"])
    times = [f"{1e3 * statistics.median(each):.1f}" for each in taken.values()]
    judged = report.verdict(statistics.median(ratios), TARGET)
    return [kind, f"{count / 1e9:.3f}", *times, report.spread(ratios), judged]


def main(
    types: Annotated[str, typer.Option(help="Which types, by name.")] = ",".join(SHAPES),
    rounds: Annotated[int, typer.Option(min=1, help="Counted rounds of every type.")] = 2,
    new: Annotated[int, typer.Option(min=3, help="Tokens to write.")] = 32,
    write: Annotated[bool, typer.Option(help="Update docs/mixers.md.")] = True,
) -> None:
    """Measure, print and write down."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows = [["type", "1e9 parameters", "auxiliary, ms per token", "simulator", "ratio (min-max)", "target"]]
    for kind in types.split(","):
        rows.append(measured(kind, rounds, new))
        print(" | ".join(rows[-1]), flush=True)
    if write:
        body = [report.setting(), "", *EXPLANATION.format(new=new).splitlines(), "", *report.table(rows)]
        report.write_section("decoding", "Time of a token", body, PAGE)


EXPLANATION = f"""Processor time of one thread. Random weights, {LAYERS} layers of width 768, 32,000 words, a
prompt of {PROMPT} tokens and {{new}} new ones, both by transformers' `generate`; the auxiliary runs transformers' own
PyTorch functions. Ratios are simulator over auxiliary, taken in every round: median (smallest-largest)."""


if __name__ == "__main__":
    typer.run(main)
