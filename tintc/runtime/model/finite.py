"""NaN and infinite values: weights that have them are refused, and an update that makes them is warned of."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from tintc.errors import ArtefactError, InputError
from tintc.ir.finite import is_finite
from tintc.ir.simulator.interface.fused_base import FusedWeights
from tintc.mapped import MappedWeights

if TYPE_CHECKING:
    from tintc.runtime.model.structure import StructuralModel

BLOWN_UP = (
    "what the update gives is NaN or infinite: the learning rate is too large for this text; choose a smaller inner_lr"
)
logger = logging.getLogger("tintc")


def check_weights(path: Any, tensors: Mapping[str, Tensor]) -> None:
    """Raise `ArtefactError` for the first tensor that has NaN or infinite values.

    Tensors that lie in mapped files are given back once they were looked at, so that a look costs no memory.
    """
    mapped = MappedWeights(tensors.values())
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.is_meta and not is_finite(tensor):
            raise ArtefactError(f"{path} has NaN or infinite values in {name}. Compile the model again.")
        mapped.release()


def warn_of_logits(sim: StructuralModel, logits: Tensor) -> None:
    """Warn, once for each simulator, of an update after which the last token's logits ``[B, T, V]`` are no numbers."""
    if BLOWN_UP not in sim._warnings_given and not is_finite(logits[:, -1]):
        _warn(sim)


def warn_of_weights(sim: StructuralModel, weights: Iterable[FusedWeights]) -> None:
    """Warn, once for each simulator, of updated weights that are no numbers."""
    parts = (part for w in weights for part in (w.weight, w.bias, *(update.dy for update in w.pending)))
    if BLOWN_UP not in sim._warnings_given and not all(is_finite(part) for part in parts if part is not None):
        _warn(sim)


def warn_of_loss(sim: StructuralModel) -> None:
    """Warn, once for each simulator, of an update after which a loss is no number."""
    if BLOWN_UP not in sim._warnings_given:
        _warn(sim)


def _warn(sim: StructuralModel) -> None:
    sim._warnings_given.add(BLOWN_UP)
    logger.warning(BLOWN_UP)


@contextmanager
def without_nan_warning() -> Iterator[None]:
    """Hide that warning inside the block, where an error will say it."""

    def other(record: logging.LogRecord) -> bool:
        return record.msg != BLOWN_UP

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


class RefuseNaN(LogitsProcessor):
    """Passes scores ``[B, V]`` on; raises `InputError` where there is nothing to choose a token by."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not is_finite(scores) and bool((scores.isnan() | (scores == torch.inf)).any()):
            raise InputError(
                "No token can be chosen, because the logits after the update are NaN or infinite: the learning rate is "
                "too large for this prompt. Pass a smaller one."
            )
        return scores
