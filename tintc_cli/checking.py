"""`tintc verify`, `report`, `explain` and `families`: whether a simulator is right, and what it is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tintc_cli.groups import ComputeIn, Executor, Json, Model, Out, Sample, Trusted
from tintc_cli.leaving import FAILED
from tintc_cli.parameters import spread
from tintc_cli.root import app


@app.command()
def verify(
    path: Out,
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
@spread()
def report(
    path: Out,
    sample: Sample,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("report.html"),
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The model it was compiled from: also show how good its gradient is."),
    ] = None,
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

    write_report(path, output, model, sample, png, against, trust_remote_code, json)


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
