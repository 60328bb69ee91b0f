"""`tintc compile`, `plan`, `opt` and `inspect`: from a model to a simulator, and what is to be seen on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tintc_cli.groups import Json, Model, Trusted
from tintc_cli.parameters import Chosen, spread
from tintc_cli.root import app


@app.command("compile")
@spread(lambda about: True)
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
@spread(lambda about: about.plans)
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
@spread(lambda about: True)
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
