"""What kernels are compared with: the definitions, in fp64."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tintc.ir.functions import causal_mask, soft_capped

ATTENTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "groups": {"heads": 6, "kv_heads": 2, "length": 70},
    "last queries": {"queries": 5},
    "padding": {"padded": True},
    "window": {"window": 3, "padded": True},
    "soft cap": {"cap": 2.0},
    "alibi": {"alibi": True, "padded": True},
    "sinks": {"sunk": True, "padded": True},
    "wide values": {"width": 12, "values": 20},
}


def attention_case(name: str, dtype: torch.dtype, device: Any = "cpu") -> tuple[Tensor, Tensor, Tensor, Any]:
    """Queries, keys, gradients of the results, and the options of `triton_attention`."""
    from tintc.ir.simulator.kernels.triton_attention import Scores

    given: dict[str, Any] = {"heads": 3, "kv_heads": 3, "length": 37, "width": 8, "values": 8} | ATTENTIONS[name]
    length, queries = given["length"], given.get("queries", given["length"])
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    q = random(2, given["heads"], length, given["width"])[:, :, length - queries :]
    k = random(2, given["kv_heads"], length, given["width"])
    dy = random(2, queries, given["heads"], given["values"]).transpose(1, 2)
    options: dict[str, Any] = {"scale": 0.4, "soft_cap": given.get("cap", 0.0)}
    if given.get("padded"):
        seen = causal_mask(length, torch.device(device), given.get("window", 0)).expand(2, length, length).clone()
        seen[0, :, :4] = False  # its first queries see nothing
        options["mask"] = seen[:, None]
    if given.get("alibi"):
        options["slopes"] = torch.tensor([0.5, 0.25, 0.125], device=device)
        options["positions"] = torch.arange(length, device=device).expand(2, -1) - 1
    if given.get("sunk"):
        options["sinks"] = random(given["heads"])
    return q, k, dy, Scores(**options)


def values_by_definition(q: Tensor, k: Tensor, dy: Tensor, options: Any) -> Tensor:
    """``dV = P^T dO`` of each key/value head, in fp64."""
    q, k, dy = q.double(), k.double(), dy.double()
    group, n, m = q.shape[1] // k.shape[1], q.shape[2], k.shape[2]
    scores = soft_capped(options.scale * q @ k.repeat_interleave(group, 1).transpose(-1, -2), options.soft_cap)
    if options.slopes is not None:
        apart = options.positions[:, None, None, :] - options.positions[:, None, m - n :, None]
        scores = scores + options.slopes.double()[:, None, None] * apart
    seen = torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
    if options.mask is not None:
        seen = options.mask
    scores = scores.masked_fill(~seen, -math.inf)
    if options.sinks is not None:
        sinks = options.sinks.double()[:, None, None].expand(*scores.shape[:-1], 1)
        scores = torch.cat((scores, sinks), -1)
    weights = scores.softmax(-1)[..., :m].nan_to_num(0.0)
    return (weights.transpose(-1, -2) @ dy).unflatten(1, (k.shape[1], group)).sum(2)


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Fail unless all numbers are within `tolerance` of the largest."""
    assert found.shape == wanted.shape
    worst = float((found.double() - wanted).abs().max() / wanted.abs().max())
    assert worst < tolerance, worst
