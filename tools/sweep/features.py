"""What a decoder consists of, read off its program: norms, positions, attention, feed-forward."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tintc.ir.auxiliary import Activation, Attention, AuxOp, Gate, Norm, PositionEmbedding, Route
from tintc.ir.core import Program

SCORES = {"window": "window", "soft_cap": "softcap", "query_scale": "scaled by position", "sinks": "sinks"}
"""What attentions may do to their scores, by attribute."""
ONE_KEY_HEAD = "multi-query"
"""Attention with one head of keys and values."""
NAMES = {"rms": "RMSNorm", "layer": "LayerNorm"}


@dataclass(frozen=True)
class Features:
    """Words for a table."""

    norms: str
    positions: str
    attention: str
    feed_forward: str


def features_of(program: Program) -> Features:
    """Return the features of a program whose roles are assigned."""
    ops = [op for op in program.ops if isinstance(op, AuxOp)]
    return Features(_norms(ops), _positions(ops, program), _attention(ops), _feed_forward(ops))


def _norms(ops: list[AuxOp]) -> str:
    norms = [op for op in ops if isinstance(op, Norm)]
    kinds = _listed(NAMES.get(op.kind, op.kind) for op in norms if op.role != "qk")
    if any(op.role == "qk" for op in norms):
        kinds += ", on q and k"
    return kinds


def _positions(ops: list[AuxOp], program: Program) -> str:
    words: list[str] = []
    if any(isinstance(op, PositionEmbedding) for op in ops):
        words.append("table")
    for op in ops:
        if not isinstance(op, Attention):
            continue
        frequencies = getattr(op, "inv_freq", "")
        if frequencies:
            part = 2 * program.parameters[frequencies].shape[0] < op.head_dim
            words.append(f"rotary, {op.rotary_style}" + ", part of a head" * part)
        if getattr(op, "slopes", ()):
            words.append("ALiBi")
    return _listed(words) or "none"


def _attention(ops: list[AuxOp]) -> str:
    words = []
    for op in ops:
        if isinstance(op, Attention):
            kind = "grouped"
            if op.n_kv_heads == op.n_heads:
                kind = "multi-head"
            elif op.n_kv_heads == 1:
                kind = ONE_KEY_HEAD
            more = [word for key, word in SCORES.items() if getattr(op, key)]
            words.append(" + ".join([kind, *more]))
    return _listed(words)


def _feed_forward(ops: list[AuxOp]) -> str:
    gates = [f"gated {op.fn}" for op in ops if isinstance(op, Gate) and not _is_routed(op)]
    plain = [op.fn for op in ops if isinstance(op, Activation) and not _is_routed(op)]
    return _listed([*gates, *plain, *_experts(ops)])


def _is_routed(op: AuxOp) -> bool:
    return op.result.type.kind == "routed"


def _experts(ops: list[AuxOp]) -> list[str]:
    """Return what the experts are, and how they are chosen."""
    words = [f"experts, gated {op.fn}" for op in ops if isinstance(op, Gate) and _is_routed(op)]
    words += [f"experts, {op.fn}" for op in ops if isinstance(op, Activation) and _is_routed(op)]
    for op in ops:
        if isinstance(op, Route):
            parts = [op.scores, "with a bias" * bool(op.bias), "in groups" * (op.groups > 1)]
            words.append("chosen by " + " ".join(filter(None, parts)))
    return words


def _listed(words: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(words))
