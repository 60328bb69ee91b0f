"""`tintc run`, `rates`, `lm-eval` and `generate`: what a simulator does with text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tintc_cli.groups import Blocks, Execution, Json, Out, Placement, Prompt, Reading
from tintc_cli.parameters import spread
from tintc_cli.root import app


@dataclass(frozen=True)
class Chunks:
    """How a stream is cut, and what it begins with and leaves."""

    chunk_size: Annotated[int | None, typer.Option(help="Tokens in a chunk of a stream.")] = None
    context: Annotated[
        int | None,
        typer.Option(help="Most tokens before a chunk that are read with it, and not trained on again (default: 0)."),
    ] = None
    state: Annotated[Path | None, typer.Option(help="Begin a stream with the weights saved in this file.")] = None
    save_state: Annotated[Path | None, typer.Option(help="Save the weights at a stream's end to this file.")] = None


@app.command()
@spread()
def run(
    path: Out,
    reading: Reading,
    blocks: Blocks,
    chunks: Chunks,
    execution: Execution,
    lr: Annotated[
        str | None,
        typer.Option(
            help="Learning rate, or several to compare: 1e-5,1e-4 (default: the stored one). Plain steps grow "
            "with the number of train tokens, over which gradients are summed."
        ),
    ] = None,
    split_steps: Annotated[bool, typer.Option("--split-steps", help="Train each step on a part of its own.")] = False,
    stream: Annotated[
        bool,
        typer.Option("--stream", help="Learn along the whole text, each chunk scored before, in place of blocks."),
    ] = False,
    json: Json = False,
) -> None:
    """Train on the first part of every block of a text, and score the rest before and after.

    Every block begins as the tokenizer begins a text: with its BOS token, if it has one.
    """
    from tintc.cli.run import learning_rates, run_text
    from tintc.cli.run_stream import check_stream_options, stream_text

    options = blocks.options() | {"split_steps": split_steps} | learning_rates(lr)
    check_stream_options(stream, options | vars(chunks))
    if stream:
        stream_text(path, reading, options | vars(chunks), execution, json)
    else:
        run_text(path, reading, options, execution, json)


@app.command()
@spread()
def rates(
    path: Out,
    reading: Reading,
    blocks: Blocks,
    placement: Placement,
    lr: Annotated[
        str | None, typer.Option(help="Learning rates to compare: 1e-5,1e-4 (default: three in every decade).")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Also draw loss over rate into this file.")] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Store the best rate in OUT, for all layers and steps.")
    ] = False,
    json: Json = False,
) -> None:
    """Compare learning rates on a text, and find a good one.

    With one step, the first pass and the gradient are computed once for all rates.
    """
    from tintc.cli.rates import show_rates

    show_rates(path, reading, lr, blocks.options(), placement, png, write, json)


@app.command(
    "lm-eval", context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def lm_eval(context: typer.Context) -> None:
    """Hand over to lm-evaluation-harness, to which simulators are the model tint (--model_args pretrained=OUT)."""
    from tintc.cli.lm_eval import run_harness

    run_harness(context.args)


@dataclass(frozen=True)
class Writing:
    """How much is written, how tokens are chosen, and what is learnt meanwhile."""

    chat: Annotated[
        bool, typer.Option("--chat", help="Put the prompt as a user's message, by the tokenizer's chat template.")
    ] = False
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to write.")] = 64
    temperature: Annotated[
        float | None,
        typer.Option(help="Sample, at this temperature (default: greedy, unless --top-k or --top-p says to sample)."),
    ] = None
    top_k: Annotated[int | None, typer.Option(help="Sample among this many of the likeliest tokens.")] = None
    top_p: Annotated[float | None, typer.Option(help="Sample among the likeliest with this probability.")] = None
    beams: Annotated[int, typer.Option(help="Beams; more than one is written at the end, not as it comes.")] = 1
    seed: Annotated[
        int | None, typer.Option(help="Seed of the sampling; without one, every run samples another text.")
    ] = None
    lr: Annotated[float | None, typer.Option(help="Learning rate (default: the stored one).")] = None
    train_fraction: Annotated[
        float | None, typer.Option(help="Share of the prompt that is trained on (default: the simulator's).")
    ] = None
    state: Annotated[Path | None, typer.Option(help="Go on with the weights saved in this file.")] = None
    save_state: Annotated[Path | None, typer.Option(help="Save the adapted weights to this file.")] = None
    learn_every: Annotated[
        int | None,
        typer.Option(help="Learn the prompt, and then what is written, whenever there are so many tokens more."),
    ] = None


@app.command()
@spread()
def generate(path: Out, prompt: Prompt, writing: Writing, execution: Execution, json: Json = False) -> None:
    """Adapt to a prompt once, and write on with the updated weights."""
    from tintc.cli.generate import generate_text

    generate_text(path, prompt, dict(vars(writing)), execution, json)
