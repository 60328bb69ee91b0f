"""Literal execution: the program's ops, one after the other, each as simulator modules on whole embeddings.

The machine owns what a transformer's residual stream carries besides the tensors: the table of saved embeddings (by the
slots the compiler allocated), the prefixes as they are handed on, positions and masks.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tintc.analysis.capture_points import point_of, shown_by
from tintc.ir.core import Program, Value
from tintc.ir.functions import causal_mask
from tintc.ir.inputs import Inputs
from tintc.ir.liveness import needed_ops
from tintc.ir.simulator import SimOp
from tintc.ir.simulator.interface.literal_base import Applied, PrefixTiles, Tile, Tiles
from tintc.runtime.execution.literal.attention import TintAttention
from tintc.runtime.execution.literal.blocks import PositionGate
from tintc.runtime.execution.rates import Rates

if TYPE_CHECKING:
    from tintc.runtime.model.causal_lm import TintForCausalLM


class SimModule(nn.Module):
    """One module of the simulator: an op of the program, applying structural blocks that others may share.

    Called once for every block the op applies (a layer of several tiles applies its attention once per tile); a hook
    sees ``[B, K + T, D_sim]`` go in and come out.
    """

    def __init__(self, op: SimOp, blocks: Mapping[str, str]):
        """blocks: the built block's name, for every name that the op's literal form gives one."""
        super().__init__()
        self.op, self.blocks = op, blocks

    def forward(self, e: Tensor, block: str, machine: Machine, mask: Tensor | None, rate: Tensor | None) -> Tensor:
        module, gate = machine.model.block(self.blocks[block])
        shown: list[Tensor] = []
        if isinstance(module, TintAttention):
            mask = machine.prefix_mask() if mask is None and module.kind == "sink" else mask
            part = None if machine.applied is None else self.op.shown_scores(machine.layout)
            keep = None if part is None else partial(_kept, part, shown)
            new = module(e, machine.positions, mask, machine.token_positions, keep)
        else:
            new = module(e)
        if machine.applied is not None:
            given = gate.taken(new, machine.positions) if isinstance(gate, PositionGate) else new
            machine.applied.append(Applied(given, rate, shown[0] if shown else None))
        if rate is not None:
            new = new * rate.to(new.dtype).reshape(-1, 1, 1)
        return new if gate is None else gate(e, new, machine.positions)

    def extra_repr(self) -> str:
        return self.op.opname


def _kept(part: tuple[slice, ...], shown: list[Tensor], scores: Tensor) -> Tensor:
    """Keep a part of the scores to be shown; the scores to go on with, which read that very part where autograd records
    it."""
    shown.append(scores[part])
    if not torch.is_grad_enabled():
        return scores
    scores = scores.clone()
    scores[part] = shown[0]
    return scores


class Machine:
    """One run of a program on one batch (the runtime's `LiteralRun`)."""

    def __init__(self, model: TintForCausalLM, inputs: Inputs, rates: Rates | None):
        self.model, self.inputs, self.given, self.layout = model, inputs, rates, model.layout
        batch, length = inputs.shape
        k, device = self.layout.n_prefixes, inputs.input_ids.device
        self.positions = torch.arange(k + length, device=device).expand(batch, -1)
        self.token_positions = F.pad(inputs.position_ids, (k, 0))
        self.site: SimModule | None = None
        self.applied: list[Applied] | None = None
        self._masks: dict[Hashable, Tensor] = {}

    def run(self, outputs: tuple[str, ...], program: Program | None = None) -> dict[str, Any]:
        """The named outputs of the model's program, logits ``[B, T, V]`` or weights as `PrefixTiles`, and the named
        capture points. program: the same ops with other outputs."""
        program = self.model.program if program is None else program
        points = {label: point_of(program, label) for label in outputs}
        kept, shown = {point.value for point in points.values() if not point.show}, shown_by(points)
        edits = self.model.edits
        memory: dict[int, Tensor] = {}
        slots: dict[Value, tuple[int, ...]] = {}
        weights: dict[Value, PrefixTiles] = {}
        found: dict[Value, Tensor] = {}
        seen: dict[str, Tensor] = {}
        for op in needed_ops(program.ops, (point.value for point in points.values())):
            assert isinstance(op, SimOp)
            operands: list[Any] = []
            for value in op.operands:
                operands.append(weights[value] if value in weights else [memory[slot] for slot in slots[value]])
            self.site, self.applied = self.model.site(op), [] if op in shown else None
            result = op.literal(self, *operands)
            for label, name in shown.get(op, ()):
                seen[label] = op.show_literal(name, self.layout, self.applied or ())
            write = iter(op.write)
            for value, made in zip(op.results, result if len(op.results) > 1 else (result,), strict=True):
                if isinstance(made, PrefixTiles):
                    weights[value] = made
                elif value.type.kind == "tokens":
                    if value in edits or value in kept:
                        joined = self._joined(value, made)
                        joined = edits[value](joined) if value in edits else joined
                        if value in kept:
                            found[value] = joined
                        if value in edits or torch.is_grad_enabled():  # what is read later is what is handed out
                            made = self._cut(joined)
                    slots[value] = next(write)
                    memory.update(zip(slots[value], made, strict=True))
                else:
                    found[value] = made
        results = {**found, **weights}
        return {label: seen[label] if point.show else results[point.value] for label, point in points.items()}

    def _joined(self, value: Value, tiles: Tiles) -> Tensor:
        """A token value ``[B, T, width]`` from its tiles."""
        return torch.cat(tiles, -1)[..., : value.type.width]

    def _cut(self, value: Tensor) -> Tiles:
        """`_joined` undone."""
        pitch = self.layout.pitch
        return list(F.pad(value, (0, -value.shape[-1] % pitch)).split(pitch, -1))

    def embed(self, slots: Sequence[Tensor], prefix: Tile | None = None) -> Tensor:
        tokens = torch.cat(tuple(slots), -1)
        k = 0 if isinstance(prefix, Tensor) else self.layout.n_prefixes
        e = F.pad(tokens, (0, self.layout.d_sim - tokens.shape[-1], k, 0))
        if prefix is None:
            return e
        return torch.cat((prefix.to(e.dtype), e), 1) if isinstance(prefix, Tensor) else prefix(e)

    def apply(self, block: str, e: Tensor, mask: Tensor | None = None, rate: Tensor | None = None) -> Tensor:
        assert self.site is not None
        return self.site(e, block, self, mask, rate)

    def slot(self, e: Tensor, index: int = 0) -> Tensor:
        pitch = self.layout.pitch
        return e[:, self.layout.n_prefixes :, index * pitch : (index + 1) * pitch]

    def prefix(self, e: Tensor) -> Tensor:
        return e[:, : self.layout.n_prefixes]

    def train_mask(self, step: int) -> Tensor:
        key = "train", step if self.inputs.train.dim() == 3 else 0
        if key not in self._masks:
            seen = F.pad(self.inputs.trained(step), (self.layout.n_prefixes, 0))
            is_prefix = self.positions < self.layout.n_prefixes
            self._masks[key] = is_prefix[:, :, None] & seen[:, None, :]
        return self._masks[key]

    def next_mask(self) -> Tensor:
        if "next" not in self._masks:
            tokens = self.positions >= self.layout.n_prefixes
            follows = self.positions[:, :, None] + 1 == self.positions[:, None, :]
            self._masks["next"] = follows & tokens[:, :, None]
        return self._masks["next"]

    def counted_mask(self, step: int) -> Tensor:
        return torch.diag_embed(F.pad(self.inputs.counted(step), (self.layout.n_prefixes, 0)))

    def prefix_mask(self) -> Tensor:
        """``[B, T_sim, T_sim]``: tokens see prefixes. A linear module without a mask reads nothing else, because the
        values or keys of tokens are zero; in a softmax, scores with them would weigh nevertheless."""
        if "prefix" not in self._masks:
            is_prefix = self.positions < self.layout.n_prefixes
            self._masks["prefix"] = ~is_prefix[:, :, None] & is_prefix[:, None, :]
        return self._masks["prefix"]

    def token_mask(self, window: int = 0) -> Tensor:
        key = f"token{window}"
        if key not in self._masks:
            k, length = self.layout.n_prefixes, self.inputs.shape[1]
            allowed = self.inputs.allowed & causal_mask(length, self.positions.device, window)
            self._masks[key] = F.pad(allowed, (k, 0, k, 0))
        return self._masks[key]

    def rate(self, name: str, step: int) -> Tensor:
        given = None if self.given is None else self.given.of(name, step)
        return self.model.rate(name)[step] if given is None else given

    def look_up(self, table: str, rows: Tensor) -> Tensor:
        found = self.model.table(table)[rows]
        found = found[..., None] if found.dim() == 2 else found
        return F.pad(found, (0, self.layout.pitch - found.shape[-1]))

    def weights(self, name: str) -> PrefixTiles:
        stored = self.model.prefix(name)
        rows, columns = stored.tiles
        return PrefixTiles([[partial(stored, row=r, column=c) for c in range(columns)] for r in range(rows)])

    def logits(self, x: Tensor, head: str, bias: str) -> Tensor:
        x = x[..., : self.model.table(head).shape[1]]
        return F.linear(x, self.model.table(head), self.model.table(bias) if bias else None)
