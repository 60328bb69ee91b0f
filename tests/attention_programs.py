"""A decoder written by hand whose attention has windows, soft caps, ALiBi, sinks, scales, gains or norms of heads."""

from __future__ import annotations

from typing import Any

import torch
from programs import Sketch

from tintc.ir import auxiliary as aux
from tintc.ir.core import Program, Value

HEADS, DIM, VOCAB = 3, 6, 11


def decoder(
    kv_heads: int = 1,
    width: int = 18,
    q_norm: dict[str, Any] | None = None,
    v_norm: bool = False,
    value_dim: int = 0,
    layers: int = 2,
    **options: Any,
) -> tuple[Program, dict[str, torch.Tensor]]:
    """q_norm: the attributes of norms on q and k; v_norm: a norm of each value head, without gain."""
    make = Sketch(width, norm_kind="rms", bias=False)
    rotary = make.parameter("inv_freq", 2, scale=1.0)
    gain = make.parameter("gain", DIM, scale=1.0)
    options = {"gain": gain} | options if options.pop("gained", False) else options
    if options.pop("scaled", False):
        options["query_scale"] = make.parameter("query_scale", 9, scale=1.0)
    if options.pop("sunk", False):
        options["sinks"] = make.parameter("sinks", HEADS, scale=2.0)
    x = make.embedding("wte", VOCAB)
    for make.layer in range(layers):
        stem = f"h.{make.layer}"
        normed = make.norm(f"{stem}.ln1", x)
        q = make.linear(f"{stem}.q", normed, HEADS * DIM, "query")
        k = make.linear(f"{stem}.k", normed, kv_heads * DIM, "key")
        v = make.linear(f"{stem}.v", normed, kv_heads * (value_dim or DIM), "value")
        if q_norm is not None:
            q, k = head_norm(make, f"{stem}.qn", q, HEADS, q_norm), head_norm(make, f"{stem}.kn", k, kv_heads, q_norm)
        if v_norm:
            v = make.add(aux.Norm, f"{stem}.vn", v.type.width, v, kind="rms", eps=1e-5, groups=kv_heads, role="layer")
        shape = {"n_heads": HEADS, "n_kv_heads": kv_heads, "head_dim": DIM, "scale": 0.4, "rotary_style": "half"}
        shape |= {"inv_freq": rotary, "value_dim": value_dim}
        y = make.add(aux.Attention, f"{stem}.mix", HEADS * (value_dim or DIM), q, k, v, **shape, **options)
        mid = make.sum(f"{stem}.mid", x, make.linear(f"{stem}.o", y, width, "output"))
        x = make.sum(f"{stem}.out", mid, make.feed_forward(f"{stem}.ffn", make.norm(f"{stem}.ln2", mid), 20, True))
    make.layer = -1
    return make.finish(make.norm("lnf", x, "final"), VOCAB, layers)


def head_norm(make: Sketch, name: str, x: Value, heads: int, given: dict[str, Any]) -> Value:
    """kind, and shared: one gain for all heads, else one each; whole: the heads together are one vector."""
    groups = 1 if given.get("whole") else heads
    width = x.type.width // groups
    shape = (width,) if given.get("shared", True) or groups == 1 else (groups, width)
    names = {"weight": make.parameter(f"{name}.weight", *shape, scale=1.0)}
    if given["kind"] == "layer":
        names["bias"] = make.parameter(f"{name}.bias", *shape)
    return make.add(aux.Norm, name, x.type.width, x, kind=given["kind"], eps=1e-5, groups=groups, role="qk", **names)
