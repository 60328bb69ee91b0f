"""`Simulator`: the part of a simulator that executing its program needs; `TintForCausalLM` has it, and more."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from tintc.ir.core import Op, Program, Value
from tintc.ir.layout import Layout
from tintc.runtime.artefact.config import TintConfig

if TYPE_CHECKING:
    from tintc.runtime.execution.literal.prefix import Prefix


class Simulator(Protocol):
    """A simulator's program, its tensors by the names that the program gives them, and how to run it.

    tables, prefixes, score_vectors: the modules that hold the auxiliary's tensors. update: how fused execution keeps
    updates, one of `UPDATES` in `fused/planner.py`; plans: the last, by sizes; shared_inputs: layers whose products
    share an input (`fused/packed_linear.py`); graphs: `Graphs` of `fused/graphs.py`, what was recorded to be replayed,
    by the thread that recorded it; placed: whether layers may lie on several devices. Several threads may run one
    simulator.
    """

    config: TintConfig
    program: Program
    layout: Layout
    tables: Any
    prefixes: Any
    rates: Any
    score_vectors: Any
    update: str
    plans: dict[Any, Any]
    shared_inputs: list[tuple[str, ...]]
    graphs: Any
    placed: bool

    @property
    def edits(self) -> dict[Value, Callable[[Tensor], Tensor]]:
        """Return functions that replace token values as soon as they are computed, in the caller's context."""
        ...

    @property
    def device(self) -> torch.device:
        """Return the device that all tensors are on."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of all tensors but rates and score vectors, which are never shorter than float32."""
        ...

    def table(self, name: str) -> Tensor:
        """Return an embedding table or the head, ``[V, D]``, or another table by its name in the program."""
        ...

    def prefix(self, name: str) -> Prefix:
        """Return the module that holds a layer's weights."""
        ...

    def rate(self, name: str) -> Tensor:
        """Return the stored learning rates of a layer, ``[N]``: one per step."""
        ...

    def score_vector(self, name: str) -> Tensor:
        """Return a vector that attention scores are made with, such as the rotary frequencies."""
        ...

    def parameter(self, name: str) -> Tensor:
        """Return any tensor by its name in the state dict."""
        ...

    def block(self, name: str) -> tuple[nn.Module, nn.Module | None]:
        """Return a structural block and its position gate, if it has one."""
        ...

    def site(self, op: Op) -> Any:
        """Return the module that stands for an op of the program, None for an op without one."""
        ...
