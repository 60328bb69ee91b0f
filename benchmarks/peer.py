"""The peer of the speed benchmarks: explicit fine-tuning with transformers and autograd, as fast as it plainly gets.

It trains the parameters that a simulator's program updates, on the train tokens alone, and runs the whole text with the
result; then the weights are what they were. Attention is PyTorch's fused one. Where the checkpoint keeps several layers
in one tensor (GPT-2's q, k and v), autograd differentiates the tensor, and the rows that the program updates are
stepped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tintc.ir.core import Parameter, Program
from tintc.ir.simulator import ExpertsDescent, LinearDescent, NormDescent

DETACHED = "sdpa_detached_scores"


def detached_scores(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """Attention whose scores are constants for autograd, as they are for the simulator."""
    return sdpa_attention_forward(module, query.detach(), key.detach(), value, *args, **kwargs)


AttentionInterface.register(DETACHED, detached_scores)
AttentionMaskInterface.register(DETACHED, sdpa_mask)


def updated(program: Program) -> Iterator[Parameter]:
    """What a simulator's program updates, as views of the checkpoint's tensors."""
    descents = [op for op in program.ops if isinstance(op, LinearDescent | ExpertsDescent | NormDescent)]
    targets = {op.target: isinstance(op, NormDescent) for op in descents}
    for target, bias_only in targets.items():
        for part in ("bias",) if bias_only else ("weight", "bias"):
            if f"{target}.{part}" in program.parameters:
                yield program.parameters[f"{target}.{part}"]


def views(tensor: Tensor, parameter: Parameter) -> list[Tensor]:
    """The parts of the checkpoint's tensor that the parameter stands for."""
    if parameter.rows is None:
        return [tensor]
    axis = int(parameter.stacked) + int(parameter.transpose)
    return [tensor[(slice(None),) * axis + (slice(*run),)] for run in parameter.rows]


@dataclass
class Peer:
    """Explicit fine-tuning of `model` as `program` would: n_steps of descent with rate `lr` on every text.

    swap: put the new weights in the old ones' place and the old ones back, instead of stepping in place and copying;
    this saves memory traffic, but works for whole tensors only.
    """

    model: PreTrainedModel
    program: Program
    lr: float
    swap: bool = False
    call: Callable[..., Any] = field(init=False)

    def __post_init__(self) -> None:
        self.call = self.model
        named = dict(self.model.named_parameters(remove_duplicate=False))
        self.parameters: dict[str, Tensor] = {}
        self.parts: list[tuple[str, Parameter]] = []
        for parameter in updated(self.program):
            self.parameters[parameter.source] = named[parameter.source]
            self.parts.append((parameter.source, parameter))
        for parameter in named.values():
            parameter.requires_grad_(False)
        for tensor in self.parameters.values():
            tensor.requires_grad_(True)

    def compile(self) -> Peer:
        """Run the model through torch.compile from here on."""
        torch._dynamo.reset()
        self.call = torch.compile(self.model, dynamic=False)
        return self

    def detach_scores(self) -> Peer:
        self.model.set_attn_implementation(DETACHED)
        return self

    def attach_scores(self) -> Peer:
        self.model.set_attn_implementation("sdpa")
        return self

    def run(self, ids: Tensor, train: int) -> Tensor:
        """Logits ``[1, T, V]`` of ``ids [1, T]`` after training on its first `train` tokens."""
        kept = {} if self.swap else {id(part): part.detach().clone() for part in self._views()}
        old = {name: tensor.data for name, tensor in self.parameters.items()}
        for _ in range(self.program.attributes["n_steps"]):
            self._step(ids[:, :train])
        with torch.no_grad():
            logits = self.call(ids, use_cache=False).logits
            if self.swap:
                for name, tensor in self.parameters.items():
                    tensor.data = old[name]
            else:
                for part, saved in zip(self._views(), kept.values(), strict=True):
                    part.copy_(saved)
        return logits

    def run_batch(self, ids: Tensor, train: int) -> Tensor:
        """Every example with an update of its own, one by one."""
        return torch.cat([self.run(row[None], train) for row in ids])

    def _views(self) -> list[Tensor]:
        return [part for name, parameter in self.parts for part in views(self.parameters[name].data, parameter)]

    def _step(self, ids: Tensor) -> None:
        with torch.enable_grad():
            logits = self.call(ids, use_cache=False).logits
            loss = F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")
            gradients = torch.autograd.grad(loss, list(self.parameters.values()))
        by_name = dict(zip(self.parameters, gradients, strict=True))
        with torch.no_grad():
            if self.swap:
                for name, gradient in by_name.items():
                    self.parameters[name].data = self._moved(name, gradient)
                return
            for name, parameter in self.parts:
                for part, gradient in zip(
                    views(self.parameters[name].data, parameter), views(by_name[name], parameter), strict=True
                ):
                    part.sub_(gradient, alpha=self.lr)

    def _moved(self, name: str, gradient: Tensor) -> Tensor:
        """The stepped tensor, written over its gradient; rows that are not updated keep their values."""
        old = self.parameters[name].data
        covered = [part for source, parameter in self.parts if source == name for part in views(old, parameter)]
        if sum(part.numel() for part in covered) == old.numel():
            return gradient.mul_(-self.lr).add_(old)
        new = old.clone()
        for source, parameter in self.parts:
            if source == name:
                for part, change in zip(views(new, parameter), views(gradient, parameter), strict=True):
                    part.sub_(change, alpha=self.lr)
        return new


def update_error(found: Tensor, right: Tensor, before: Tensor) -> float:
    """How far logits are from the right ones, as a part of what the update has changed."""
    return float((found - right).norm() / (right - before).norm())
