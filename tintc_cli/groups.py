"""Arguments and options that several commands share, each written once.

A group is a dataclass: a command takes it as one parameter, and hands it on to what does the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A model folder, a .gguf file, or the id of a model on the hub.")
]
Out = Annotated[str, typer.Argument(metavar="OUT", help="A compiled simulator.")]
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
Device = Annotated[Literal["cpu", "cuda"], typer.Option(help="Where it is executed.")]
ComputeIn = Annotated[
    Literal["float32", "bfloat16", "float64"] | None,
    typer.Option(metavar="<type>", help="Compute in float32, bfloat16 or float64 (default: the stored type)."),
]


@dataclass(frozen=True)
class Reading:
    """Where the text comes from."""

    text: Annotated[str | None, typer.Option(help="The text to train on and to score.")] = None
    file: Annotated[Path | None, typer.Option(help="A UTF-8 file with the text; - is standard input.")] = None


@dataclass(frozen=True)
class Prompt(Reading):
    """Where the prompt comes from."""

    text: Annotated[str | None, typer.Option(help="The prompt, whose first part is trained on.")] = None
    file: Annotated[Path | None, typer.Option(help="A UTF-8 file with the prompt; - is standard input.")] = None


@dataclass(frozen=True)
class Sample(Reading):
    """Where a text comes from that may be left out."""

    text: Annotated[str | None, typer.Option(help="The text to train on and to read (default: a built-in one).")] = None


@dataclass(frozen=True)
class Placement:
    """By which executor a simulator is run, and where."""

    executor: Executor = "auto"
    device: Device = "cpu"


@dataclass(frozen=True)
class Execution(Placement):
    """How a simulator is run."""

    dtype: ComputeIn = None


@dataclass(frozen=True)
class Blocks:
    """How a text is cut into blocks, and which part of them is trained on."""

    train_fraction: Annotated[
        float | None, typer.Option(help="Share of each block that is trained on (default: the simulator's).")
    ] = None
    block_size: Annotated[
        int | None, typer.Option(help="Tokens in a block, its special tokens included (default: as many as fit).")
    ] = None
    max_blocks: Annotated[int | None, typer.Option(help="Most blocks to run (default: all).")] = None
    no_bos: Annotated[
        bool,
        typer.Option(
            "--no-bos", help="Leave out the special tokens, such as BOS, with which the tokenizer begins every block."
        ),
    ] = False
    partial: Annotated[bool, typer.Option("--partial", help="Score a shorter last block too.")] = False

    def options(self) -> dict[str, Any]:
        """Return them as `evaluate_blocks` takes them."""
        values = dict(vars(self))
        values["bos"] = not values.pop("no_bos")
        return values


@dataclass(frozen=True)
class Setup:
    """What every experiment of the paper is told beside its rows and columns."""

    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model they were compiled from, for explicit tuning.")
    ] = None
    rates: Annotated[
        str | None,
        typer.Option(
            metavar="<rates>",
            help="Rates to choose from on other data, with commas between, or grid (default: take the stored rate).",
        ),
    ] = None
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of data (default: what TINTC_DATA names, or data or shared/data here or above)."),
    ] = None
    predictions: Annotated[
        Path | None, typer.Option(help="Keep single results in this file, and go on with those that are there.")
    ] = None
    png: Annotated[Path | None, typer.Option(help="Also draw the table into this file.")] = None
    device: Device = "cpu"
    dtype: ComputeIn = None
    trust_remote_code: Trusted = False
