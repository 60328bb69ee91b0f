"""Rows of Tables 2, 4 and 5 of the paper: a task in one setting, over several sets of demonstrations."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tintc.evaluation.experiments.bootstrap import interval
from tintc.evaluation.experiments.classification import Setting, answers, check_lengths, correct
from tintc.evaluation.experiments.columns import Column, stored_rate
from tintc.evaluation.experiments.records import Records
from tintc.evaluation.experiments.tasks import Example, Task, balanced, drawn
from tintc.evaluation.processes import Processes
from tintc.runtime.model.causal_lm import TintForCausalLM

TEST_SEED = 0
"""Of the test examples, which are the same in every row."""
Advance = Callable[[int], None]


@dataclass(frozen=True)
class IclRow:
    """A line of the table: a setting, and the share of examples that every column answers right.

    format, loss: None without demonstrations; layers, steps: that are updated, in so many steps; accuracy: the mean
    over seeds, by_seed: of each; interval: the bootstrap's over examples at 95 %, of all seeds together; rates: those
    that were taken, by seed; right: which examples are answered right, by seed, for comparisons one by one.
    """

    task: str
    shots: int
    format: str | None
    loss: str | None
    layers: int
    steps: int
    calibration: str
    seeds: int
    examples: int
    accuracy: dict[str, float]
    by_seed: dict[str, list[float]]
    interval: dict[str, list[float]]
    rates: dict[str, list[float]]
    right: dict[str, list[list[bool]]]


@dataclass(frozen=True)
class Posed:
    """A task in one setting. format, loss: None without demonstrations; calibration: ``none`` or ``prompt``."""

    task: Task
    shots: int
    format: Literal["single", "multi"] | None
    loss: Literal["label", "full"] | None
    calibration: str


@dataclass(frozen=True)
class Sizes:
    """How many test examples there are, examples to choose rates on, and sets of demonstrations."""

    examples: int
    validation_examples: int
    seeds: int


class Experiment:
    """A simulator's columns on one task, over sets of demonstrations."""

    def __init__(
        self,
        sim: TintForCausalLM,
        columns: Sequence[Column],
        posed: Posed,
        train: Sequence[Example],
        test: Sequence[Example],
        sizes: Sizes,
        rates: Sequence[float],
        records: Records,
        processes: Processes,
    ):
        """Draw the test examples. rates: to choose from; none: the stored one is taken."""
        self.sim = sim
        self.columns = columns
        self.posed = posed
        self.train = train
        self.sizes = sizes
        self.examples = drawn(test, sizes.examples, TEST_SEED)
        self.rates = list(rates) or [stored_rate(sim)]
        self.records = records
        self.processes = processes
        self.seeds = sizes.seeds
        if not posed.shots:
            self.seeds = 1

    def check(self) -> None:
        """Raise `InputError` for a text that is too long, before anything is run."""
        for seed in range(self.seeds):
            setting, validation = self._drawn(seed)
            examples = [*self.examples, *validation]
            check_lengths(self.columns, self.sim.tokenizer, self.sim.layout.max_length, setting, examples)

    def row(self, advance: Advance = lambda count: None) -> IclRow:
        """Return the row; advance is called with the number of examples that were done."""
        right: dict[str, list[list[bool]]] = {column.name: [] for column in self.columns}
        taken: dict[str, list[float]] = {column.name: [] for column in self.columns if column.has_rate}
        for seed in range(self.seeds):
            setting, validation = self._drawn(seed)
            for column in self.columns:
                rate = self.rates[0]
                if column.has_rate:
                    rate = self._best_rate(column, setting, validation, advance)
                    taken[column.name].append(rate)
                scores = self._answers(column, setting, self.examples, [rate], advance)
                right[column.name].append(correct([each[0] for each in scores], self.examples))
        by_seed = {name: [statistics.mean(one) for one in runs] for name, runs in right.items()}
        attributes = self.sim.program.attributes
        return IclRow(
            task=self.posed.task.name,
            shots=self.posed.shots,
            format=self.posed.format,
            loss=self.posed.loss,
            layers=attributes["n_update_layers"],
            steps=attributes["n_steps"],
            calibration=self.posed.calibration,
            seeds=self.seeds,
            examples=len(self.examples),
            accuracy={name: statistics.mean(values) for name, values in by_seed.items()},
            by_seed=by_seed,
            interval={name: _interval(runs) for name, runs in right.items()},
            rates=taken,
            right=right,
        )

    def _drawn(self, seed: int) -> tuple[Setting, list[Example]]:
        """Return the setting of a seed, and other training examples to choose rates on."""
        posed = self.posed
        shown = balanced(self.train, posed.shots, len(posed.task.labels), seed)
        calibrated = posed.calibration == "prompt"
        setting = Setting(posed.task, tuple(shown), posed.format or "single", posed.loss or "full", calibrated)
        others = [example for example in self.train if example not in shown]
        return setting, drawn(others, self.sizes.validation_examples, seed)

    def _answers(
        self, column: Column, setting: Setting, examples: Sequence[Example], rates: Sequence[float], advance: Advance
    ) -> list[list[list[float]]]:
        limit = self.sim.layout.max_length
        tokenizer = self.sim.tokenizer
        return answers(column, tokenizer, limit, setting, examples, rates, self.records, self.processes, advance)

    def _best_rate(self, column: Column, setting: Setting, validation: Sequence[Example], advance: Advance) -> float:
        """Return the rate that answers most of the validation examples right; of equal ones the one by which right
        labels lose least."""
        if len(self.rates) == 1:
            return self.rates[0]
        scores = self._answers(column, setting, validation, self.rates, advance)

        def goodness(index: int) -> tuple[int, float]:
            own = [each[index] for each in scores]
            lost = sum(max(row) - row[one.label] for row, one in zip(own, validation, strict=True))
            if math.isnan(lost):  # the rate ruins the model
                return -1, 0.0
            return sum(correct(own, validation)), -lost

        return self.rates[max(range(len(self.rates)), key=goodness)]


def _interval(runs: Sequence[Sequence[bool]]) -> list[float]:
    """Return the interval of the accuracy if examples are drawn again. runs ``[seeds][examples]``."""
    values = [[statistics.mean(map(float, each))] for each in zip(*runs, strict=True)]
    return interval(values, lambda sums: sums[:, 0] / len(values))
