"""The layout of a simulator: how wide it is, and where weights and values sit in its embeddings.

See construction.md, section 3.1.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tintc.errors import OptionError


@dataclass(frozen=True)
class Layout:
    """Sizes that every module shares.

    d_aux: width of the auxiliary's residual stream (D); stack: weight rows in one prefix embedding (S); shards: parts
    of a row (S'); d_h: width of one chunk of the linear modules; n_heads: chunks of an embedding (H_sim); max_length:
    longest text (T).
    """

    d_aux: int
    stack: int
    shards: int
    d_h: int
    n_heads: int
    max_length: int

    @property
    def pitch(self) -> int:
        """Return the width of a slot, ``S' * d_h >= D``; also the height and width of a weight tile."""
        return self.shards * self.d_h

    @property
    def n_prefixes(self) -> int:
        """Return K: prefix embeddings of one weight tile."""
        return self.pitch // self.stack

    @property
    def main_heads(self) -> int:
        """Return the number of heads (s, j) that hold the S stacked rows' shards; head (s, j) has index
        ``s * S' + j``."""
        return self.stack * self.shards

    @property
    def d_sim(self) -> int:
        """Return the width of the simulator's embeddings."""
        return self.n_heads * self.d_h

    @property
    def n_slots(self) -> int:
        """Return the number of slots that an embedding has room for."""
        return self.n_heads // self.shards

    @property
    def sim_seq_len(self) -> int:
        """Return T_sim: prefixes, then tokens."""
        return self.n_prefixes + self.max_length

    def tiles(self, width: int) -> int:
        """Return the number of tiles that a value or weight side of `width` is cut into."""
        return -(-width // self.pitch)

    def broken(self, has_bias: bool, slots: int, head_dims: Collection[int]) -> list[str]:
        """Return the conditions of construction.md, section 3.1 that fail, as sentences.

        has_bias: whether any weights hold a bias; slots: the most slots that a module reads together; head_dims: widths
        of the auxiliary's attention heads. Softmax attention views an embedding in chunks of head_dim, so every slot
        has to begin at a multiple of it; the linear modules' chunks need not.
        """
        k = self.n_prefixes
        bias_heads = 0
        if has_bias:
            bias_heads = self.shards
        heads = ", ".join(map(str, sorted(head_dims)))
        conditions = [
            (self.pitch >= self.d_aux, f"S' * d_h = {self.pitch} must be at least the width {self.d_aux}"),
            (self.pitch % self.stack == 0, f"S = {self.stack} must divide the slot width S' * d_h = {self.pitch}"),
            (self.d_h >= k, f"d_h = {self.d_h} must be at least K = {k}; raise S or lower S'"),
            (
                self.n_heads >= self.main_heads + bias_heads,
                f"H_sim = {self.n_heads} must be at least S * S' + n_b = {self.main_heads} + {bias_heads}",
            ),
            (self.n_slots >= slots, f"{slots} slots of width {self.pitch} must fit into D_sim = {self.d_sim}"),
            (
                all(self.pitch % d == 0 for d in head_dims),
                f"the heads' width ({heads}) must divide the slot width S' * d_h = {self.pitch}",
            ),
            (
                all(self.d_sim % d == 0 for d in head_dims),
                f"the heads' width ({heads}) must divide D_sim = {self.d_sim}",
            ),
        ]
        return [sentence for holds, sentence in conditions if not holds]

    def check(self, has_bias: bool, slots: int, head_dims: Collection[int]) -> Layout:
        """Raise `OptionError` with the conditions that fail; return self if none does."""
        if sentences := self.broken(has_bias, slots, head_dims):
            raise infeasible(self.stack, self.shards, sentences)
        return self

    def to_attributes(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_attributes(cls, attributes: dict[str, Any]) -> Layout:
        return cls(**attributes)


def infeasible(stack: int, shards: int, sentences: Sequence[str]) -> OptionError:
    """Return the error for a choice of S and S' with the conditions that it breaks."""
    return OptionError(f"S = {stack}, S' = {shards} is not a feasible layout: {'; '.join(sentences)}.")
