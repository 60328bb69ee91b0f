"""Recurrences by chunks, token by token and piece by piece: the product with their matrix, and with its transpose."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tintc.ir.recurrence import apply_recurrence, apply_transposed_recurrence, continue_recurrence, recurrence_matrix
from tintc.ir.recurrence.chunks import CHUNK
from tintc.ir.recurrence.heads import Heads, RecurrenceOptions

SIZES = st.sampled_from([(4, 2, 3, 5), (4, 1, 9, 8), (3, 3, 10, 1), (4, 1, 7, 1), (2, 2, 12, 7)])
"""Heads, key heads, key and value width; states below and above the size up to which tokens come one by one."""
LENGTHS = st.sampled_from([1, 2, 17, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(SIZES, LENGTHS, st.booleans(), st.booleans(), st.sampled_from([1, 3]), st.booleans())
def test_every_form_is_the_matrix(
    sizes: tuple[int, ...], length: int, delta: bool, by_coordinate: bool, writes: int, recorded: bool
) -> None:
    """fp64, 1e-12 of the largest number; with tokens of padding anywhere, with a graph for autograd and without."""
    torch.manual_seed(0)
    n_heads, n_key_heads, key_dim, value_dim = sizes
    options = RecurrenceOptions(
        operands=(),
        results=(),
        n_heads=n_heads,
        n_key_heads=n_key_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        scale=0.3,
        delta=delta,
        by_coordinate=by_coordinate,
        unit_eps=1e-6 * delta,
        writes=writes,
    )
    q, k, _, g, beta = (random(2, length, width) for width in options.widths())
    g = -0.3 * g.abs() ** 3
    heads = Heads.of(options, q, k, g, beta.sigmoid(), torch.rand(2, length) > 0.1)
    v, dy = random(2, n_heads, length * writes, value_dim), random(2, n_heads, length, value_dim)
    skip = random(n_heads) if writes == 1 else None
    matrix = recurrence_matrix(options, heads, skip)
    with torch.set_grad_enabled(recorded):
        y = apply_recurrence(options, heads, v.requires_grad_(recorded), skip)
        dv = apply_transposed_recurrence(options, heads, dy.requires_grad_(recorded), skip)
        pieces = torch.cat(list(by_pieces(options, heads, v, skip, length)), 2)
    for found, right in ((y, matrix @ v), (dv, matrix.mT @ dy), (pieces, matrix @ v)):
        assert float((found - right).detach().abs().max()) < 1e-12 * float(right.detach().abs().max())


def by_pieces(
    options: RecurrenceOptions, heads: Heads, v: torch.Tensor, skip: torch.Tensor | None, length: int
) -> Iterator[torch.Tensor]:
    """Yield the results piece by piece, each from the state that those before have left."""
    state = None
    at = 0
    for count in (1, 2, 1, 30, 1, CHUNK, length):
        stop = min(at + count, length)
        here = slice(at * options.writes, stop * options.writes)
        at = stop
        if here.start < here.stop:
            parts = Heads(*(part[:, :, here] for part in (heads.q, heads.k, heads.g, heads.beta)))
            y, state = continue_recurrence(options, parts, v[:, :, here], skip, state)
            yield y
