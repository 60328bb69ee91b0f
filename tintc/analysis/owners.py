"""Whose is a number: from every element of every stored tensor to what it is, and back.

Templates say it: of weights, tables and rates the op that stores them (`StoredTensors.element`), of structural tensors
the chain of split operations (`SplitStage.ends`), whose weights also say which heads a number reaches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

from tintc.analysis.head_io import Head
from tintc.analysis.owner import Index, Owner, StageTensor, Users
from tintc.analysis.reach import Reach
from tintc.errors import OptionError
from tintc.ir.block_specs import AttentionSpec
from tintc.ir.core import Program
from tintc.ir.layout import Layout
from tintc.ir.simulator import SimOp, StoredWeights
from tintc.ir.simulator.interface.storage import Storage
from tintc.ir.structure import block_tensors, chains
from tintc.lowering.emission.emit import specs, storage_of
from tintc.lowering.emission.sharing import Placed, around, placement, sites


class Owners:
    """The owners of all elements of a planned simulator program's tensors.

    heads: those that do something, block by block.
    """

    def __init__(self, program: Program, heads: Mapping[str, Collection[Head]]):
        self.program = program
        self.heads = heads
        self._at = sites(program)
        self._users: dict[str, Users] = {}
        self._storing: dict[str, SimOp] = {}
        self._stages: dict[str, StageTensor] = {}
        self._vectors: dict[str, tuple[str, str]] = {}
        self._around: dict[str, str] = {}
        self._of_block: dict[str, list[str]] = defaultdict(list)
        self._reach = Reach()
        self._note_stored()
        for op, blocks in placement(program).items():
            for placed in blocks.values():
                self._note_block(op, placed)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every stored tensor, by name."""
        return {name: spec.shape for name, spec in specs(self.program).items()}

    @cached_property
    def storage(self) -> Storage:
        return storage_of(self.program)

    @property
    def layout(self) -> Layout:
        return self.storage.layout

    @cached_property
    def _parts(self) -> dict[tuple[str, int], set[tuple[int, int]]]:
        """Return the stacked rows and shards of prefixes that heads read or write, by block and head."""
        parts: dict[tuple[str, int], set[tuple[int, int]]] = defaultdict(set)
        for block, heads in self.heads.items():
            for head in heads:
                inside = [part for part in (*head.reads, *head.writes) if part.at == "prefixes"]
                shards = {(part.slot, run[0] // self.layout.d_h) for part in inside for run in part.numbers}
                parts[block, head.index] |= shards
        return parts

    def _note_stored(self) -> None:
        readers: dict[str, list[SimOp]] = defaultdict(list)
        for op in self.program.ops:
            for value in op.operands:
                if value.type.is_weights and isinstance(op, SimOp):
                    readers[value.name].append(op)
        for op in self.program.ops:
            if not isinstance(op, SimOp):
                continue
            for name in op.stored(self.storage):
                self._storing.setdefault(name, op)
                self._use(name, op, op.opname)
                if isinstance(op, StoredWeights):
                    for reader in readers[op.result.name]:
                        self._use(name, reader, op.opname)

    def _note_block(self, op: SimOp, placed: Placed) -> None:
        spec = placed.block.spec
        below = f"structure.{placed.name}."
        for name, kind in around(placed).items():
            self._around[f"structure.{name}"] = kind
            self._use(f"structure.{name}", op, op.opname)
        first = placed.name not in self._of_block
        parts = self._of_block[placed.name]
        for part in block_tensors(spec):
            self._use(below + part, op, op.opname)
            if first:
                parts.append(below + part)
                self._vectors[below + part] = (placed.name, part)
        if not first:
            return
        if isinstance(spec, AttentionSpec):
            self._reach.attentions[placed.name] = spec
        for chain, stages in chains(spec).items():
            for number, stage in enumerate(stages):
                for part in ("weight", "bias"):
                    held = StageTensor(placed.name, chain, number, stage, part == "bias")
                    self._stages[f"{below}{chain}{number}.{part}"] = held

    def _use(self, tensor: str, op: SimOp, rule: str) -> None:
        users = self._users.setdefault(tensor, Users())
        users.rules[rule] = None
        users.layers.add(op.layer)
        if op in self._at:
            users.sites[self._at[op]] = None

    def owner(self, tensor: str, index: int | Sequence[int]) -> Owner:
        """Return what the number at `index` of a stored tensor is.

        Raises `OptionError` for a tensor that is not stored, and for an index that it does not have.
        """
        place = self._checked(tensor, index)
        users = self._users[tensor]
        layer = None
        if len(users.layers) == 1:
            (layer,) = users.layers
        base = Owner(tensor, place, tuple(users.rules), "", layer, tuple(users.sites))
        if tensor in self._storing:
            return self._of_stored(base)
        if tensor in self._around:
            return self._of_position(base)
        if tensor in self._stages:
            return self._of_stage(base, self._stages[tensor])
        block, part = self._vectors[tensor]
        return self._handled(replace(base, part=part, block=block, heads=place))

    def _checked(self, tensor: str, index: int | Sequence[int]) -> Index:
        """Return the index as numbers from 0 on."""
        if tensor not in self.shapes:
            raise OptionError(f"The simulator stores no tensor {tensor!r}; sim.state_dict() has all that it stores.")
        shape = self.shapes[tensor]
        whole = (index,) if isinstance(index, int) else tuple(index)
        fits = len(whole) == len(shape) and all(-n <= i < n for i, n in zip(whole, shape, strict=True))
        if not fits:
            raise OptionError(f"{tensor} has the shape {list(shape)}, and no number at {list(whole)}.")
        return tuple(range(n)[i] for i, n in zip(whole, shape, strict=True))

    def _of_stored(self, base: Owner) -> Owner:
        element = self._storing[base.tensor].element(self.storage, base.tensor, base.index)
        own = replace(base, **vars(element))
        if not element.places:
            return own
        number = element.places[0].number
        slot, inside = divmod(number, self.layout.pitch)
        chunk = number // self.layout.d_h
        return replace(own, slot=slot, shard=inside // self.layout.d_h, heads=(chunk,))

    def _of_position(self, base: Owner) -> Owner:
        """Return the owner of a number of a position matrix ``[d_h, T_sim]`` or gate ``[T_sim]``."""
        part = self._around[base.tensor].partition(".")[0].removesuffix("s")
        column = -1
        if len(base.index) == 2:
            column = base.index[0]
        return replace(base, part=part, position=base.index[-1], column=column)

    def _of_stage(self, base: Owner, held: StageTensor) -> Owner:
        """Return the owner of a number of a split operation."""
        stage = held.stage
        reads = None
        if held.bias:
            chunk, column = base.index
            source = given = stage.biased(chunk, column)
        else:
            first, second, third = base.index
            source, given = stage.ends(first, second, third)
            reads = divmod(source, stage.width)
        own = replace(base, part=held.chain.removesuffix(".") or "stages", block=held.block)
        own = replace(own, reads=reads, writes=divmod(given, stage.width))
        if held.block not in self._reach.attentions:
            return own
        reached = self._reach.of(held)[given if held.chain != "w_o." or held.bias else source]
        return self._handled(replace(own, heads=tuple(reached.nonzero()[:, 0].tolist())))

    def _handled(self, own: Owner) -> Owner:
        """Return the owner with the stacked row and the shard that its head handles."""
        if len(own.heads) != 1:
            return own
        parts = self._parts.get((own.block, own.heads[0]), ())
        if len(parts) != 1:
            return own
        ((slot, shard),) = parts
        return replace(own, slot=slot, shard=shard)

    def of_head(self, block: str, head: int) -> dict[str, Tensor]:
        """Return the indices ``[n, dimensions]`` of the numbers of a block that belong to a head, by tensor; of a block
        without heads, or a gate, all."""
        elements: dict[str, Tensor] = {}
        if block not in self._of_block:
            for name in (f"structure.{block}.v_old", f"structure.{block}.v_new"):
                elements[name] = _everywhere(self.shapes[name])
            return elements
        for name in self._of_block[block]:
            at = _everywhere(self.shapes[name])
            if head < 0:
                elements[name] = at
            elif name in self._stages:
                elements[name] = at[self._reach.heads_of(self._stages[name], at)[:, head]]
            else:
                elements[name] = at[head : head + 1]
        return {name: at for name, at in elements.items() if len(at)}

    def of_weights(self, parameter: str, expert: int, rows: Iterable[int], columns: Iterable[int]) -> dict[str, Tensor]:
        """Return the indices ``[n, dimensions]`` of the numbers of some rows of weights that prefixes store, by tensor.

        columns: of a matrix; none for a vector. Sums of gradients are not stored.
        """
        name = f"prefixes.{parameter}"
        op = self._storing.get(name)
        if not isinstance(op, StoredWeights):
            return {}
        at = [op.at(self.layout, name, expert, row, column) for row, column in product(rows, columns or (-1,))]
        return {name: torch.tensor(at)}

    def stored(self, parameter: str, entry: Index) -> list[tuple[str, Index]]:
        """Return every place ``(tensor, index)`` at which a number of the auxiliary is stored; none for what is not."""
        places: list[tuple[str, Index]] = []
        for name, op in self._storing.items():
            kind, _, of = name.partition(".")
            if of == parameter and kind != "rates":
                places += [(name, index) for index in op.indices(self.storage, name, entry)]
        return places


def _everywhere(shape: tuple[int, ...]) -> Tensor:
    """Return the indices of all numbers of a tensor, ``[n, dimensions]``."""
    return torch.cartesian_prod(*map(torch.arange, shape)).view(-1, len(shape))
