"""The tensors that a simulator op has in the artefact, and its parameters by the paper's table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tintc.ir.block_specs import TensorSpec
from tintc.ir.core import Op
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.elements import Element


@dataclass(frozen=True)
class Storage:
    """Everything that an op may read to describe the tensors it has in the artefact.

    parameter: a parameter by the name the program gives it; n_steps, lr: of the descent.
    """

    layout: Layout
    parameter: Callable[[str], TensorSpec]
    n_steps: int
    lr: float

    def tables(self, *names: str) -> dict[str, TensorSpec]:
        """Return the parameters that are stored as they are, by state-dict name; empty names are left out."""
        return {f"tables.{name}": self.parameter(name) for name in names if name}

    def rates(self) -> TensorSpec:
        """Return the learning rate of every step, ``[N]``."""
        return TensorSpec((self.n_steps,), lambda: torch.full((self.n_steps,), self.lr, dtype=torch.float64))


@dataclass(frozen=True)
class TableCount:
    """Parameters by the paper's table (construction.md, section 11)."""

    forward: int = 0
    backward: int = 0
    descent: int = 0

    def __add__(self, other: TableCount) -> TableCount:
        return TableCount(self.forward + other.forward, self.backward + other.backward, self.descent + other.descent)

    @property
    def total(self) -> int:
        """Return the sum of the three."""
        return self.forward + self.backward + self.descent


def split_cost(layout: Layout) -> int:
    """Return Q_split of the table: one split-wise and one dimension-wise operation."""
    return layout.d_sim**2 // layout.n_heads + layout.d_sim * layout.n_heads


def attention_cost(layout: Layout) -> int:
    """Return Q of the table: one TinT attention, four split operations and three position matrices."""
    return 4 * split_cost(layout) + 3 * layout.sim_seq_len * layout.d_sim // layout.n_heads


class StoredTensors(Op):
    """The tensors of the artefact that an op reads besides structural ones, and the weights that it gives."""

    def stored(self, storage: Storage) -> dict[str, TensorSpec]:
        """Return the tensors of the artefact that the op reads, by state-dict name, but for structural ones."""
        return {}

    def element(self, storage: Storage, tensor: str, index: tuple[int, ...]) -> Element:
        """Return what the number at `index` of one of the stored tensors is, by the tensor's state-dict name.

        Here: of parameters that are stored as they are, and of rates.
        """
        part, _, name = tensor.partition(".")
        if part == "rates":
            return Element("rate", name, None, step=index[0])
        return Element(part.removesuffix("s").replace("_", " "), name, index)

    def indices(self, storage: Storage, tensor: str, entry: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return where the stored tensor has the number at `entry` of its parameter: what `element` says, backwards."""
        shape = self.stored(storage)[tensor].shape
        fits = len(entry) == len(shape) and all(0 <= i < n for i, n in zip(entry, shape, strict=True))
        return [entry] if fits else []

    def rates(self) -> tuple[str, ...]:
        """Return the names of the stored rates that the op reads, at its step."""
        return ()

    def stored_weight(self) -> str | None:
        """Return the name of the weights whose stored values are the result; None if they are not."""
        return None

    def updated_weight(self) -> str | None:
        """Return the name of the weights whose values after a step of descent are the result; None if they are not."""
        return None

    def summed_weight(self) -> str | None:
        """Return the name of the weights whose gradients' sum is the result; None if it is none."""
        return None

    def updated_parts(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the parts of those weights that descend, by part."""
        return {}

    def table_count(self, layout: Layout) -> TableCount:
        """Return the parameters by the paper's table; forward ops count for their backward and descent too."""
        return TableCount()
