"""Linear attention by softmax heads and a sink (Theorem C.2, Lemma C.3; construction.md, section 12).

Claim: let a linear head have scores ``s_tj`` and values v_j at n positions. Head A scores ``s_tj / R``, head B scores
0, and both have a sink of value 0 and logit log M. Then ``R (M + n) (A_t - B_t)`` is ``sum_j s_tj v_j`` up to an error
of at most ``sum_j |v_j| (max|s|^2 / R + 2 n max|s| / (M + n))``, to leading order, and rounding of ``u R sum_j |v_j|``.

For B, ``B_t = sum_j v_j / (M + n)``. For A, with ``x_j = s_tj / R``, ``|x_j| <= 1`` and ``e^x = 1 + x + r``,
``|r| <= x^2`` (Lemma C.3), ``A_t = sum_j e^{x_j} v_j / (M + sum_i e^{x_i})``. Its denominator differs from M + n by at
most ``n (|x| + x^2)``. So ``(M + n) (A_t - B_t)`` is ``sum_j (x_j + r_j) v_j`` plus at most about
``2 n max|x| / (M + n) sum_j |v_j|``; times R, the former is ``sum_j s_tj v_j + sum_j R r_j v_j`` with
``R |r_j| <= s^2 / R``. QED.

So M should be large, and R balances ``max|s|^2 / R`` against ``u R``. A masked position has its score multiplied by 0:
it weighs the same in A and B and cancels. n is T_sim, whatever the text's length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from tintc.ir.block_specs import AttentionSpec, Positions, Split, SplitStage, TensorSpec
from tintc.ir.layout import Layout
from tintc.ir.structure import StructuralBlock, chunk_map

Matrix = Callable[[], Tensor]


def is_linear(block: StructuralBlock) -> bool:
    """Return True if the block is a linear attention."""
    return isinstance(block.spec, AttentionSpec) and block.spec.kind == "linear"


def softmax_block(
    name: str, block: StructuralBlock, layout: Layout, temperatures: tuple[float, ...]
) -> tuple[str, StructuralBlock]:
    """Return (name, block) of a block of linear attention by softmax heads; the name has the exponents of its
    constants.

    temperatures: R of heads whose scores depend on the input, R of heads whose scores are 0 or 1, and M.
    """
    spec = block.spec
    assert isinstance(spec, AttentionSpec)
    exponents = "_".join(repr(math.log2(value)).removesuffix(".0") for value in temperatures)
    return f"{name}_softmax_{exponents}".replace(".", "p"), StructuralBlock(
        to_softmax_heads(spec, layout, *temperatures), block.gate
    )


def to_softmax_heads(spec: AttentionSpec, layout: Layout, varied: float, constant: float, sink: float) -> AttentionSpec:
    """Return the specification with 2H softmax heads, A before B.

    Queries of A are divided by R, those of B and its keys are zero; values go to both. The output's first operation
    subtracts and scales.
    """
    heads = spec.n_heads
    n = layout.sim_seq_len

    def temperature() -> Tensor:
        r = torch.full((heads,), varied, dtype=torch.float64)
        r[list(spec.constant)] = constant
        return r

    def stacked(first: Tensor, second: Tensor) -> Tensor:
        return torch.cat((torch.diag(first), torch.diag(second)))

    ones = torch.ones(heads, dtype=torch.float64)
    zeros = torch.zeros(heads, dtype=torch.float64)
    into: dict[str, Matrix] = {
        "q": lambda: stacked(1 / temperature(), zeros),
        "k": lambda: stacked(ones, zeros),
        "v": lambda: stacked(ones, ones),
    }
    changed = {}
    for letter, matrix in into.items():
        changed[f"w_{letter}"] = _then(getattr(spec, f"w_{letter}"), matrix, spec)
        changed[f"positions_{letter}"] = _positions(getattr(spec, f"positions_{letter}"), matrix, heads)

    def merge() -> Tensor:
        # R (M + n) of the claim, per head.
        scale = temperature() * (sink + n)
        return stacked(scale, -scale).T

    logits = TensorSpec((2 * heads,), lambda: torch.full((2 * heads,), math.log(sink), dtype=torch.float64))
    changed["w_o"] = _first(merge, spec.w_o, spec)
    return replace(spec, n_heads=2 * heads, kind="sink", constant=range(0), sink=logits, **changed)


def _then(split: Split, matrix: Matrix, spec: AttentionSpec) -> Split:
    """Return `split`, then a matrix ``[2H, H]`` between chunks; it is multiplied into a last dimension-wise
    operation."""
    if split is None:
        return None
    *before, last = split or (_identity(spec),)
    if last.kind != "dimension":
        before = [*before, last]
        last = _identity(spec)
    weight = last.weight
    (width, _, sources) = last.weight.shape
    shape = (width, 2 * spec.n_heads, sources)
    built = TensorSpec(shape, lambda: torch.einsum("gh,chk->cgk", matrix(), weight.build()))
    return (*before, replace(last, weight=built, n_out=2 * spec.n_heads))


def _first(matrix: Matrix, split: Split, spec: AttentionSpec) -> Split:
    """Return a matrix ``[H, 2H]`` between chunks, then `split`; it is multiplied into a first dimension-wise
    operation."""
    if split is None:
        return None
    first, *after = split or (_identity(spec),)
    if first.kind != "dimension":
        after = [first, *after]
        first = _identity(spec)
    weight = first.weight
    (width, results, _) = first.weight.shape
    shape = (width, results, 2 * spec.n_heads)
    built = TensorSpec(shape, lambda: torch.einsum("cgh,hk->cgk", weight.build(), matrix()))
    return (replace(first, weight=built, n_heads=2 * spec.n_heads, n_out=results), *after)


def _identity(spec: AttentionSpec) -> SplitStage:
    """Return the identity as a dimension-wise stage."""
    return chunk_map(spec.n_heads, spec.width, {(head, head): 1.0 for head in range(spec.n_heads)})


def _positions(term: Positions | None, matrix: Matrix, heads: int) -> Positions | None:
    """Return the term with the decision vector of 2H heads."""
    if term is None:
        return None
    return replace(term, lam=TensorSpec((2 * heads,), lambda: matrix() @ term.lam.build()))
