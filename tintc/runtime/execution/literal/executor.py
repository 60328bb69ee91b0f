"""Literal execution: the program's ops, one after the other, each as simulator modules on whole embeddings.

The executor owns what a transformer's residual stream carries besides the tensors: the table of saved embeddings (by
the slots the compiler allocated), the prefixes as they are handed on, positions and masks.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tintc.analysis.capture_points import point_of, shown_by
from tintc.ir.core import Program, Value
from tintc.ir.functions import causal_mask
from tintc.ir.inputs import Inputs
from tintc.ir.liveness import needed_ops
from tintc.ir.simulator import SimOp
from tintc.ir.simulator.interface.fused_base import FusedWeights
from tintc.ir.simulator.interface.literal_base import (
    Applied,
    ExpertTiles,
    PrefixTiles,
    Tile,
    Tiles,
    literal,
)
from tintc.runtime.execution.literal.prefix import given_prefixes
from tintc.runtime.execution.literal.sim_module import Memory, SimModule, unchanged
from tintc.runtime.execution.rates import Rates
from tintc.runtime.execution.simulator import Simulator


class LiteralExecutor:
    """One run of a program on one batch (the runtime's `LiteralRun`).

    starts: weights in place of stored ones, without pending updates, by the value of these.
    """

    def __init__(
        self, model: Simulator, inputs: Inputs, rates: Rates | None, starts: Mapping[Value, FusedWeights] | None = None
    ):
        self.model = model
        self.inputs = inputs
        self.rates = rates
        self.starts = starts or {}
        self.layout = model.layout
        batch, length = inputs.shape
        k = self.layout.n_prefixes
        device = inputs.input_ids.device
        self.positions = torch.arange(k + length, device=device).expand(batch, -1)
        self.token_positions = F.pad(inputs.position_ids, (k, 0))
        self.site: SimModule | None = None
        self.applied: list[Applied] | None = None
        self._masks: dict[Hashable, Tensor] = {}

    def run(self, outputs: tuple[str, ...], program: Program | None = None) -> dict[str, Any]:
        """Return the named outputs of the model's program and the named capture points.

        Logits are ``[B, T, V]``, routed values ``[B, T, E, width]``, weights `PrefixTiles`. program: the same ops with
        other outputs.
        """
        if program is None:
            program = self.model.program
        points = {label: point_of(program, label) for label in outputs}
        kept = {point.value for point in points.values() if not point.show}
        shown = shown_by(points)
        memory = Memory()
        results: dict[Value, Any] = {}
        seen: dict[str, Tensor] = {}
        batch = self.inputs.shape[0]
        for op in needed_ops(program.ops, (point.value for point in points.values())):
            assert isinstance(op, SimOp)
            if op.results[0] in self.starts:
                stored = self.model.prefix(str(op.stored_weight()))
                memory.weights[op.results[0]] = given_prefixes(stored, self.starts[op.results[0]], batch)
                continue
            self.site = self.model.site(op)
            self.applied = None
            if op in shown:
                self.applied = []
            result = literal(op, self, [memory.read(value) for value in op.operands])
            if op in shown:
                visible = op.show_literal({name for _, name in shown[op]}, self.layout, self.applied or ())
                seen |= {label: visible[name] for label, name in shown[op]}
                if torch.is_grad_enabled():
                    result = op.literal_showing(result, visible, self.layout, self.applied or ())
            if len(op.results) == 1:
                result = (result,)
            self._store(op, result, memory, results, kept)
        results |= memory.weights
        values = {label: results[point.value] for label, point in points.items() if not point.show}
        return {label: (values | seen)[label] for label in points}

    def _store(
        self, op: SimOp, result: tuple[Any, ...], memory: Memory, results: dict[Value, Any], kept: set[Value]
    ) -> None:
        """Write an op's results where later ops read them, and into `results` what is to be kept."""
        slots = iter(op.write)
        for value, computed in zip(op.results, result, strict=True):
            if isinstance(computed, PrefixTiles | ExpertTiles):
                memory.weights[value] = computed
            elif value.type.kind == "tokens":
                tiles = self._edited(value, computed, kept, results)
                memory.write(value, next(slots), tiles)
            elif value.type.kind == "routed":
                memory.write_routed(value, next(slots), computed)
                if value in kept:
                    width = value.type.width
                    results[value] = torch.stack([torch.cat(tiles, -1)[..., :width] for tiles in computed], 2)
            elif value.type.kind == "number":
                memory.numbers[value] = computed
            else:
                results[value] = computed

    def _edited(self, value: Value, tiles: Tiles, kept: set[Value], results: dict[Value, Any]) -> Tiles:
        """Return a token value's tiles after its edit, if it has one, and put it into `results` if it is to be kept."""
        edits = self.model.edits
        if value not in edits and value not in kept:
            return tiles
        whole = torch.cat(tiles, -1)[..., : value.type.width]
        if value in edits:
            whole = edits[value](whole)
        if value in kept:
            results[value] = whole
        if value in edits or torch.is_grad_enabled():  # what is read later is what is handed out
            pitch = self.layout.pitch
            return list(F.pad(whole, (0, -whole.shape[-1] % pitch)).split(pitch, -1))
        return tiles

    def embed(self, slots: Sequence[Tensor], prefix: Tile | None = None) -> Tensor:
        if slots:
            tokens = torch.cat(tuple(slots), -1)
        else:
            tokens = torch.zeros(*self.inputs.shape, 0, dtype=self.model.dtype, device=self.positions.device)
        e = F.pad(tokens, (0, self.layout.d_sim - tokens.shape[-1]))
        if isinstance(prefix, Tensor):
            return torch.cat((prefix.to(e.dtype), e), 1)
        e = F.pad(e, (0, 0, self.layout.n_prefixes, 0))
        if prefix is None:
            return e
        return prefix(e)

    def apply(self, block: str, e: Tensor, mask: Tensor | None = None, rate: Tensor | float | None = None) -> Tensor:
        assert self.site is not None
        return self.site(e, block, self, mask, rate)

    def first(self, x: Tiles) -> Tensor:
        return x[0][:, 0, 0]

    def empty_prefix(self) -> Tile:
        return unchanged

    def added(self, tile: Tile, terms: Sequence[Tensor]) -> Tensor:
        prefix = self.prefix(self.embed([], tile))
        for term in terms:
            prefix = prefix + self.prefix(term)
        return prefix

    def slot(self, e: Tensor, index: int = 0) -> Tensor:
        pitch = self.layout.pitch
        return e[:, self.layout.n_prefixes :, index * pitch : (index + 1) * pitch]

    def prefix(self, e: Tensor) -> Tensor:
        return e[:, : self.layout.n_prefixes]

    def train_mask(self, step: int) -> Tensor:
        if self.inputs.train.dim() == 2:  # the same in every step
            step = 0
        key = ("train", step)
        if key not in self._masks:
            seen = F.pad(self.inputs.train_mask(step), (self.layout.n_prefixes, 0))
            is_prefix = self.positions < self.layout.n_prefixes
            self._masks[key] = is_prefix[:, :, None] & seen[:, None, :]
        return self._masks[key]

    def real_tokens(self) -> Tensor:
        return self.inputs.real_tokens[..., None].to(self.model.dtype)

    def next_mask(self) -> Tensor:
        if "next" not in self._masks:
            tokens = self.positions >= self.layout.n_prefixes
            follows = self.positions[:, :, None] + 1 == self.positions[:, None, :]
            self._masks["next"] = follows & tokens[:, :, None]
        return self._masks["next"]

    def counted_mask(self, step: int) -> Tensor:
        return torch.diag_embed(F.pad(self.inputs.loss_positions_of(step), (self.layout.n_prefixes, 0)))

    def prefix_mask(self) -> Tensor:
        """Return ``[B, T_sim, T_sim]``, in which tokens see prefixes.

        A linear module without a mask reads nothing else, because the values or keys of tokens are zero; in a softmax,
        scores with them would weigh nevertheless.
        """
        if "prefix" not in self._masks:
            is_prefix = self.positions < self.layout.n_prefixes
            self._masks["prefix"] = ~is_prefix[:, :, None] & is_prefix[:, None, :]
        return self._masks["prefix"]

    def token_mask(self, window: int = 0) -> Tensor:
        key = f"token{window}"
        if key not in self._masks:
            k = self.layout.n_prefixes
            length = self.inputs.shape[1]
            allowed = self.inputs.allowed & causal_mask(length, self.positions.device, window)
            self._masks[key] = F.pad(allowed, (k, 0, k, 0))
        return self._masks[key]

    def rate(self, name: str, step: int) -> Tensor:
        rate = None
        if self.rates is not None:
            rate = self.rates.of(name, step)
        if rate is None:
            rate = self.model.rate(name)[step]
        return rate

    def look_up(self, table: str, rows: Tensor) -> Tensor:
        entries = self.model.table(table)[rows]
        if entries.dim() == 2:  # one number a row
            entries = entries[..., None]
        return F.pad(entries, (0, self.layout.pitch - entries.shape[-1]))

    def weights(self, name: str) -> PrefixTiles:
        stored = self.model.prefix(name)
        rows, columns = stored.tiles
        return PrefixTiles([[partial(stored, row=r, column=c) for c in range(columns)] for r in range(rows)])

    def expert_weights(self, name: str) -> ExpertTiles:
        stored = self.model.prefix(name)
        rows, columns = stored.tiles

        def tiles(expert: int) -> PrefixTiles:
            return PrefixTiles(
                [[partial(stored, row=r, column=c, expert=expert) for c in range(columns)] for r in range(rows)]
            )

        return ExpertTiles([tiles(expert) for expert in range(stored.holds.dims[0])])

    def logits(self, x: Tensor, head: str, bias: str) -> Tensor:
        x = x[..., : self.model.table(head).shape[1]]
        if not bias:
            return F.linear(x, self.model.table(head))
        return F.linear(x, self.model.table(head), self.model.table(bias))
