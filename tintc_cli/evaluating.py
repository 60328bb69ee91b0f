"""`tintc eval ppl` and `icl`: the paper's experiments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tintc_cli.groups import Json, Out, Setup
from tintc_cli.parameters import spread
from tintc_cli.root import app

evaluation = typer.Typer(help="Repeat the paper's experiments: language modelling and in-context learning.")
app.add_typer(evaluation, name="eval", no_args_is_help=True)


@dataclass(frozen=True)
class Texts:
    """What is scored, in which columns, and how it is cut."""

    train_fraction: Annotated[
        str, typer.Option(metavar="<numbers>", help="Shares of a block that are trained on, with commas between.")
    ] = "0.3,0.5,0.7,0.9"
    columns: Annotated[
        str,
        typer.Option(
            metavar="<names>", help="before, explicit, explicit-normalized, tint, stream, with commas between."
        ),
    ] = "before,tint"
    block_size: Annotated[int | None, typer.Option(help="Tokens in a block (default: as many as fit).")] = None
    max_blocks: Annotated[int | None, typer.Option(help="Most blocks to score (default: all).")] = None
    validation: Annotated[
        Path | None, typer.Option(help="A UTF-8 file to choose rates on (default: the dataset's own).")
    ] = None
    validation_blocks: Annotated[int, typer.Option(help="Most blocks to choose rates on.")] = 8


@evaluation.command()
@spread()
def ppl(
    paths: Annotated[list[str], typer.Argument(metavar="OUT...", help="Compiled simulators of one model.")],
    texts: Texts,
    setup: Setup,
    dataset: Annotated[
        str, typer.Option(metavar="DATASET|FILE", help="wikitext, a UTF-8 file, or the id of a dataset on the hub.")
    ] = "wikitext",
    json: Json = False,
) -> None:
    """Table 1: train on the first part of every block of a text, and score the rest, in several ways."""
    from tintc.cli.eval_ppl import evaluate_perplexity

    evaluate_perplexity(paths, dataset, dict(vars(texts)), setup, json)


@dataclass(frozen=True)
class Classification:
    """What every row of a classification is made of."""

    shots: Annotated[str, typer.Option(metavar="<numbers>", help="Demonstrations; 0: train on the input itself.")] = (
        "0,4"
    )
    format: Annotated[
        str, typer.Option(metavar="<names>", help="single: demonstrations by themselves; multi: as one text.")
    ] = "single"
    loss: Annotated[
        str, typer.Option(metavar="<names>", help="label: loss on label words alone; full: on all tokens.")
    ] = "label"
    layers_steps: Annotated[
        str | None,
        typer.Option(metavar="<pairs>", help="Layers that are updated and steps, as 12x1,6x2 (default: OUT's own)."),
    ] = None
    calibration: Annotated[
        str, typer.Option(metavar="<names>", help="prompt: relative to a query without text; none.")
    ] = "none"
    seeds: Annotated[int, typer.Option(min=1, help="Sets of demonstrations.")] = 3
    examples: Annotated[int, typer.Option(min=1, help="Test examples, the same for every row.")] = 100
    validation_examples: Annotated[
        int, typer.Option(min=1, help="Training examples that rates are chosen on, for each seed.")
    ] = 32
    columns: Annotated[
        str,
        typer.Option(metavar="<names>", help="before, icl, explicit, explicit-normalized, tint, with commas between."),
    ] = "before,icl,tint"


@evaluation.command()
@spread()
def icl(
    path: Out,
    classification: Classification,
    setup: Setup,
    task: Annotated[
        str, typer.Option(metavar="<names>", help="sst2, mr, cr, mpqa, subj, agnews, amazon, with commas between.")
    ] = "sst2",
    json: Json = False,
) -> None:
    """Tables 2, 4 and 5: train on demonstrations or on the input itself, and choose a label word."""
    from tintc.cli.eval_icl import evaluate_classification

    evaluate_classification(path, task, dict(vars(classification)), setup, json)
