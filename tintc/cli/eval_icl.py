"""`tintc eval icl`."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import tintc
from tintc.cli.console import counted_progress, print_json, print_rows, silence_libraries, stages
from tintc.cli.eval_plot import draw_accuracies
from tintc.cli.eval_ppl import chosen_columns, chosen_rates, made_columns
from tintc.cli.pictures import check_plot
from tintc.cli.texts import check_tokenizer
from tintc.errors import OptionError
from tintc.evaluation.experiments.columns import Column, InContext
from tintc.evaluation.experiments.in_context import Experiment, IclRow, Posed, Sizes
from tintc.evaluation.experiments.records import Records
from tintc.evaluation.experiments.tasks import Task, chosen_tasks, examples_of
from tintc.evaluation.experiments.texts import data_folder
from tintc.evaluation.processes import processes
from tintc.options import Options
from tintc.progress import LOGGER
from tintc.runtime.load import load
from tintc.runtime.model.causal_lm import TintForCausalLM
from tintc.runtime.model.finite import without_nan_warning
from tintc_cli.groups import Setup

COLUMNS = ("before", "icl", "explicit", "explicit-normalized", "tint")
CHOICES = {"format": ("single", "multi"), "loss": ("label", "full"), "calibration": ("none", "prompt")}


def evaluate_classification(path: str, tasks: str, options: dict[str, Any], setup: Setup, as_json: bool) -> None:
    """Print Tables 2, 4 and 5 for a simulator; `options` are the command's others, by name."""
    silence_libraries()
    model = setup.model
    trusted = setup.trust_remote_code
    wanted = chosen_tasks(tasks)
    shots = whole_numbers(options["shots"], "number of shots")
    chosen = {name: several(options[name], name) for name in CHOICES}
    names = chosen_columns(options["columns"], model, COLUMNS)
    budgets = layers_and_steps(options["layers_steps"])
    if budgets and model is None:
        raise OptionError("Other layers and steps need the model, to compile it again; pass it to --model.")
    rates = chosen_rates(setup.rates)
    if setup.png is not None:
        check_plot(setup.png)
    records = Records(setup.predictions)
    sizes = Sizes(options["examples"], options["validation_examples"], options["seeds"])
    rows: list[IclRow] = []
    with processes(setup.device) as together:
        with stages():
            LOGGER.info("loading")
            sim = load(path, device=together.device or setup.device, dtype=setup.dtype)
            check_tokenizer(path, sim.tokenizer)
            data = data_folder(setup.data)
            read = {task.name: (examples_of(task, "train", data), examples_of(task, "test", data)) for task in wanted}
        for budget in budgets or [None]:
            own = sim
            if budget is not None:
                own = recompiled(sim, str(model), *budget, trusted)
            columns = icl_columns(names, path, own, model, trusted, bool(rates))
            experiments = [
                Experiment(own, columns, posed, *read[posed.task.name], sizes, rates, records, together)
                for posed in posed_rows(wanted, shots, chosen)
            ]
            for experiment in experiments:
                experiment.check()
            for experiment in experiments:
                with counted_progress(experiment.posed.task.name, None) as (progress, task), without_nan_warning():
                    rows.append(experiment.row(lambda count: progress.advance(task, count)))
    if together.main:
        if setup.png is not None:
            draw_accuracies(rows, names, setup.png, _title(rows))
        _print(rows, names, {"output": path, "model": model}, as_json)


def posed_rows(tasks: Sequence[Task], shots: Sequence[int], chosen: dict[str, list[str]]) -> list[Posed]:
    """Return the settings of all rows; without shots there is neither format nor loss."""
    rows: list[Posed] = []
    for task in tasks:
        for count in shots:
            for calibration in chosen["calibration"]:
                if count == 0:
                    rows.append(Posed(task, 0, None, None, calibration))
                    continue
                pairs: Any = [(format, loss) for format in chosen["format"] for loss in chosen["loss"]]
                rows += [Posed(task, count, format, loss, calibration) for format, loss in pairs]
    return rows


def icl_columns(
    names: Sequence[str], path: str, sim: TintForCausalLM, model: str | None, trusted: bool, chosen: bool
) -> list[Column]:
    """Return the columns of these names, in their order. chosen: whether rates are chosen, not stored."""
    others = made_columns([name for name in names if name != "icl"], [path], [sim], model, trusted, chosen)
    by_name: dict[str, Column] = {column.name: column for column in others}
    by_name["icl"] = InContext("icl", sim)
    return [by_name[name] for name in names]


def recompiled(sim: TintForCausalLM, model: str, layers: int, steps: int, trusted: bool) -> TintForCausalLM:
    """Return a simulator as `sim`, but for the layers and steps."""
    config = sim.config
    kept = {one.name: getattr(config, one.name) for one in fields(Options) if hasattr(config, one.name)}
    kept |= {"n_update_layers": layers, "n_steps": steps, "max_length": sim.layout.max_length}
    kept["dtype"] = str(sim.dtype).removeprefix("torch.")
    with stages():
        made = tintc.compile(model, options=Options(**kept), trust_remote_code=trusted)
    made.tokenizer = sim.tokenizer
    return made.to(sim.device).eval()


def several(text: str, name: str) -> list[str]:
    """Return the values of an option in a list with commas; raise `OptionError` for unknown ones."""
    values = [*dict.fromkeys(text.split(","))]
    for value in values:
        if value not in CHOICES[name]:
            raise OptionError(f"The {name} {value!r} is unknown; choose among {', '.join(CHOICES[name])}.")
    return values


def whole_numbers(text: str, noun: str) -> list[int]:
    """Return whole numbers, zero or more, separated by commas."""
    try:
        values = [int(one) for one in text.split(",")]
    except ValueError:
        values = [-1]
    if min(values) < 0:
        raise OptionError(f"The {noun} is {text!r}; pass whole numbers, with commas between, such as 0,4.")
    return [*dict.fromkeys(values)]


def layers_and_steps(text: str | None) -> list[tuple[int, int]]:
    """Return pairs from ``12x1,6x2``; none if nothing is asked for."""
    if text is None:
        return []
    pairs = []
    for one in text.split(","):
        match = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", one.strip())
        if match is None:
            raise OptionError(f"The layers and steps are {one!r}; pass such as 12x1, for 12 layers in one step.")
        pairs.append((int(match[1]), int(match[2])))
    return pairs


def _print(rows: Sequence[IclRow], names: Sequence[str], facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json({"rows": [asdict(row) for row in rows], **facts})
        return
    header = ["task", "shots", "format", "loss", "layers x steps", "calibration", *names]
    shown = []
    for row in rows:
        cells = [_cell(row, name) for name in names]
        budget = f"{row.layers}x{row.steps}"
        shown.append([row.task, row.shots, row.format or "-", row.loss or "-", budget, row.calibration, *cells])
    print_rows(f"{_title(rows)} in %, with its spread over seeds", header, shown)


def _title(rows: Sequence[IclRow]) -> str:
    return f"Accuracy on {rows[0].examples} examples"


def _cell(row: IclRow, name: str) -> str:
    text = f"{100 * row.accuracy[name]:.1f}"
    if len(row.by_seed[name]) > 1:
        text += f" ± {100 * statistics.stdev(row.by_seed[name]):.1f}"
    return text
