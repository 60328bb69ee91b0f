"""Gradient steps on one text after another, of a captured graph with approximations: what `tune` runs."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from tintc.errors import OptionError
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.importer import Recognised, recognise
from tintc.ir.auxiliary import Linear
from tintc.reference.approximations import Approximations, Override
from tintc.reference.captured import run_nodes
from tintc.reference.experts import approximate_experts
from tintc.reference.groups import factors, layer_parameters
from tintc.reference.optimisers import Layer, Stepper, Steps, layers_of
from tintc.reference.padded import padded_mixers
from tintc.reference.placed import masked_scores, moved_positions
from tintc.reference.regions import difference_regions
from tintc.reference.scores import approximate_scores

RECOGNISED: weakref.WeakKeyDictionary[CapturedGraph, Recognised] = weakref.WeakKeyDictionary()

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Text:
    """One text: ``ids [T]``, masks ``[N, T]``, tokens that are no padding ``[T]``, and who sees whom ``[T, T]`` at
    which positions ``[T]``, if that is not what the graph computes."""

    ids: Tensor
    train: Tensor
    loss_positions: Tensor
    valid: Tensor
    sees: Tensor | None
    positions: Tensor | None


@dataclass(frozen=True)
class TunedRow:
    """`Tuned` for one text."""

    before: Tensor
    after: Tensor
    gradients: list[Tensors]
    losses: Tensor


class Tuning:
    """One model with one choice of approximations. padding: what padding reads as in short convolutions, ``[C]``, where
    that is not zero."""

    def __init__(
        self,
        graph: CapturedGraph,
        approximations: Approximations,
        n_update_layers: int | None,
        loss: str,
        dtype: torch.dtype,
        steps: Steps,
    ):
        self.graph = graph
        self.approximations = approximations
        self.loss = loss
        self.dtype = dtype
        self.steps = steps
        floats = [name for name in sorted(graph.parameter_names) if graph.tensors[name].is_floating_point()]
        self.parameters = {name: graph.tensors[name].to(dtype) for name in floats}
        if approximations.groups is not None:
            self.factors = factors(self.recognised().program, graph, self.parameters, approximations, n_update_layers)
        elif n_update_layers is not None:
            program = self.recognised().program
            names = layer_parameters(program, graph.origins, self.parameters, n_update_layers)
            self.factors = {name: torch.ones((), dtype=dtype) for name in floats if name in names}
        else:
            self.factors = {name: torch.ones((), dtype=dtype) for name in floats}
        self.layers: list[Layer] = []
        if steps.options.norm_of not in (None, "all"):
            program = None
            if approximations.groups is not None or n_update_layers is not None:
                program = self.recognised().program
            self.layers = layers_of(program, self.factors)
        self.padding: dict[Node, Tensor] = {}
        self.overrides: dict[Node, Override] = {}
        if approximations.scores:
            self.overrides |= approximate_scores(graph, approximations.scores)
        if approximations.norms is not None or approximations.activations is not None:
            parts = self.recognised()
            self.overrides |= difference_regions(graph, parts, approximations.norms, approximations.activations)
        if approximations.router or approximations.activations is not None:
            self.overrides |= approximate_experts(graph, self.recognised, approximations)

    def recognised(self) -> Recognised:
        if self.graph not in RECOGNISED:
            RECOGNISED[self.graph] = recognise(self.graph)
        return RECOGNISED[self.graph]

    def run(self, text: Text, inner_lr: float) -> TunedRow:
        parameters = dict(self.parameters)
        stepper = Stepper(self.steps, self.layers, self.parameters)
        before: Tensor | None = None
        gradients: list[Tensors] = []
        losses: list[Tensor] = []
        ids = text.ids
        overrides = self.placed(text)
        for trained, counted in zip(text.train, text.loss_positions, strict=True):
            masks = trained.to(ids.device), counted.to(ids.device)
            logits, loss, gradient = self.step(parameters, ids, *masks, overrides)
            if before is None:
                before = logits
            parameters |= stepper.step(parameters, gradient, inner_lr)
            gradients.append(gradient)
            losses.append(loss)
        with torch.no_grad():
            (after,) = run_nodes(self.graph, ids[None], (self.graph.logits,), parameters, self.dtype, overrides)
        assert before is not None
        return TunedRow(before, after[0], gradients, torch.stack(losses))

    def placed(self, text: Text) -> dict[Node, Override]:
        """Return the approximations, with the text's own masks and positions."""
        overrides = dict(self.overrides)
        if text.sees is not None:
            overrides |= masked_scores(self.graph, self.overrides, text.sees)
        if text.positions is not None:
            overrides |= moved_positions(self.graph, text.positions, text.valid)
        if not bool(text.valid.all()):
            overrides |= padded_mixers(self.graph, self.overrides, text.valid, self.padding)
        return overrides

    @torch.enable_grad()
    def step(
        self, parameters: Tensors, ids: Tensor, train: Tensor, positions: Tensor, overrides: Mapping[Node, Override]
    ) -> tuple[Tensor, Tensor, Tensors]:
        """Return logits ``[T, V]``, summed loss and gradients at these parameters. positions: whose loss counts."""
        leaves = {name: parameters[name].detach().requires_grad_() for name in self.factors}
        only = None
        if self.approximations.train_tokens and not is_prefix(train):
            only = train
        wanted: tuple[Node, ...] = (self.graph.logits,)
        if self.loss == "mse":
            wanted = (self.graph.logits, self.head()[0])
        values = run_nodes(self.graph, ids[None], wanted, parameters | leaves, self.dtype, overrides, only)
        total = self.summed_loss(values, ids)[positions[:-1]].sum()
        if not total.requires_grad or not positions.any():
            return (
                values[0][0].detach(),
                total.detach(),
                {name: torch.zeros_like(leaf) for name, leaf in leaves.items()},
            )
        pulled = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
        gradients = {name: g * self.factors[name] for name, g in zip(leaves, pulled, strict=True)}
        return values[0][0].detach(), total.detach(), gradients

    def summed_loss(self, values: tuple[Tensor, ...], ids: Tensor) -> Tensor:
        """Return the loss at every position but the last, ``[T - 1]`` (Appendix H, Remark H.2)."""
        logits = values[0][0, :-1]
        targets = ids[1:]
        if self.loss == "ce":
            return F.cross_entropy(logits, targets, reduction="none")
        if self.loss == "quad":  # its gradient with respect to the head's input x is E^T (E x + b) - e_next
            return logits.square().sum(-1) / 2 - logits.gather(1, targets[:, None])[:, 0]
        rows = self.parameters[self.head()[1]][targets]
        return (values[1].reshape(len(ids), -1)[:-1] - rows).square().sum(-1) / 2

    def head(self) -> tuple[Node, str]:
        """Return the node that the language-model head reads, and the head's matrix."""
        parts = self.recognised()
        node = next(node for node, value in parts.values.items() if value is parts.program.outputs["logits"])
        op = parts.program.producers()[parts.values[node]]
        if not isinstance(op, Linear):
            raise OptionError("The loss mse needs logits that are a linear function of the last layer; choose ce.")
        return parts.inputs[node][0], parts.program.parameters[op.weight].source


def is_prefix(train: Tensor) -> bool:
    """Return True if no token before a train token is left out: no other then receives a gradient, by causality."""
    count = int(train.sum())
    return bool(train[:count].all())
