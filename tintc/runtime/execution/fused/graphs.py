"""What has been recorded to be replayed: CUDA graphs of passes and of decoding steps.

A pass over few tokens is thousands of launches, for which the host takes longer than the GPU. A graph is captured once,
on buffers that stay where they are, and launched as one. PyTorch's own capture is used and no compiler: a pass is a
program of thousands of ops that an interpreter runs, which torch.compile would trace for minutes, once for every size;
and `make_graphed_callables` would add a backward pass, which nobody asks for where nothing is recorded by autograd.

Graphs are captured by `sim.warm_up` alone, since each keeps memory. All of a simulator take theirs from one pool. They
are dropped as soon as any of its tensors lies elsewhere. ``sim.graphs.enabled = False``, or the environment's
``TINTC_GRAPHS=off``, switches them off.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import torch

from tintc.errors import OptionError
from tintc.ir.simulator.kernels.choice import ways
from tintc.ir.simulator.kernels.rows import takes_tf32
from tintc.runtime.execution.simulator import Simulator

VARIABLE = "TINTC_GRAPHS"
WARM_RUNS = 2
"""Runs before a capture, in which libraries set up what they need once."""
Graph = TypeVar("Graph")


class Recording(Protocol):
    """A run that was recorded. results: of the last replay, in memory that the next one writes over."""

    results: Any

    def replay(self) -> None:
        """Run again what was recorded, on whatever its buffers hold now."""
        ...


class CudaRecording:
    """A run as a CUDA graph."""

    def __init__(self, run: Callable[[], Any], device: torch.device, pool: Any):
        """Run it a few times on a stream of its own, as PyTorch asks for, and capture it there: the stream that
        PyTorch would take is the first device's. Other threads may use the GPU meanwhile."""
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_RUNS):
                    run()
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(self._graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
                self.results = run()

    def replay(self) -> None:
        self._graph.replay()


def new_pool(device: torch.device) -> Any:
    """Return the memory pool of a simulator's graphs, and None where there are no pools."""
    if device.type == "cuda":
        return torch.cuda.graph_pool_handle()
    return None


RECORDINGS: dict[str, Callable[[Callable[[], Any], torch.device, Any], Recording]] = {"cuda": CudaRecording}
"""What records, by type of device."""


class Graphs:
    """The graphs of one simulator, of any kind. enabled: whether they are captured and replayed; held: bytes that they
    keep from everybody else, beyond the tensors that they use."""

    def __init__(self) -> None:
        self.enabled = _asked()
        self.held = 0
        self._kept: list[Any] = []
        self._places: list[Place] = []
        self._pool: Any = None
        self._thread: int | None = None

    def __len__(self) -> int:
        return len(self._kept)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return what a copied simulator begins with: none, for its tensors lie elsewhere."""
        fresh = type(self)()
        fresh.enabled = self.enabled
        return fresh

    def clear(self) -> None:
        """Drop all graphs and their memory."""
        self._kept = []
        self._pool = None
        self._thread = None
        self.held = 0

    def can_record(self, sim: Simulator) -> bool:
        """Return whether a run of the simulator can be recorded here and now.

        A graph has its inputs in one place, so that the thread that recorded the first has them all; others run
        without, until they are dropped.
        """
        if self._thread not in (None, threading.get_ident()):
            return False
        free = not torch.is_grad_enabled() and not sim.edits and not sim.placed
        return self.enabled and free and sim.device.type in RECORDINGS

    def of_kind(self, sim: Simulator, kind: type[Graph]) -> list[Graph]:
        """Return the graphs of a kind that may be replayed now; all are dropped if the simulator's tensors moved."""
        if not self._kept or not self.can_record(sim):
            return []
        if not all(place.holds() for place in self._places):
            self.clear()
        return [graph for graph in self._kept if isinstance(graph, kind)]

    def keep(self, graph: Any) -> None:
        """Keep a graph, whatever it is."""
        self._kept.append(graph)

    def record(self, sim: Simulator, run: Callable[[], Any]) -> Recording:
        """Return a recording of a run of the simulator, whose tensors must stay where they are from its first run on.

        Nothing in `run` may wait for the device, or read anything of the host that changes from replay to replay.
        """
        run()
        if not all(place.holds() for place in self._places):
            self.clear()
        self._places = list(_places(sim))
        if self._pool is None:
            self._pool = new_pool(sim.device)
        before = _unused(sim.device)
        recording = RECORDINGS[sim.device.type](run, sim.device, self._pool)
        self._thread = threading.get_ident()
        self.held += max(0, _unused(sim.device) - before)
        return recording


def surroundings() -> tuple[Any, ...]:
    """Return what decides on kernels besides sizes: a graph is of those that ran when it was captured."""
    return (*ways(), takes_tf32())


def _asked() -> bool:
    """Return what the environment asks for."""
    text = os.environ.get(VARIABLE, "on")
    if text not in ("on", "off"):
        raise OptionError(f"{VARIABLE} is {text!r}; set it to on or off.")
    return text == "on"


class Place(NamedTuple):
    """An entry of the tree of modules: who has it, under which name, what it is, and where its numbers lie."""

    owner: dict[str, Any]
    name: str
    held: Any
    address: int

    def holds(self) -> bool:
        """Return whether it is there still, and its numbers, which may change, lie where they did."""
        held = self.held
        return self.owner.get(self.name) is held and (not self.address or held.data_ptr() == self.address)


def _places(sim: Simulator) -> Iterator[Place]:
    """Yield the places of the tensors that a fused run reads, and of the modules that have them; to look at these again
    takes a quarter of the time of a walk through the tree, and every new token waits for it."""
    for kind in (sim.tables, sim.prefixes, sim.rates, sim.score_vectors):
        for module in kind.modules():
            yield from (Place(module._modules, name, child, 0) for name, child in module._modules.items())
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    yield Place(module._parameters, name, parameter, parameter.data_ptr())


def _unused(device: torch.device) -> int:
    """Return the bytes that PyTorch keeps of a GPU without using them."""
    if device.type != "cuda":
        return 0
    return torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
