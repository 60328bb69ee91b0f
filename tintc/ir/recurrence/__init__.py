"""Recurrences that are linear in their values: one definition for delta rules and state spaces.

Per head, ``y = A v`` with a causal matrix A of queries, keys and gates (construction.md, section 16). With strengths
``beta``, log decays g and their running sum G over the text::

    scores(a, b)_tj = sum_c a_tc b_jc exp(G_tc - G_jc)   for j <= t, else 0
    A = scores(q, k) (I + strict part of diag(beta) scores(k, k))^-1 diag(beta) + diag(skip)

without the inverse where there is no delta rule. Gated delta rules have one decay for a head; KDA has one for each
coordinate c of its keys; Mamba 2's state space has q = C, k = B, ``beta = dt`` and ``g = a dt``; Mamba's selective scan
is the same with a head for every channel, of value width 1, and a decay for each of its states.

A token may write n times, with n keys, values and strengths, as in a product of n Householder matrices. Then all of the
above is of n T writes, one after the other; a token decays the state before its first, and reads it after its last.
"""

from tintc.ir.recurrence.applied import (
    apply_recurrence,
    apply_transposed_recurrence,
    continue_recurrence,
    recurrence_matrix,
    with_skip,
)
from tintc.ir.recurrence.heads import Heads, RecurrenceOptions, at_last_write, by_token, by_write

__all__ = [
    "Heads",
    "RecurrenceOptions",
    "apply_recurrence",
    "apply_transposed_recurrence",
    "at_last_write",
    "by_token",
    "by_write",
    "continue_recurrence",
    "recurrence_matrix",
    "with_skip",
]
