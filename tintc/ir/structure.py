"""Descriptions of the simulator's structural blocks: what a template emits, and what the runtime builds modules from.

A description holds shapes and *how to compute* each tensor; nothing is computed until `TensorSpec.build` is called, so
that loading an artefact or counting parameters costs nothing. Blocks act on embeddings ``[B, T_sim, D_sim]``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from tintc.ir.block_specs import AttentionSpec, BlockSpec, LinearSpec, Positions, SplitStage, TensorSpec
from tintc.ir.layout import Layout


@dataclass(frozen=True)
class StructuralBlock:
    """A block and its position gate (construction.md, section 2.3).

    gate: ``replace`` (forward modules), ``update`` (descent), or empty for none.
    """

    spec: BlockSpec
    gate: str = ""


def constant(*shape: int, value: float = 0.0) -> TensorSpec:
    """Return a tensor of one value."""
    return TensorSpec(shape, lambda: torch.full(shape, value, dtype=torch.float64))


def indicator(n_heads: int, ones: Collection[int]) -> TensorSpec:
    """Return a decision vector ``[H]`` that is 1 on the heads of `ones`."""

    def build() -> Tensor:
        vector = torch.zeros(n_heads, dtype=torch.float64)
        vector[list(ones)] = 1
        return vector

    return TensorSpec((n_heads,), build)


def chunk_map(n_heads: int, width: int, entries: dict[tuple[int, int], float]) -> SplitStage:
    """Return the dimension-wise stage by which chunk `to` receives ``factor * chunk from``, for every
    ``(to, from): factor``, in all columns."""

    def build() -> Tensor:
        matrix = torch.zeros(n_heads, n_heads, dtype=torch.float64)
        for (to, source), factor in entries.items():
            matrix[to, source] = factor
        return matrix.expand(width, n_heads, n_heads).clone()

    return SplitStage("dimension", n_heads, width, TensorSpec((width, n_heads, n_heads), build))


def chains(spec: BlockSpec) -> dict[str, tuple[SplitStage, ...]]:
    """Return a block's chains of split operations, by what their tensors' names begin with."""
    if isinstance(spec, LinearSpec):
        return {"": spec.stages}
    if isinstance(spec, AttentionSpec):
        return {f"w_{letter}.": getattr(spec, f"w_{letter}") or () for letter in "qkvopr"}
    return {}


def block_tensors(spec: BlockSpec) -> dict[str, TensorSpec]:
    """Return the tensors of a block, by the name they have below ``structure.<block>``."""
    named: dict[str, TensorSpec] = {}
    for chain, stages in chains(spec).items():
        for index, stage in enumerate(stages):
            named[f"{chain}{index}.weight"] = stage.weight
            if stage.bias:
                named[f"{chain}{index}.bias"] = constant(stage.n_results, stage.width)
    if isinstance(spec, AttentionSpec):
        for letter in "qkv":
            positions: Positions | None = getattr(spec, f"positions_{letter}")
            if positions is not None:
                named[f"lam_{letter}"] = positions.lam
        if spec.sink is not None:
            named["sink"] = spec.sink
    return named


SATURATED = 64.0
"""Pre-activation of open gates: tanh(64) is exactly 1 in every floating type, so that gates are exactly 0 and 1, as the
interpreters take them to be. The paper's 10 leaves 4e-9 per gate (construction.md, section 2.3)."""


def shared_tensors(layout: Layout) -> dict[str, TensorSpec]:
    """Return position matrices ``positions.<kind> [d_h, T_sim]`` and gates ``gates.<kind>.<v_old | v_new> [T_sim]``.

    A gate is ``tanh(v . p)``: positions are one-hot, so the definition's extra bias b is v shifted by a constant.
    ``replace`` keeps the prefixes and replaces the tokens, ``update`` adds to the prefixes and keeps the tokens. Where
    a gate is open its pre-activation is `SATURATED`, elsewhere 0.
    """
    k = layout.n_prefixes
    length = layout.sim_seq_len

    def prefix_matrix() -> Tensor:
        return torch.eye(layout.d_h, length, dtype=torch.float64)[:, :length] * (torch.arange(length) < k)

    def token_matrix() -> Tensor:
        matrix = torch.zeros(layout.d_h, length, dtype=torch.float64)
        matrix[0, k:] = 1
        return matrix

    def gate(at_prefixes: float, at_tokens: float) -> TensorSpec:
        def build() -> Tensor:
            vector = torch.full((length,), at_tokens, dtype=torch.float64)
            vector[:k] = at_prefixes
            return vector * SATURATED

        return TensorSpec((length,), build)

    return {
        "positions.prefix": TensorSpec((layout.d_h, length), prefix_matrix),
        "positions.tokens": TensorSpec((layout.d_h, length), token_matrix),
        "gates.replace.v_old": gate(1, 0),
        "gates.replace.v_new": gate(0, 1),
        "gates.update.v_old": gate(1, 1),
        "gates.update.v_new": gate(1, 0),
    }
