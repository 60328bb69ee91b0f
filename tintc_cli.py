"""The command `tintc`: its options, and how errors leave it.

This module stands beside the package because importing anything of `tintc` registers its classes with transformers,
which takes seconds; `tintc --help`, completion and mistyped options should not. What commands do is in `tintc.cli`.
"""

from __future__ import annotations

import logging
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Optional, get_type_hints

import typer

OK, FAILED, MISTAKE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

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
Trusted = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Run Python code that comes with MODEL, for a model with code of its own."
    ),
]
Executor = Annotated[
    Literal["auto", "fused", "literal"],
    typer.Option(metavar="<name>", help="How it is executed: fused, literal, or auto, fused where that is exact."),
]
ComputeIn = Annotated[
    Literal["float32", "bfloat16", "float64"] | None,
    typer.Option(metavar="<type>", help="Compute in float32, bfloat16 or float64 (default: the stored type)."),
]


Chosen = dict[str, Any]
"""Options of a compilation, by name; `with_options` puts the command line's own in their place."""


def options_module() -> Any:
    """Return `tintc.options` without importing the package, which would take seconds."""
    name = "tintc.options"
    if name not in sys.modules:
        spec = spec_from_file_location(name, Path(__file__).parent / "tintc" / "options.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def with_options(wanted: Callable[[Any], bool]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that gives a command the options of a compilation, each as a parameter.

    The command takes them as one dictionary, `options`. wanted: which ones, by what `tintc.options` says about them.
    """
    module = options_module()
    names = [name for name, about in module.ABOUT.items() if wanted(about)]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def called(**values: Any) -> None:
            options = {}
            for name in names:
                options[name] = values.pop(name)
                short = values.pop(short_form(name), None)
                if short is not None:
                    options[name] = short
            command(options=options, **values)

        parameters: list[Parameter] = []
        for one in signature(command, eval_str=True).parameters.values():
            if one.name == "options":
                parameters += [parameter for name in names for parameter in option_parameters(module, name)]
            else:
                parameters.append(one)
        keywords = [one.replace(kind=Parameter.KEYWORD_ONLY) for one in parameters]
        called.__signature__ = signature(command).replace(parameters=keywords)  # pyright: ignore[reportAttributeAccessIssue]
        called.__annotations__ = {one.name: one.annotation for one in keywords}
        return called

    return decorate


def short_form(name: str) -> str:
    """Return the name of the parameter that takes an option by its short form."""
    return f"{name}_in_short"


def option_parameters(module: Any, name: str) -> list[Parameter]:
    """Return the parameters of a command for one option of a compilation: one, and a hidden one for a short form.

    Both in one would make the column of names so wide that help at 80 columns cuts it.
    """
    about = module.ABOUT[name]
    kind = get_type_hints(module.Options)[name]
    default = getattr(module.Options, name)
    metavar = None
    if about.choices:
        kind = Literal[about.choices]
        metavar = "<name>"
    if default is None:
        kind = Optional[kind]  # noqa: UP045, which wants an operator that a Literal made at run time does not have
    text = about.help
    if about.short:
        text += f" Short form: --{about.short}"
    shown = typer.Option(f"--{name.replace('_', '-')}", help=text, metavar=metavar)
    parameters = [Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, shown])]
    if about.short:
        hidden = typer.Option(f"--{about.short}", hidden=True)
        annotation = Annotated[kind | None, hidden]
        parameters.append(Parameter(short_form(name), Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    return parameters


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
    level = logging.WARNING
    if quiet:
        level = logging.ERROR
    if verbose:
        level = logging.INFO
    context.with_resource(reported(level))


@contextmanager
def reported(level: int) -> Iterator[None]:
    """Print what `tintc` logs, from this level on, as lines on standard error."""
    logger = logging.getLogger("tintc")
    handler = Lines(level)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


class Lines(logging.Handler):
    """Print warnings as such, and stages with the seconds since the command began."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.start = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        shown = f"{time.monotonic() - self.start:7.2f} s  "
        if record.levelno >= logging.WARNING:
            shown = "warning: "
        print(f"{shown}{record.getMessage()}", file=sys.stderr)


@app.command("compile")
@with_options(lambda about: True)
def compile_(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    options: Chosen,
    calibration_text: Annotated[
        Path | None, typer.Option(help="A UTF-8 file to calibrate softmax heads on (default: a built-in one).")
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest weight file, such as 500MB.")] = "5GB",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing simulator, in one step.")] = False,
    trust_remote_code: Trusted = False,
    json: Json = False,
) -> None:
    """Compile MODEL into a simulator and write it to a folder."""
    from tintc.cli.compile import compile_model

    compile_model(model, output, options, calibration_text, max_shard_size, force, trust_remote_code, json)


@app.command()
@with_options(lambda about: about.plans)
def plan(
    model: Model,
    options: Chosen,
    png: Annotated[Path | None, typer.Option(help="Also draw the trade-off into this file.")] = None,
    every: Annotated[bool, typer.Option("--all", help="List layouts that others beat in everything too.")] = False,
    trust_remote_code: Trusted = False,
    json: Json = False,
) -> None:
    """Show the layouts a MODEL's simulator could have, what each costs, and the one that compile takes."""
    from tintc.cli.plan import plan_model

    plan_model(model, options, png, every, trust_remote_code, json)


@app.command()
@with_options(lambda about: True)
def opt(
    path: Annotated[str, typer.Argument(metavar="PROGRAM|MODEL", help="A program's text (.tint), or a model.")],
    options: Chosen,
    passes: Annotated[
        str | None,
        typer.Option("--passes", "-p", metavar="<names>", help="Passes, with commas between (default: all)."),
    ] = None,
    print_ir_after: Annotated[
        str | None,
        typer.Option(metavar="<names>", help="Print the program after these passes, or all, on standard error."),
    ] = None,
    time_passes: Annotated[
        bool, typer.Option("--time-passes", help="Print the seconds of each pass on standard error.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write (default: print it).")] = None,
    trust_remote_code: Trusted = False,
    json: Json = False,
) -> None:
    """Run passes of the compiler on a program, and print the program that they give."""
    from tintc.cli.opt import run_opt

    run_opt(path, options, passes, print_ir_after, time_passes, output, trust_remote_code, json)


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
    trust_remote_code: Trusted = False,
    json: Json = False,
) -> None:
    """Show a simulator's options and sizes, its program or its parameter counts; of a MODEL, what it would become."""
    from tintc.cli.inspect import inspect_path

    inspect_path(path, ir, params, paper, roles, trust_remote_code, json)


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
    stream: Annotated[
        bool,
        typer.Option("--stream", help="Learn along the whole text, each chunk scored before, in place of blocks."),
    ] = False,
    chunk_size: Annotated[int | None, typer.Option(help="Tokens in a chunk of a stream.")] = None,
    context: Annotated[
        int | None,
        typer.Option(help="Most tokens before a chunk that are read with it, and not trained on again (default: 0)."),
    ] = None,
    state: Annotated[Path | None, typer.Option(help="Begin a stream with the weights saved in this file.")] = None,
    save_state: Annotated[Path | None, typer.Option(help="Save the weights at a stream's end to this file.")] = None,
    executor: Executor = "auto",
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where it is executed.")] = "cpu",
    dtype: ComputeIn = None,
    json: Json = False,
) -> None:
    """Train on the first part of every block of a text, and score the rest before and after.

    Every block begins as the tokenizer begins a text: with its BOS token, if it has one.
    """
    from tintc.cli.run import learning_rates, run_text
    from tintc.cli.run_stream import check_stream_options, stream_text

    blocks = {
        "train_fraction": train_fraction,
        "block_size": block_size,
        "max_blocks": max_blocks,
        "split_steps": split_steps,
        "partial": partial,
    }
    chunks = {"chunk_size": chunk_size, "context": context, "state": state, "save_state": save_state}
    options = {"bos": not no_bos} | learning_rates(lr)
    check_stream_options(stream, options | blocks | chunks)
    if stream:
        stream_text(path, text, file, options | chunks, executor, device, dtype, json)
    else:
        run_text(path, text, file, options | blocks, executor, device, dtype, json)


@app.command()
def rates(
    path: Annotated[str, typer.Argument(metavar="OUT", help="A compiled simulator.")],
    text: Annotated[str | None, typer.Option(help="The text to train on and to score.")] = None,
    file: Annotated[Path | None, typer.Option(help="A UTF-8 file with the text; - is standard input.")] = None,
    lr: Annotated[
        str | None, typer.Option(help="Learning rates to compare: 1e-5,1e-4 (default: three in every decade).")
    ] = None,
    train_fraction: Annotated[
        float | None, typer.Option(help="Share of each block that is trained on (default: the simulator's).")
    ] = None,
    block_size: Annotated[
        int | None, typer.Option(help="Tokens in a block, its special tokens included (default: as many as fit).")
    ] = None,
    max_blocks: Annotated[int | None, typer.Option(help="Most blocks to run (default: all).")] = None,
    no_bos: Annotated[
        bool,
        typer.Option(
            "--no-bos", help="Leave out the special tokens, such as BOS, with which the tokenizer begins every block."
        ),
    ] = False,
    partial: Annotated[bool, typer.Option("--partial", help="Score a shorter last block too.")] = False,
    png: Annotated[Path | None, typer.Option(help="Also draw loss over rate into this file.")] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Store the best rate in OUT, for all layers and steps.")
    ] = False,
    executor: Executor = "auto",
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where it is executed.")] = "cpu",
    json: Json = False,
) -> None:
    """Compare learning rates on a text, and find a good one.

    With one step, the first pass and the gradient are computed once for all rates.
    """
    from tintc.cli.rates import show_rates

    options = {
        "train_fraction": train_fraction,
        "block_size": block_size,
        "max_blocks": max_blocks,
        "bos": not no_bos,
        "partial": partial,
    }
    show_rates(path, text, file, lr, options, executor, device, png, write, json)


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
    temperature: Annotated[
        float | None,
        typer.Option(help="Sample, at this temperature (default: greedy, unless --top-k or --top-p says to sample)."),
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample among this many of the likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the likeliest with this probability.")] = None,
    beams: Annotated[int, typer.Option(help="Beams; more than one is written at the end, not as it comes.")] = 1,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the sampling; without one, every run samples another text.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate (default: the stored one).")] = None,
    train_fraction: Annotated[
        float | None, typer.Option(help="Share of the prompt that is trained on (default: the simulator's).")
    ] = None,
    state: Annotated[Path | None, typer.Option(help="Go on with the weights saved in this file.")] = None,
    save_state: Annotated[Path | None, typer.Option(help="Save the adapted weights to this file.")] = None,
    learn_every: Annotated[
        int | None,
        typer.Option(help="Learn the prompt, and then what is written, whenever there are so many tokens more."),
    ] = None,
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
        "learn_every": learn_every,
    }
    generate_text(path, text, file, options, executor, device, dtype, json)


@app.command()
def verify(
    path: Annotated[str, typer.Argument(metavar="OUT", help="A compiled simulator.")],
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="The model it was compiled from; not with --files.")
    ] = None,
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
    files: Annotated[
        bool, typer.Option("--files", help="Instead compare every byte of OUT's files with their digests.")
    ] = False,
    trust_remote_code: Trusted = False,
    json: Json = False,
) -> None:
    """Compare a simulator with explicit fine-tuning of MODEL; exit code 1 if it does not do what its options say."""
    from tintc.cli.verify import check_choice, verify_artefact
    from tintc.cli.verify_files import verify_files

    if check_choice(model, files):
        if not verify_files(path, json):
            raise typer.Exit(FAILED)
        return
    assert model is not None
    if not verify_artefact(path, model, text, length, train_fraction, executor, dtype, every, trust_remote_code, json):
        raise typer.Exit(FAILED)


@app.command()
def report(
    path: Annotated[str, typer.Argument(metavar="OUT", help="A compiled simulator.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("report.html"),
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The model it was compiled from: also show how good its gradient is."),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="The text to train on and to read (default: a built-in one).")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="A UTF-8 file with the text; - is standard input.")] = None,
    against: Annotated[
        str | None, typer.Option(metavar="OTHER", help="Another simulator, to compare with on the same text.")
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Also write the page's charts as images into this folder.")] = None,
    trust_remote_code: Trusted = False,
    json: Json = False,
) -> None:
    """Write a page that shows a simulator: its modules, what it learns from a text, and how good its gradient is.

    The page is one file that needs no network. The first 96 tokens of the text are shown.
    """
    from tintc.cli.report import write_report

    write_report(path, output, model, text, file, png, against, trust_remote_code, json)


@app.command()
def explain(model: Model, trust_remote_code: Trusted = False, json: Json = False) -> None:
    """Show which rule took each operation of MODEL's graph, and where each of its tensors went."""
    from tintc.cli.explain import explain_model

    explain_model(model, trust_remote_code, json)


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


evaluation = typer.Typer(help="Repeat the paper's experiments: language modelling and in-context learning.")
app.add_typer(evaluation, name="eval", no_args_is_help=True)
Simulators = Annotated[list[str], typer.Argument(metavar="OUT...", help="Compiled simulators of one model.")]
OfModel = Annotated[
    str | None, typer.Option(metavar="MODEL", help="The model they were compiled from, for explicit tuning.")
]
Grid = Annotated[
    str | None,
    typer.Option(
        metavar="<rates>",
        help="Rates to choose from on other data, with commas between, or grid (default: take the stored rate).",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(help="Folder of data (default: what TINTC_DATA names, or data or shared/data here or above)."),
]
Picture = Annotated[Path | None, typer.Option("--png", help="Also draw the table into this file.")]
Predictions = Annotated[
    Path | None, typer.Option(help="Keep single results in this file, and go on with those that are there.")
]


@evaluation.command()
def ppl(
    paths: Simulators,
    model: OfModel = None,
    dataset: Annotated[
        str, typer.Option(metavar="DATASET|FILE", help="wikitext, a UTF-8 file, or the id of a dataset on the hub.")
    ] = "wikitext",
    train_fraction: Annotated[
        str, typer.Option(metavar="<numbers>", help="Shares of a block that are trained on, with commas between.")
    ] = "0.3,0.5,0.7,0.9",
    rates: Grid = None,
    columns: Annotated[
        str,
        typer.Option(
            metavar="<names>", help="before, explicit, explicit-normalized, tint, stream, with commas between."
        ),
    ] = "before,tint",
    block_size: Annotated[int | None, typer.Option(help="Tokens in a block (default: as many as fit).")] = None,
    max_blocks: Annotated[int | None, typer.Option(help="Most blocks to score (default: all).")] = None,
    validation: Annotated[
        Path | None, typer.Option(help="A UTF-8 file to choose rates on (default: the dataset's own).")
    ] = None,
    validation_blocks: Annotated[int, typer.Option(help="Most blocks to choose rates on.")] = 8,
    data: Data = None,
    predictions: Predictions = None,
    png: Picture = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where it is executed.")] = "cpu",
    dtype: ComputeIn = None,
    trust_remote_code: Trusted = False,
    json: Json = False,
) -> None:
    """Table 1: train on the first part of every block of a text, and score the rest, in several ways."""
    from tintc.cli.eval_ppl import evaluate_perplexity

    options = {
        "train_fraction": train_fraction,
        "rates": rates,
        "columns": columns,
        "block_size": block_size,
        "max_blocks": max_blocks,
        "validation": validation,
        "validation_blocks": validation_blocks,
        "data": data,
        "predictions": predictions,
        "png": png,
        "trust_remote_code": trust_remote_code,
    }
    evaluate_perplexity(paths, model, dataset, options, device, dtype, json)


@evaluation.command()
def icl(
    path: Annotated[str, typer.Argument(metavar="OUT", help="A compiled simulator.")],
    model: OfModel = None,
    task: Annotated[
        str, typer.Option(metavar="<names>", help="sst2, mr, cr, mpqa, subj, agnews, amazon, with commas between.")
    ] = "sst2",
    shots: Annotated[
        str, typer.Option(metavar="<numbers>", help="Demonstrations; 0: train on the input itself.")
    ] = "0,4",
    format: Annotated[
        str, typer.Option(metavar="<names>", help="single: demonstrations by themselves; multi: as one text.")
    ] = "single",
    loss: Annotated[
        str, typer.Option(metavar="<names>", help="label: loss on label words alone; full: on all tokens.")
    ] = "label",
    layers_steps: Annotated[
        str | None,
        typer.Option(metavar="<pairs>", help="Layers that are updated and steps, as 12x1,6x2 (default: OUT's own)."),
    ] = None,
    calibration: Annotated[
        str, typer.Option(metavar="<names>", help="prompt: relative to a query without text; none.")
    ] = "none",
    seeds: Annotated[int, typer.Option(min=1, help="Sets of demonstrations.")] = 3,
    examples: Annotated[int, typer.Option(min=1, help="Test examples, the same for every row.")] = 100,
    rates: Grid = None,
    validation_examples: Annotated[
        int, typer.Option(min=1, help="Training examples that rates are chosen on, for each seed.")
    ] = 32,
    columns: Annotated[
        str,
        typer.Option(metavar="<names>", help="before, icl, explicit, explicit-normalized, tint, with commas between."),
    ] = "before,icl,tint",
    data: Data = None,
    predictions: Predictions = None,
    png: Picture = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where it is executed.")] = "cpu",
    dtype: ComputeIn = None,
    trust_remote_code: Trusted = False,
    json: Json = False,
) -> None:
    """Tables 2, 4 and 5: train on demonstrations or on the input itself, and choose a label word."""
    from tintc.cli.eval_icl import evaluate_classification

    options = {
        "shots": shots,
        "format": format,
        "loss": loss,
        "layers_steps": layers_steps,
        "calibration": calibration,
        "seeds": seeds,
        "examples": examples,
        "rates": rates,
        "validation_examples": validation_examples,
        "columns": columns,
        "data": data,
        "predictions": predictions,
        "png": png,
        "trust_remote_code": trust_remote_code,
    }
    evaluate_classification(path, model, task, options, device, dtype, json)


USAGE_ERROR: Any = typer.BadParameter.__bases__[0]
"""What a mistyped command, option or value raises: Click's class, or the copy of it in newer versions of Typer."""


def misuse(error: Any) -> str:
    """Return what is wrong with a command line, in one sentence, and where to read more."""
    said = " ".join(error.format_message().split()).replace("Value error, ", "").rstrip(".")
    said = said.replace("Input should be", "it must be").partition(", unable to parse")[0]
    said = re.sub(r"\. (Did you mean [^?]*\?)$", r" (\1)", said)
    context = error.ctx
    if context is None:
        return f"{said}."
    return f"{said}; {context.command_path} --help shows what there is."


def main() -> NoReturn:
    """Run the console script.

    A user's mistake is one sentence and exit code 2, a simulator that `verify` finds at fault exit code 1; anything
    else keeps its traceback.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        code = app(prog_name="tintc", standalone_mode=False)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except USAGE_ERROR as error:
        if len(sys.argv) > 1:
            print(f"error: {misuse(error)}", file=sys.stderr)
        sys.exit(MISTAKE)
    except Exception as error:
        errors = sys.modules.get("tintc.errors")
        if errors is None or not isinstance(error, errors.TintcError):
            raise
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(MISTAKE)
    sys.exit(code or OK)


if __name__ == "__main__":
    main()
