"""The layout of a simulator: how wide it is, and where weights and values sit in its embeddings (spec, section 3)."""

from __future__ import annotations

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
        """Width of a slot, ``S' * d_h >= D``; also the height and width of a weight tile."""
        return self.shards * self.d_h

    @property
    def n_prefixes(self) -> int:
        """K: prefix embeddings of one weight tile."""
        return self.pitch // self.stack

    @property
    def main_heads(self) -> int:
        """Heads (s, j) that hold the S stacked rows' shards; head (s, j) has index ``s * S' + j``."""
        return self.stack * self.shards

    @property
    def d_sim(self) -> int:
        return self.n_heads * self.d_h

    @property
    def n_slots(self) -> int:
        return self.n_heads // self.shards

    @property
    def sim_seq_len(self) -> int:
        """T_sim: prefixes, then tokens."""
        return self.n_prefixes + self.max_length

    def tiles(self, width: int) -> int:
        """How many tiles a value or weight side of `width` is cut into."""
        return -(-width // self.pitch)

    def check(self, has_bias: bool, slots: int, head_dims: set[int]) -> Layout:
        """Raise `OptionError` with the condition that fails; returns self."""
        conditions = [
            (self.pitch >= self.d_aux, f"S' * d_h = {self.pitch} must be at least the width {self.d_aux}"),
            (self.pitch % self.stack == 0, f"S = {self.stack} must divide the slot width {self.pitch}"),
            (
                self.d_h >= self.n_prefixes,
                f"d_h = {self.d_h} must be at least K = {self.n_prefixes}; raise S or lower S'",
            ),
            (
                self.n_heads >= self.main_heads + (self.shards if has_bias else 0),
                f"H_sim = {self.n_heads} must be at least S * S' + n_b",
            ),
            (self.n_slots >= slots, f"{slots} slots of width {self.pitch} must fit into D_sim = {self.d_sim}"),
            (
                all(self.d_h % d == 0 for d in head_dims),
                f"head widths {sorted(head_dims)} must divide d_h = {self.d_h}",
            ),
        ]
        broken = [sentence for holds, sentence in conditions if not holds]
        if broken:
            raise OptionError(f"S = {self.stack}, S' = {self.shards} is not a feasible layout: {'; '.join(broken)}.")
        return self

    def to_attributes(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_attributes(cls, attributes: dict[str, Any]) -> Layout:
        return cls(**attributes)
