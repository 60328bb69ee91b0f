"""The tree of modules and parameters that a program asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tintc.errors import OptionError
from tintc.ir.block_specs import (
    AttentionSpec,
    ConvolutionSpec,
    PointwiseSpec,
    RecurrenceSpec,
    RouterSpec,
    VocabularySpec,
)
from tintc.ir.core import Op, Program
from tintc.ir.layout import Layout
from tintc.ir.simulator import StoredWeights
from tintc.lowering.emission.emit import blocks_of, specs
from tintc.lowering.emission.sharing import Placed, placement, sites
from tintc.runtime.execution.fused.packed_linear import shared_inputs
from tintc.runtime.execution.literal.blocks import PositionGate, build_block
from tintc.runtime.execution.literal.prefix import Prefix
from tintc.runtime.execution.literal.sim_module import SimModule
from tintc.runtime.execution.module_tree import Container, FullPrecision, owner, place_module, place_parameter, refer_to
from tintc.runtime.model.unsupported import WRAPPED, check_own


class SimulatorModules(PreTrainedModel):
    """The part of `TintForCausalLM` that has modules and parameters, and finds them by the program's names."""

    program: Program
    layout: Layout
    placed = False
    """Whether layers may lie on several devices."""

    def _build(self) -> None:
        """Make the modules and their empty parameters, from the program alone."""
        self.tables = Container()
        self.prefixes = Container()
        self.rates = FullPrecision()
        self.score_vectors = FullPrecision()
        self.structure = Container()
        self.sites = Container()
        places = placement(self.program)
        self._blocks = blocks_of(self.program, places)
        for name, placed in self._blocks.items():
            place_module(self, f"structure.{name}", build_block(placed.block.spec, self.layout))
        for gate in dict.fromkeys(placed.gate for placed in self._blocks.values() if placed.gate):
            place_module(self, f"structure.{gate}", PositionGate(self.layout.sim_seq_len))
        shapes = {name: spec.shape for name, spec in specs(self.program, places=places).items()}
        matrices = {f"structure.{name}" for placed in self._blocks.values() for name in placed.positions.values()}
        for name, shape in shapes.items():
            if name.startswith(("tables.", "rates.", "score_vectors.")) or name in matrices:
                place_parameter(self, name, nn.Parameter(torch.empty(shape)))
        for op in self.program.ops:
            if isinstance(op, StoredWeights):
                stem = f"prefixes.{op.name}."
                parts = {part: shapes[stem + part] for part in ("weight", "gain", "bias") if stem + part in shapes}
                place_module(self.prefixes, op.name, Prefix(op.result.type, parts, op.tiles, self.layout))
        self._sites: dict[Op, str] = {**sites(self.program)}
        for op, placed in places.items():
            names = {name: block.name for name, block in placed.items()}
            place_module(self.sites, self._sites[op], SimModule(op, names))
        self.shared_inputs = shared_inputs(self.program)
        self._refer_to_shared()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast all of it, after which layers that lay on several devices may lie together."""
        super()._apply(fn, recurse)
        if self.placed:
            self.placed = self.on_several_devices()
        return self

    def on_several_devices(self) -> bool:
        """Return whether its parameters lie on more than one device."""
        return len({parameter.device for parameter in self.parameters()}) > 1

    def _precise_kinds(self) -> list[str]:
        """Return the kinds of parameters that are never cast to a short type; transformers warns of empty ones."""
        kinds = {"rates": self.rates, "score_vectors": self.score_vectors}
        return [name for name, kind in kinds.items() if any(True for _ in kind.parameters())]

    def _refer_to_shared(self) -> None:
        """Tell the blocks where the tensors are that they read and do not own."""
        for name, placed in self._blocks.items():
            shared = _shared_tensors(placed)
            if shared:
                module: Any = self._module(f"structure.{name}")
                module.references = {key: refer_to(self, tensor) for key, tensor in shared.items()}

    def zero_absent_terms(self) -> None:
        """Zero the terms of the definition that the construction leaves out, which no file and no state dict holds."""
        for name in self._blocks:
            self._init_weights(self._module(f"structure.{name}"))

    def _init_weights(self, module: nn.Module) -> None:
        """Zero terms that are not stored; nothing is initialised at random, as every tensor is compiled."""
        for name, buffer in list(module.named_buffers(recurse=False)):
            device = buffer.device
            if buffer.is_meta:
                device = self.device
            module.register_buffer(name, torch.zeros_like(buffer, dtype=self.dtype, device=device), persistent=False)

    def block(self, name: str) -> tuple[nn.Module, nn.Module | None]:
        """Return a structural block and its position gate, if it has one."""
        placed = self._blocks[name]
        module = self._module(f"structure.{placed.name}")
        gate = None
        if placed.gate:
            gate = self._module(f"structure.{placed.gate}")
        return module, gate

    def site(self, op: Op) -> SimModule | None:
        """Return the module that stands for an op of the program, None for an op without one."""
        if op not in self._sites:
            return None
        module = self._module(f"sites.{self._sites[op]}")
        if isinstance(module, SimModule):
            return module
        return None

    def prefix(self, name: str) -> Prefix:
        """Return the module that holds a layer's weights."""
        module = self._module(f"prefixes.{name}")
        if not isinstance(module, Prefix):
            raise OptionError(WRAPPED.format(name=f"prefixes.{name}"))
        return module

    def rate(self, name: str) -> nn.Parameter:
        """Return the stored learning rates of a layer, ``[N]``: one per step."""
        return self.parameter(f"rates.{name}")

    def score_vector(self, name: str) -> nn.Parameter:
        """Return a vector that attention scores are made with, such as the rotary frequencies."""
        return self.parameter(f"score_vectors.{name}")

    def table(self, name: str) -> nn.Parameter:
        """Return an embedding table, or the head, by its name in the program."""
        return self.parameter(f"tables.{name}")

    def parameter(self, name: str) -> nn.Parameter:
        """Return any parameter by its name in the state dict."""
        module, leaf = owner(self, name)
        check_own(module, name)
        return getattr(module, leaf)

    def _module(self, name: str) -> nn.Module:
        module, leaf = owner(self, name)
        return getattr(module, leaf)


def _shared_tensors(placed: Placed) -> dict[str, str]:
    """Return the tensors that a block reads and does not own: by what they are to it, their names in the state dict."""
    spec = placed.block.spec
    match spec:
        case AttentionSpec():
            shared = {f"p_{letter}": f"structure.{matrix}" for letter, matrix in placed.positions.items()}
            return shared | {key: f"score_vectors.{vector}" for key, vector in spec.vectors.items()}
        case VocabularySpec():
            tables = {"head": spec.head, "bias": spec.bias}
        case RouterSpec() | PointwiseSpec():
            tables = spec.options.vectors()
        case RecurrenceSpec():
            tables = {"skip": spec.options.skip}
        case ConvolutionSpec():
            tables = {"weight": spec.weight, "bias": spec.bias, "padding": spec.padding}
        case _:
            tables = {}
    return {key: f"tables.{table}" for key, table in tables.items() if table}
