"""How many threads the ops of a run get.

To wake PyTorch's other threads takes 5 to 100 microseconds, 100 in a virtual machine, and a run has a thousand small
elementwise ops; one thread goes through 100 000 numbers in 20. Products always have all threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SMALL = 400_000
"""Entries up to which an op without products is left to one thread."""


class Threads:
    """Switches PyTorch's number of threads, which is the whole process's, between its value and one."""

    def __init__(self) -> None:
        self._all = self._now = torch.get_num_threads()

    def one(self, small: bool) -> None:
        """One thread from here on if `small`, else all."""
        wanted = 1 if small else self._all
        if wanted != self._now:
            torch.set_num_threads(wanted)
            self._now = wanted


@contextmanager
def threads() -> Iterator[Threads]:
    """The switch, for as long as a run takes; afterwards the number is what it was."""
    switch = Threads()
    try:
        yield switch
    finally:
        switch.one(False)
