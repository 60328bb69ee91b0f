"""Classification tasks as texts: templates and label words (``tasks.json``), and the examples of their data."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from tintc.errors import InputError, OptionError
from tintc.evaluation.experiments.texts import from_hub

CLASSIFICATION = "classification"
"""The part of a folder of data that has the tasks, ``<task's folder>/{train,test}.jsonl``."""


@dataclass(frozen=True)
class Task:
    """A task's name, how a text becomes a query, and the word of every label, which follows the query as it is.

    folder: of its data in a folder of data; hub, column: the dataset with it on the hub, and the texts' column there;
    hub_test: the split there whose labels are known.
    """

    name: str
    template: str
    labels: tuple[str, ...]
    folder: str
    hub: str
    column: str
    hub_test: str = "test"

    def query(self, text: str) -> str:
        """Return a text's query."""
        return self.template.format(text=text.strip())


@dataclass(frozen=True)
class Example:
    """A text, and the number of its label."""

    text: str
    label: int


@cache
def known_tasks() -> dict[str, Task]:
    """Return the tasks by name."""
    entries = json.loads((files("tintc.evaluation.experiments") / "tasks.json").read_text(encoding="utf-8"))
    return {name: Task(name, **entry | {"labels": tuple(entry["labels"])}) for name, entry in entries.items()}


def chosen_tasks(names: str) -> list[Task]:
    """Return the tasks of a list with commas; raise `OptionError` for one that is unknown."""
    tasks = known_tasks()
    for name in names.split(","):
        if name not in tasks:
            raise OptionError(f"The task {name!r} is unknown; choose among {', '.join(tasks)}.")
    return [tasks[name] for name in dict.fromkeys(names.split(","))]


def examples_of(task: Task, split: str, data: Path | None) -> list[Example]:
    """Return the examples of a split, ``train`` or ``test``; raise `InputError` if they cannot be read."""
    path = None
    if data is not None:
        path = data / CLASSIFICATION / task.folder / f"{split}.jsonl"
    if path is None or not path.is_file():
        return _from_hub(task, split)
    examples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            example = Example(str(entry["text"]), int(entry["label"]))
            if not 0 <= example.label < len(task.labels):
                raise ValueError
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{path}, line {number}, is no example; each is a JSON object with a text and a label from 0 to "
                f"{len(task.labels) - 1}."
            ) from error
        examples.append(example)
    return examples


def _from_hub(task: Task, split: str) -> list[Example]:
    own = task.hub_test if split == "test" else split
    texts = from_hub((task.hub,), own, task.column)
    labels = [int(label) for label in from_hub((task.hub,), own, "label")]
    if not {*labels} <= {*range(len(task.labels))}:
        raise InputError(
            f"The split {own} of {task.hub} has labels besides 0 to {len(task.labels) - 1}; those of tests are often "
            "withheld. Name a split whose labels are known in tasks.json, or pass a folder of data to --data."
        )
    return [Example(str(text), label) for text, label in zip(texts, labels, strict=True)]


def drawn(examples: Sequence[Example], count: int, seed: int) -> list[Example]:
    """Return `count` of the examples at random, all if there are fewer; the same for the same seed."""
    return random.Random(seed).sample(list(examples), min(count, len(examples)))


def balanced(examples: Sequence[Example], count: int, labels: int, seed: int) -> list[Example]:
    """Return demonstrations, as many of each label as can be, in random order.

    Raises `InputError` if there are too few examples.
    """
    generator = random.Random(seed)
    order = [*range(labels)]
    generator.shuffle(order)
    chosen: list[Example] = []
    for place, label in enumerate(order):
        wanted = count // labels + (place < count % labels)
        own = [example for example in examples if example.label == label]
        if len(own) < wanted:
            raise InputError(f"There are {len(own)} examples of label {label}, and {wanted} are needed; ask for fewer.")
        chosen += generator.sample(own, wanted)
    generator.shuffle(chosen)
    return chosen
