"""The processes that evaluate together: those that `accelerate launch`, `torchrun` or MPI has started."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, get_int_from_env

SIZES = ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"]
"""Where launchers say how many processes there are."""
T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """A process among those that evaluate: which of how many, and its device (None: the one that was asked for)."""

    index: int = 0
    count: int = 1
    device: str | None = None

    @property
    def main(self) -> bool:
        """Return True if this one prints."""
        return self.index == 0

    def share(self, items: int) -> range:
        """Return the items that are this process's: every `count`-th."""
        return range(self.index, items, self.count)

    def gathered(self, own: Iterable[T]) -> list[T]:
        """Return the results of all processes in the order of the items that they share.

        own: this process's, for its share, in order. Every process must call it, and gets the same.
        """
        if self.count == 1:
            return [*own]
        parts: list[list[T]] = gather_object([[*own]])
        return [part[at] for at in range(len(parts[0])) for part in parts if at < len(part)]

    def wait(self) -> None:
        """Return when all have come here."""
        if self.count > 1:
            torch.distributed.barrier()


def launched() -> int:
    """Return how many processes a launcher says it has started; 1 if there is none."""
    return get_int_from_env(SIZES, 1)


def joined(device: str) -> Processes:
    """Return this process among those that a launcher has started; alone if none has. `left` undoes it."""
    if launched() <= 1:
        return Processes()
    state = PartialState(cpu=device == "cpu")
    return Processes(state.process_index, state.num_processes, str(state.device))


def left() -> None:
    """Leave the others."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        PartialState().destroy_process_group()


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Join the others that a launcher has started; alone if none has."""
    try:
        yield joined(device)
    finally:
        left()
