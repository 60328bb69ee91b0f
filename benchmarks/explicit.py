"""Explicit fine-tuning, to set beside the simulated one: transformers, autograd, one step of gradient descent.

It trains the parameters that a simulator's program says it updates, with the same learning rate and the gradient summed
over the same train tokens. It differentiates everything; the simulator drops gradients through the attention scores,
and so does a model loaded with `stop_gradient`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel

from tintc.evaluation.perplexity import held_out_loss
from tintc.ir.core import Parameter, Program
from tintc.ir.simulator import LinearDescent, NormDescent


def detached_attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, **_: object
) -> tuple[Tensor, None]:
    """Causal attention ``[B, H, T, d] -> [B, T, H, d]`` without padding, whose probabilities are constants."""
    group, length = q.shape[1] // k.shape[1], q.shape[2]
    with torch.no_grad():
        scores = scaling * q @ k.repeat_interleave(group, 1).transpose(-1, -2)
        later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
        probabilities = scores.masked_fill(later, -torch.inf).softmax(-1)
    return (probabilities @ v.repeat_interleave(group, 1)).transpose(1, 2).contiguous(), None


AttentionInterface.register("detached", detached_attention)


def load(path: Path, stop_gradient: bool = False) -> PreTrainedModel:
    """A model folder or GGUF file as transformers loads it, in fp32; stop_gradient: see the module."""
    options: dict[str, Any] = {"dtype": torch.float32}
    if path.suffix == ".gguf":
        path, options["gguf_file"] = path.parent, path.name
    model = AutoModelForCausalLM.from_pretrained(path, **options).eval()
    if stop_gradient:
        model.set_attn_implementation("detached")
    return model


def updated_parameters(program: Program) -> Iterator[Parameter]:
    """What a simulator's program updates, as views of the checkpoint's tensors."""
    descents = [op for op in program.ops if isinstance(op, LinearDescent | NormDescent)]
    targets = {op.target: isinstance(op, NormDescent) for op in descents}
    for target, bias_only in targets.items():
        for part in ("bias",) if bias_only else ("weight", "bias"):
            if f"{target}.{part}" in program.parameters:
                yield program.parameters[f"{target}.{part}"]


def mask_of(parameter: Parameter, tensor: Tensor) -> Tensor:
    """A mask ``[...]`` of the checkpoint's shape: true where the parameter's values are."""
    mask = torch.zeros_like(tensor, dtype=torch.bool)
    rows = mask.T if parameter.transpose else mask
    for start, stop in parameter.rows or ((0, rows.shape[0]),):
        rows[start:stop] = True
    return mask


@torch.enable_grad()
def descend(model: PreTrainedModel, program: Program, ids: Tensor, lr: float) -> dict[str, Tensor]:
    """One step on ``ids [1, t]``, in place; returns the weights as they were."""
    named = dict(model.named_parameters(remove_duplicate=False))
    masks: dict[str, Tensor] = {}
    for parameter in updated_parameters(program):
        here = mask_of(parameter, named[parameter.source])
        masks[parameter.source] = masks[parameter.source] | here if parameter.source in masks else here
    logits = model(ids, use_cache=False).logits
    loss = F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")
    gradients = torch.autograd.grad(loss, [named[name] for name in masks])
    before = {name: named[name].detach().clone() for name in masks}
    with torch.no_grad():
        for (name, mask), gradient in zip(masks.items(), gradients, strict=True):
            named[name].sub_(lr * gradient * mask)
    return before


@torch.no_grad()
def perplexities(
    model: PreTrainedModel, program: Program, blocks: Tensor, train: int, lr: float
) -> tuple[float, float]:
    """Perplexity of the test tokens of ``blocks [n, size]`` before and after a step on each block's first tokens."""
    losses = [0.0, 0.0]
    named = dict(model.named_parameters(remove_duplicate=False))
    for block in blocks:
        ids = block[None]
        losses[0] += held_out_loss(model(ids, use_cache=False).logits, ids, train)
        before = descend(model, program, ids[:, :train], lr)
        losses[1] += held_out_loss(model(ids, use_cache=False).logits, ids, train)
        for name, tensor in before.items():
            named[name].copy_(tensor)
    count = len(blocks) * (blocks.shape[1] - train)
    return math.exp(losses[0] / count), math.exp(losses[1] / count)
