"""Log-likelihoods of texts whose first part is trained on, as lm-evaluation-harness asks for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from tintc.ir.functions import at_least_fp32
from tintc.runtime.model.causal_lm import TintForCausalLM


class Scored(NamedTuple):
    """A text, how many of its first tokens are trained on, and where scoring starts.

    Targets below `trained` are scored under the unchanged auxiliary, the others after the update.
    """

    tokens: tuple[int, ...]
    trained: int
    start: int


def log_likelihoods(
    sim: TintForCausalLM, texts: Sequence[Scored], inner_lr: float | None, batch_size: int, quiet: bool
) -> list[tuple[float, bool]]:
    """Return the log-likelihood of the scored part of every text, and whether it is what greedy decoding gives.

    inner_lr: instead of the stored rates; batch_size: texts that are run together; quiet: show no progress. Texts that
    differ in their last token alone are run once.
    """
    runs: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for index, text in enumerate(texts):
        runs.setdefault((text.tokens[:-1], text.trained), []).append(index)
    ordered = sorted(runs, key=lambda run: (-len(run[0]), run))
    answers: dict[int, tuple[float, bool]] = {}
    with tqdm(total=len(texts), disable=quiet, desc="Running loglikelihood requests") as progress:
        for start in range(0, len(ordered), batch_size):
            part = ordered[start : start + batch_size]
            for run, before, after in zip(part, *_run(sim, part, inner_lr), strict=True):
                for index in runs[run]:
                    answers[index] = _answer(texts[index], before, after)
                    progress.update(1)
    return [answers[index] for index in range(len(texts))]


@torch.no_grad()
def _run(
    sim: TintForCausalLM, runs: Iterable[tuple[tuple[int, ...], int]], inner_lr: float | None
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities ``[B, T, V]`` before and after the update; texts are padded on the right."""
    rows = [torch.tensor(tokens) for tokens, _ in runs]
    lengths = torch.tensor([len(row) for row in rows])
    trained = torch.tensor([count for _, count in runs])
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    places = torch.arange(ids.shape[1])
    out = sim(
        ids.to(sim.device),
        train_mask=places < trained[:, None],
        attention_mask=places < lengths[:, None],
        inner_lr=inner_lr,
        return_before=True,
    )
    before, after = (at_least_fp32(logits).log_softmax(-1).cpu() for logits in (out.logits_before, out.logits))
    return before, after


def _answer(text: Scored, before: Tensor, after: Tensor) -> tuple[float, bool]:
    """Return a text's log-likelihood, and whether greedy decoding gives it.

    before, after ``[T, V]``: log-probabilities at every position of the text's tokens but the last.
    """
    targets = torch.tensor(text.tokens[text.start :])
    places = torch.arange(text.start, len(text.tokens))
    scores = torch.where((places < text.trained)[:, None], before[places - 1], after[places - 1])
    return float(scores.gather(1, targets[:, None]).sum()), bool((scores.argmax(-1) == targets).all())
