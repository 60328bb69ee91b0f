"""The command `tintc`: its options, and how errors leave it.

This module stands beside the package because importing anything of `tintc` registers its classes with transformers,
which takes seconds; `tintc --help`, completion and mistyped options should not. What commands do is in `tintc.cli`.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

OK, FAILED, MISTAKE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
DESCEND = "values,out,ffn,norm-bias"
"""`tintc.lowering.options.DEFAULT_DESCEND`, whose import would take seconds."""

app = typer.Typer(
    name="tintc",
    help="Compile a Hugging Face decoder into a TinT simulator, which fine-tunes it inside one forward pass.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model folder, a .gguf file, or the id of a model on the hub.")
]
Steps = Annotated[int, typer.Option(help="Simulated gradient steps.")]
UpdateLayers = Annotated[int | None, typer.Option(help="Top layers that are updated (default: all).")]
Descend = Annotated[
    str, typer.Option(metavar="<names>", help="Parameter groups that are updated; norm-gain is one more.")
]
Semantics = Annotated[
    Literal["exact", "paper-code"],
    typer.Option(
        metavar="<name>", help="Which definition to follow: exact, or paper-code, the authors' implementation."
    ),
]
HeadWidth = Annotated[int | None, typer.Option(help="Width of a head (default: the least that will do).")]
Heads = Annotated[int | None, typer.Option(help="Heads of an embedding (default: the least that will do).")]
MaxLength = Annotated[int | None, typer.Option(help="Longest text (default: the model's, at most 2048).")]
Reuse = Annotated[
    Literal["none", "layer"], typer.Option(help="Which modules share structural tensors: none, or all layers'.")
]
Executor = Annotated[
    Literal["auto", "fused", "literal"],
    typer.Option(metavar="<name>", help="How it is executed: fused, literal, or auto, fused where that is exact."),
]
Dtype = Literal["float32", "bfloat16", "float64"]
ComputeIn = Annotated[
    Dtype | None,
    typer.Option(metavar="<type>", help="Compute in float32, bfloat16 or float64 (default: the stored type)."),
]


def show_version(wanted: bool) -> None:
    """Print the installed version and stop, where that is asked for."""
    if wanted:
        print(f"tintc {version('tintc')}")
        raise typer.Exit


@app.callback()
def configure(
    context: typer.Context,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no warnings.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Stages and timings as lines on standard error.")] = False,
    _: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=show_version)
    ] = False,
) -> None:
    """Set what is said on standard error besides mistakes."""
    if quiet and verbose:
        raise typer.BadParameter("--quiet and --verbose exclude each other.")
    level = logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING
    context.with_resource(reported(level))


@contextmanager
def reported(level: int) -> Iterator[None]:
    """What `tintc` logs, from this level on, as lines on standard error."""
    logger, handler = logging.getLogger("tintc"), Lines(level)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


class Lines(logging.Handler):
    """Warnings as such; stages with the seconds since the command began."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.start = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        shown = "warning: " if record.levelno >= logging.WARNING else f"{time.monotonic() - self.start:7.2f} s  "
        print(f"{shown}{record.getMessage()}", file=sys.stderr)


@app.command("compile")
def compile_(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    steps: Steps = 1,
    update_layers: UpdateLayers = None,
    lr: Annotated[
        float,
        typer.Option(
            help="Learning rate. The gradient is a sum over train tokens, not a mean: the step grows with their "
            "number, so longer texts want a smaller rate."
        ),
    ] = 1e-4,
    loss: Annotated[Literal["ce", "quad", "mse"], typer.Option(help="Loss on the train tokens.")] = "ce",
    descend: Descend = DESCEND,
    semantics: Semantics = "exact",
    stack: Annotated[int | None, typer.Option(help="Weight rows in one prefix (default: the cheapest).")] = None,
    shards: Annotated[int | None, typer.Option(help="Parts of a weight row (default: the cheapest).")] = None,
    head_width: HeadWidth = None,
    heads: Heads = None,
    max_length: MaxLength = None,
    fd_step: Annotated[float | None, typer.Option(help="Step of the finite differences (default: 0.001).")] = None,
    difference: Annotated[
        Literal["fixed", "token"] | None,
        typer.Option(
            metavar="<name>",
            help="How it is chosen: fixed, one; token, one per token (default: token; with paper-code: fixed).",
        ),
    ] = None,
    reuse: Reuse = "layer",
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            metavar="<type>",
            help="Type that is stored and computed in: float32, bfloat16, which halves the folder and rounds the "
            "update, or float64 (default: float32, or float64 where the model is).",
        ),
    ] = None,
    linear_attention: Annotated[
        Literal["linear", "softmax"], typer.Option(help="Heads of the linear modules; softmax runs literally only.")
    ] = "linear",
    calibration_text: Annotated[
        Path | None, typer.Option(help="A UTF-8 file to calibrate softmax heads on (default: a built-in one).")
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest weight file, such as 500MB.")] = "5GB",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing simulator, in one step.")] = False,
    json: Json = False,
) -> None:
    """Compile MODEL into a simulator and write it to a folder."""
    from tintc.cli.compile import compile_model

    options = {
        "n_steps": steps,
        "n_update_layers": update_layers,
        "inner_lr": lr,
        "loss": loss,
        "descend": descend,
        "semantics": semantics,
        "stack": stack,
        "shards": shards,
        "head_width": head_width,
        "heads": heads,
        "max_length": max_length,
        "fd_step": fd_step,
        "fd_scheme": difference,
        "reuse": reuse,
        "dtype": dtype,
        "linear_attention": linear_attention,
    }
    compile_model(model, output, options, calibration_text, max_shard_size, force, json)


@app.command()
def plan(
    model: Model,
    steps: Steps = 1,
    update_layers: UpdateLayers = None,
    descend: Descend = DESCEND,
    semantics: Semantics = "exact",
    stack: Annotated[int | None, typer.Option(help="Weight rows in one prefix (default: any).")] = None,
    shards: Annotated[int | None, typer.Option(help="Parts of a weight row (default: any).")] = None,
    head_width: HeadWidth = None,
    heads: Heads = None,
    max_length: MaxLength = None,
    reuse: Reuse = "layer",
    png: Annotated[Path | None, typer.Option(help="Also draw the trade-off into this file.")] = None,
    every: Annotated[bool, typer.Option("--all", help="List layouts that others beat in everything too.")] = False,
    json: Json = False,
) -> None:
    """Show the layouts a MODEL's simulator could have, what each costs, and the one that compile takes."""
    from tintc.cli.plan import plan_model

    options = {
        "n_steps": steps,
        "n_update_layers": update_layers,
        "descend": descend,
        "semantics": semantics,
        "stack": stack,
        "shards": shards,
        "head_width": head_width,
        "heads": heads,
        "max_length": max_length,
        "reuse": reuse,
    }
    plan_model(model, options, png, every, json)


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(metavar="OUT|MODEL", help="A compiled simulator, or a model to look into.")],
    ir: Annotated[Literal["aux", "sim"] | None, typer.Option(help="Print this program.")] = None,
    params: Annotated[bool, typer.Option("--params", help="Count the parameters.")] = False,
    paper: Annotated[
        bool, typer.Option("--paper", help="Count them, beside the paper's totals for OPT (shown for OPT anyway).")
    ] = False,
    roles: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Show what the heads of these modules or parameters do.")
    ] = None,
    json: Json = False,
) -> None:
    """Show a simulator's options and sizes, its program or its parameter counts; of a MODEL, what it would become."""
    from tintc.cli.inspect import inspect_path

    inspect_path(path, ir, params, paper, roles, json)


@app.command()
def run(
    path: Annotated[str, typer.Argument(metavar="OUT", help="A compiled simulator.")],
    text: Annotated[str | None, typer.Option(help="The text to train on and to score.")] = None,
    file: Annotated[Path | None, typer.Option(help="A UTF-8 file with the text; - is standard input.")] = None,
    train_fraction: Annotated[
        float | None, typer.Option(help="Share of each block that is trained on (default: the simulator's).")
    ] = None,
    block_size: Annotated[
        int | None, typer.Option(help="Tokens in a block, its special tokens included (default: as many as fit).")
    ] = None,
    max_blocks: Annotated[int | None, typer.Option(help="Most blocks to run (default: all).")] = None,
    lr: Annotated[
        str | None,
        typer.Option(
            help="Learning rate, or several to compare: 1e-5,1e-4 (default: the stored one). Gradients are sums over "
            "train tokens, so the step grows with their number."
        ),
    ] = None,
    no_bos: Annotated[
        bool,
        typer.Option(
            "--no-bos", help="Leave out the special tokens, such as BOS, with which the tokenizer begins every block."
        ),
    ] = False,
    partial: Annotated[bool, typer.Option("--partial", help="Score a shorter last block too.")] = False,
    split_steps: Annotated[bool, typer.Option("--split-steps", help="Train each step on a part of its own.")] = False,
    executor: Executor = "auto",
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where it is executed.")] = "cpu",
    dtype: ComputeIn = None,
    json: Json = False,
) -> None:
    """Train on the first part of every block of a text, and score the rest before and after.

    Every block begins as the tokenizer begins a text: with its BOS token, if it has one.
    """
    from tintc.cli.run import learning_rates, run_text

    options = {
        "train_fraction": train_fraction,
        "block_size": block_size,
        "max_blocks": max_blocks,
        "split_steps": split_steps,
        "bos": not no_bos,
        "partial": partial,
    } | learning_rates(lr)
    run_text(path, text, file, options, executor, device, dtype, json)


@app.command(
    "lm-eval", context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def lm_eval(context: typer.Context) -> None:
    """Hand over to lm-evaluation-harness, to which simulators are the model tint (--model_args pretrained=OUT)."""
    from tintc.cli.lm_eval import run_harness

    run_harness(context.args)


@app.command()
def generate(
    path: Annotated[str, typer.Argument(metavar="OUT", help="A compiled simulator.")],
    text: Annotated[str | None, typer.Option(help="The prompt, whose first part is trained on.")] = None,
    file: Annotated[Path | None, typer.Option(help="A UTF-8 file with the prompt; - is standard input.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put the prompt as a user's message, by the tokenizer's chat template.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens to write.")] = 64,
    temperature: Annotated[float | None, typer.Option(help="Sample, at this temperature (default: greedy).")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample among this many of the likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the likeliest with this probability.")] = None,
    beams: Annotated[int, typer.Option(help="Beams; more than one is written at the end, not as it comes.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate (default: the stored one).")] = None,
    train_fraction: Annotated[
        float | None, typer.Option(help="Share of the prompt that is trained on (default: the simulator's).")
    ] = None,
    state: Annotated[Path | None, typer.Option(help="Go on with the weights saved in this file.")] = None,
    save_state: Annotated[Path | None, typer.Option(help="Save the adapted weights to this file.")] = None,
    executor: Executor = "auto",
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where it is executed.")] = "cpu",
    dtype: ComputeIn = None,
    json: Json = False,
) -> None:
    """Adapt to a prompt once, and write on with the updated weights."""
    from tintc.cli.generate import generate_text

    options = {
        "chat": chat,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "beams": beams,
        "seed": seed,
        "lr": lr,
        "train_fraction": train_fraction,
        "state": state,
        "save_state": save_state,
    }
    generate_text(path, text, file, options, executor, device, dtype, json)


@app.command()
def verify(
    path: Annotated[str, typer.Argument(metavar="OUT", help="A compiled simulator.")],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model it was compiled from.")],
    text: Annotated[
        Path | None,
        typer.Option(help="A UTF-8 file with the probe text; - is standard input (default: a built-in one)."),
    ] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of it that are used (default: 64, or what fits).")] = None,
    train_fraction: Annotated[
        float | None, typer.Option(help="Share of them that is trained on (default: the simulator's).")
    ] = None,
    executor: Executor = "auto",
    dtype: ComputeIn = None,
    every: Annotated[bool, typer.Option("--all", help="Show every parameter, not only those farthest off.")] = False,
    json: Json = False,
) -> None:
    """Compare a simulator with explicit fine-tuning of MODEL; exit code 1 if it does not do what its options say."""
    from tintc.cli.verify import verify_artefact

    if not verify_artefact(path, model, text, length, train_fraction, executor, dtype, every, json):
        raise typer.Exit(FAILED)


@app.command()
def explain(model: Model, json: Json = False) -> None:
    """Show which rule took each operation of MODEL's graph, and where each of its tensors went."""
    from tintc.cli.explain import explain_model

    explain_model(model, json)


@app.command()
def families(
    model_type: Annotated[
        str | None, typer.Argument(metavar="TYPE", help="Only this type (model_type in config.json), in full.")
    ] = None,
    json: Json = False,
) -> None:
    """Show which decoder types compile, from what they are made, and why others are refused."""
    from tintc.cli.families import show_families

    show_families(model_type, json)


def main() -> NoReturn:
    """The console script. A user's mistake is one sentence and exit code 2, a simulator that `verify` finds at fault
    exit code 1; anything else keeps its traceback."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        app(prog_name="tintc", standalone_mode=True)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        errors = sys.modules.get("tintc.errors")
        if errors is None or not isinstance(error, errors.TintcError):
            raise
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(MISTAKE)
    sys.exit(OK)


if __name__ == "__main__":
    main()
