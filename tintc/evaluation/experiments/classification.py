"""Tables 2, 4 and 5 of the paper: train on demonstrations, or on the input itself, and choose a label word.

Few-shot: the demonstrations are trained on, each by itself (``single``) or as one text (``multi``), with a loss on the
label words or on all tokens; the query is then read alone, or after them. Zero-shot: the query itself is trained on.
The label whose word is likeliest is the answer; with calibration, relative to what it is after a query without text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from tintc import masks
from tintc.errors import InputError
from tintc.evaluation.experiments.columns import Column, Predictor, Prompt
from tintc.evaluation.experiments.explicit import TrainText
from tintc.evaluation.experiments.records import Records
from tintc.evaluation.experiments.tasks import Example, Task
from tintc.evaluation.processes import Processes
from tintc.ir.functions import at_least_fp32
from tintc.ir.special import opening_of

SEPARATOR = "\n\n"
TOGETHER = 20
"""Queries that share one training on the demonstrations; what an interruption loses."""


@dataclass(frozen=True)
class Setting:
    """How a task is posed. Without demonstrations format and loss have no meaning."""

    task: Task
    demonstrations: tuple[Example, ...]
    format: Literal["single", "multi"]
    loss: Literal["label", "full"]
    calibrated: bool

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Return the demonstrations as queries and label words."""
        return [(self.task.query(one.text), self.task.labels[one.label]) for one in self.demonstrations]

    @property
    def context(self) -> str:
        """Return what stands before a query where it is read after the demonstrations."""
        return "".join(f"{query}{label}{SEPARATOR}" for query, label in self.pairs)


@dataclass(frozen=True)
class Question:
    """A query with each label behind it. common ``[n]``: the tokens that all share; rests: those that follow, by
    label."""

    common: Tensor
    rests: tuple[Tensor, ...]

    @property
    def reads(self) -> int:
        """Return how many tokens are read for its answer."""
        if all(len(rest) == 1 for rest in self.rests):
            return len(self.common)
        return sum(len(self.common) + len(rest) for rest in self.rests)

    def log_probabilities(self, predict: Predictor) -> list[float]:
        """Return the log-probability of every label, after the query."""
        if all(len(rest) == 1 for rest in self.rests):
            scores = at_least_fp32(predict(self.common, 1)[0]).log_softmax(-1)
            return [float(scores[rest[0]]) for rest in self.rests]
        values = []
        for rest in self.rests:
            logits = predict(torch.cat([self.common, rest]), len(rest) + 1)[:-1]
            values.append(float(at_least_fp32(logits).log_softmax(-1).gather(1, rest[:, None]).sum()))
        return values


def question(tokenizer: Any, text: str, labels: Sequence[str], limit: int) -> Question:
    """Return a text with each label behind it, as tokens; raise `InputError` if that is longer than `limit`."""
    opening = torch.tensor(opening_of(tokenizer), dtype=torch.long)
    rows = [tokenizer(text + label, add_special_tokens=False)["input_ids"] for label in labels]
    shortest = min(map(len, rows))
    shared = next((at for at in range(shortest) if len({row[at] for row in rows}) > 1), shortest)
    if len(opening) + max(map(len, rows)) > limit:
        raise InputError(
            f"A query has {len(opening) + max(map(len, rows))} tokens, with what stands before it; the simulator was "
            f"compiled for at most {limit}. Compile with a larger max length, or ask for fewer shots."
        )
    if shared == shortest:
        raise InputError(f"The label words {', '.join(map(repr, labels))} are the beginning of each other as tokens.")
    common = torch.cat([opening, torch.tensor(rows[0][:shared], dtype=torch.long)])
    return Question(common, tuple(torch.tensor(row[shared:], dtype=torch.long) for row in rows))


def check_lengths(
    columns: Sequence[Column], tokenizer: Any, limit: int, setting: Setting, examples: Sequence[Example]
) -> None:
    """Raise `InputError` if a text of the examples or the demonstrations has more tokens than `limit`."""
    for before in {_before_queries(column, setting) for column in columns}:
        for one in examples:
            question(tokenizer, before + setting.task.query(one.text), setting.task.labels, limit)
    ids = _demonstrated(tokenizer, setting).arguments.get("input_ids")
    if ids is not None and ids.shape[1] > limit:
        raise InputError(
            f"The demonstrations have {ids.shape[1]} tokens; the simulator was compiled for at most {limit}. "
            "Compile with a larger max length, or ask for fewer shots."
        )


def answers(
    column: Column,
    tokenizer: Any,
    limit: int,
    setting: Setting,
    examples: Sequence[Example],
    rates: Sequence[float],
    records: Records,
    processes: Processes,
    on_examples: Callable[[int], None] = lambda count: None,
) -> list[list[list[float]]]:
    """Return the scores of labels ``[examples][rates][labels]``.

    limit: the longest text; on_examples is called with the number of examples that were done.
    """
    size = TOGETHER
    if column.has_rate and not setting.demonstrations:
        size = 1
    parts = [examples[at : at + size] for at in range(0, len(examples), size)]
    own = []
    for index in processes.share(len(parts)):
        part = parts[index]
        key = [column.name, column.identity, _digest(column, setting, part), list(rates) * column.has_rate]
        scores = records.get(key)
        if scores is None:
            scores = _scores(column, tokenizer, limit, setting, part, rates)
            records.put(key, scores)
        own.append(scores)
        on_examples(len(part))
    return [scores for part in processes.gathered(own) for scores in part]


def _scores(
    column: Column, tokenizer: Any, limit: int, setting: Setting, part: Sequence[Example], rates: Sequence[float]
) -> list[list[list[float]]]:
    """Return the scores of labels for examples that share one training."""
    labels = setting.task.labels
    before = _before_queries(column, setting)
    questions = [question(tokenizer, before + setting.task.query(one.text), labels, limit) for one in part]
    asked = [*questions]
    if setting.calibrated:
        asked.append(question(tokenizer, before + setting.task.query(""), labels, limit))
    prompt = _demonstrated(tokenizer, setting)
    if not setting.demonstrations:
        prompt = _on_itself(questions[0], len(opening_of(tokenizer)))
    shared = _shared(asked)
    reads = len(shared) + sum(one.reads - len(shared) for one in asked)
    prompt = replace(prompt, shared=shared, reads=reads)

    def score(predict: Predictor) -> list[float]:
        return [value for one in asked for value in one.log_probabilities(predict)]

    by_rate = torch.tensor(column.scores(prompt, rates, score), dtype=torch.float64)
    table = by_rate.view(len(rates), len(asked), len(labels))
    if setting.calibrated:
        table = table[:, :-1] - table[:, -1:]
    return table.transpose(0, 1).tolist()


def _demonstrated(tokenizer: Any, setting: Setting) -> Prompt:
    """Return the demonstrations as what is trained on; nothing where there are none."""
    if not setting.demonstrations:
        return Prompt({}, ())
    # The query is there because few_shot wants one; it is not trained on.
    encoded = masks.few_shot(
        tokenizer, setting.pairs, setting.task.query("."), setting.format, setting.loss, separator=SEPARATOR
    )
    arguments: dict[str, Tensor] = dict(encoded)
    ids = arguments["input_ids"][0]
    targets = (arguments["train_mask"] & arguments["loss_mask"])[0]
    trained = int(arguments["train_mask"][0].sum())
    starts = [0]
    if setting.format == "single":
        starts = (arguments["position_ids"][0, :trained] == 0).nonzero()[:, 0].tolist()
    ends = [*starts[1:], trained]
    return Prompt(arguments, tuple(TrainText(ids[a:b], targets[a:b]) for a, b in zip(starts, ends, strict=True)))


def _on_itself(asked: Question, opening: int) -> Prompt:
    """Return a query as what is trained on. opening: tokens at its beginning that are no targets."""
    ids = asked.common
    targets = torch.arange(len(ids)) >= max(opening, 1)
    ones = torch.ones_like(ids)[None]
    arguments = {"input_ids": ids[None], "train_mask": ones, "loss_mask": targets[None]}
    return Prompt(arguments, (TrainText(ids, targets),))


def _shared(asked: Sequence[Question]) -> Tensor:
    """Return the tokens that all of several questions begin with."""
    rows = [one.common.tolist() for one in asked]
    if len(rows) == 1:
        return asked[0].common[:0]
    same = 0
    while same < min(map(len, rows)) and len({row[same] for row in rows}) == 1:
        same += 1
    return asked[0].common[:same]


def _before_queries(column: Column, setting: Setting) -> str:
    """Return what a column reads before every query."""
    if setting.format == "multi" or column.in_context:
        return setting.context
    return ""


def _digest(column: Column, setting: Setting, part: Sequence[Example]) -> str:
    """Return a digest of all that scores depend on, besides column and rates."""
    task = setting.task
    content = [task.template, task.labels, setting.calibrated, _before_queries(column, setting)]
    if column.has_rate:
        content += [setting.pairs, setting.format, setting.loss]
    content.append([one.text for one in part])
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def correct(scores: Sequence[Sequence[float]], examples: Sequence[Example]) -> list[bool]:
    """Return which examples are answered right. scores ``[examples][labels]``; the first of equal ones counts."""
    return [max(range(len(row)), key=row.__getitem__) == one.label for row, one in zip(scores, examples, strict=True)]
