"""`tune`: fine-tuning written out, on a captured graph, with the approximations one asks for.

    logits before  <- the model
    N times:          loss over the train tokens; gradients; p <- p - lr * gradient, of the parameters that descend
    logits after   <- the model with the new parameters

Every text of a batch is trained and run on its own: a simulator keeps updated weights per example.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from tintc.errors import InputError, OptionError
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.importer import Recognised, recognise
from tintc.ir.auxiliary import Linear
from tintc.reference.approximations import Approximations
from tintc.reference.captured import Override, detached_scores, run_nodes
from tintc.reference.groups import factors, layer_parameters
from tintc.reference.placed import masked_scores, moved_positions
from tintc.reference.regions import difference_regions

LOSSES = ("ce", "quad", "mse")
_RECOGNISED: weakref.WeakKeyDictionary[CapturedGraph, Recognised] = weakref.WeakKeyDictionary()

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Tuned:
    """What `tune` found, by the names that a simulator's output has.

    logits_before, logits: ``[B, T, V]``, of the model and of what it was tuned to (`before` and `after` are their old
    names); gradients: for every step, the update
    over minus the learning rate of each parameter that descends, by its name in the model, ``[B, *shape]``; rows of a
    tensor that do not descend are zero; losses ``[N, B]``: the summed loss in which each step begins.
    """

    logits_before: Tensor
    logits: Tensor
    gradients: tuple[Tensors, ...]
    losses: Tensor

    @property
    def before(self) -> Tensor:
        """`logits_before`; warns."""
        return self._renamed("before", "logits_before")

    @property
    def after(self) -> Tensor:
        """`logits`; warns."""
        return self._renamed("after", "logits")

    def _renamed(self, old: str, new: str) -> Tensor:
        warnings.warn(f"Tuned.{old} is called {new} now, as in a simulator's output.", DeprecationWarning, stacklevel=3)
        return getattr(self, new)


def tune(
    model: nn.Module | CapturedGraph,
    input_ids: Tensor,
    train_mask: Tensor | None = None,
    *,
    loss_mask: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    inner_lr: float = 1e-4,
    n_steps: int = 1,
    n_update_layers: int | None = None,
    loss: str = "ce",
    semantics: str = "exact",
    approximations: Approximations | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tuned:
    """Fine-tune a decoder on the train tokens of each text, and predict with the result; the model stays as it was.

    model: a transformers model, or what `capture` made of one; input_ids ``[B, T]``; train_mask ``[B, T]`` or, for
    different tokens in each step, ``[N, B, T]``, non-zero is true (None: the first half of the tokens of each text that
    are not padding, as a simulator takes unless told otherwise); loss_mask ``[B, T]`` over target tokens;
    attention_mask ``[B, T]`` (padding, which is not trained on either) or ``[B, T, T]`` (who may see whom, besides
    causality); position_ids ``[B, T]``, less than T (None: counting tokens that are not padding); n_update_layers: top
    layers that descend (None: all, and embeddings and head too where `approximations` name no groups); loss ``ce``,
    ``quad`` or ``mse`` (Remark H.2), summed over tokens; semantics: ``exact`` counts position i if tokens i and i + 1
    are train tokens, ``paper-code`` if i + 1 is; approximations None: those of a simulator with these semantics. With
    fewer than two train tokens nothing is trained.

    Raises `OptionError` and `InputError` for what does not fit, `UnsupportedModelError` if an approximation needs to
    know the graph's parts and they are not recognised.
    """
    graph = model if isinstance(model, CapturedGraph) else capture(model)
    chosen = Approximations.of(semantics) if approximations is None else approximations
    _check(loss, n_steps, inner_lr)
    valid, sees, positions = _placed(input_ids, attention_mask, position_ids)
    train_mask = first_half(valid) if train_mask is None else train_mask
    train = _masks(train_mask, valid, n_steps)
    counts = _counted(train, loss_mask, input_ids, semantics)
    tuning = _Tuning(graph, chosen, n_update_layers, loss, dtype)
    rows = [
        tuning.run(_Text(ids, train[:, index], counts[:, index], sees[index], positions[index]), inner_lr)
        for index, ids in enumerate(input_ids.to(graph.input_ids.meta["val"].device))
    ]
    gradients = tuple(
        {name: torch.stack([row.gradients[n][name] for row in rows]) for name in step}
        for n, step in enumerate(rows[0].gradients)
    )
    return Tuned(
        torch.stack([row.before for row in rows]),
        torch.stack([row.after for row in rows]),
        gradients,
        torch.stack([row.losses for row in rows], 1),
    )


def _check(loss: str, n_steps: int, inner_lr: float) -> None:
    if loss not in LOSSES:
        raise OptionError(f"The loss {loss!r} is unknown; choose one of {', '.join(LOSSES)}.")
    if n_steps < 1:
        raise OptionError(f"The option steps is {n_steps}; it must be at least 1.")
    if not (math.isfinite(inner_lr) and inner_lr >= 0):
        raise OptionError(f"The learning rate is {inner_lr}; it must be a finite number, zero or more.")


def _placed(
    ids: Tensor, mask: Tensor | None, positions: Tensor | None
) -> tuple[Tensor, Sequence[Tensor | None], Sequence[Tensor | None]]:
    """``[B, T]``, the tokens that are not padding; who sees whom and at which positions, text by text, or None."""
    valid, nothing = torch.ones(ids.shape, dtype=torch.bool), [None] * len(ids)
    if positions is not None and positions.shape != ids.shape:
        raise InputError(f"position_ids has shape {tuple(positions.shape)}; it must have that of input_ids.")
    sees = mask
    if mask is not None and mask.shape == ids.shape:
        valid = mask != 0
        sees = valid[:, None, :].expand(*ids.shape, ids.shape[1])
        positions = (valid.long().cumsum(1) - 1).clamp(min=0) if positions is None else positions
    elif mask is not None and mask.shape != (*ids.shape, ids.shape[-1]):
        raise InputError(
            f"attention_mask has shape {tuple(mask.shape)}; it must be that of input_ids, or "
            f"{(*ids.shape, ids.shape[-1])}."
        )
    return valid, nothing if sees is None else list(sees != 0), nothing if positions is None else list(positions)


def first_half(valid: Tensor) -> Tensor:
    """The first half, rounded down, of every text's tokens that are not padding: ``[B, T]`` bool of the same."""
    return valid & (valid.long().cumsum(-1) <= valid.sum(-1, keepdim=True) // 2)


def _masks(mask: Tensor, valid: Tensor, n_steps: int) -> Tensor:
    """The train mask as ``[N, B, T]`` bool, without padding; rows with fewer than two train tokens are emptied."""
    if valid.dim() != 2 or mask.shape not in (valid.shape, (n_steps, *valid.shape)):
        raise InputError(
            f"input_ids {tuple(valid.shape)} and train_mask {tuple(mask.shape)} do not fit; pass [B, T] and [B, T], or "
            f"[{n_steps}, B, T]."
        )
    train = (mask != 0).expand(n_steps, *valid.shape) & valid
    return train & (train.sum(-1, keepdim=True) >= 2)


def _counted(train: Tensor, loss_mask: Tensor | None, ids: Tensor, semantics: str) -> Tensor:
    """Positions whose loss counts, ``[N, B, T]``; the last one never does, for want of a target."""
    target = train if loss_mask is None else train & (loss_mask != 0).expand_as(ids)
    counts = torch.zeros_like(train)
    counts[..., :-1] = target[..., 1:] if semantics == "paper-code" else target[..., 1:] & train[..., :-1]
    return counts


@dataclass(frozen=True)
class _Text:
    """One text: ``ids [T]``, masks ``[N, T]``, and who sees whom ``[T, T]`` at which positions ``[T]``, if that is not
    what the graph computes."""

    ids: Tensor
    train: Tensor
    counts: Tensor
    sees: Tensor | None
    positions: Tensor | None


@dataclass(frozen=True)
class _Row:
    """`Tuned` for one text."""

    before: Tensor
    after: Tensor
    gradients: list[Tensors]
    losses: Tensor


class _Tuning:
    """One model with one choice of approximations."""

    def __init__(
        self,
        graph: CapturedGraph,
        approximations: Approximations,
        n_update_layers: int | None,
        loss: str,
        dtype: torch.dtype,
    ):
        self.graph, self.approximations, self.loss, self.dtype = graph, approximations, loss, dtype
        floats = [name for name in sorted(graph.parameter_names) if graph.tensors[name].is_floating_point()]
        self.parameters = {name: graph.tensors[name].to(dtype) for name in floats}
        if approximations.groups is not None:
            self.factors = factors(self.recognised().program, self.parameters, approximations, n_update_layers)
        elif n_update_layers is not None:
            program = self.recognised().program
            names = layer_parameters(program, graph.origins, self.parameters, n_update_layers)
            self.factors = {name: torch.ones((), dtype=dtype) for name in floats if name in names}
        else:
            self.factors = {name: torch.ones((), dtype=dtype) for name in floats}
        self.overrides: dict[Node, Override] = {}
        if approximations.scores:
            self.overrides |= detached_scores(graph)
        if approximations.norms is not None or approximations.activations is not None:
            found = self.recognised()
            self.overrides |= difference_regions(graph, found, approximations.norms, approximations.activations)

    def recognised(self) -> Recognised:
        if self.graph not in _RECOGNISED:
            _RECOGNISED[self.graph] = recognise(self.graph)
        return _RECOGNISED[self.graph]

    def run(self, text: _Text, inner_lr: float) -> _Row:
        parameters, before, gradients, losses = dict(self.parameters), None, [], []
        ids, overrides = text.ids, self.placed(text)
        for trained, counted in zip(text.train, text.counts, strict=True):
            masks = trained.to(ids.device), counted.to(ids.device)
            logits, loss, gradient = self.step(parameters, ids, *masks, overrides)
            before = logits if before is None else before
            parameters |= {name: parameters[name] - inner_lr * g for name, g in gradient.items()}
            gradients.append(gradient)
            losses.append(loss)
        with torch.no_grad():
            (after,) = run_nodes(self.graph, ids[None], (self.graph.logits,), parameters, self.dtype, overrides)
        assert before is not None
        return _Row(before, after[0], gradients, torch.stack(losses))

    def placed(self, text: _Text) -> dict[Node, Override]:
        """The approximations, with the text's own masks and positions."""
        found = dict(self.overrides)
        if text.sees is not None:
            found |= masked_scores(self.graph, self.overrides, text.sees)
        if text.positions is not None:
            found |= moved_positions(self.graph, text.positions)
        return found

    @torch.enable_grad()
    def step(
        self, parameters: Tensors, ids: Tensor, train: Tensor, counts: Tensor, overrides: Mapping[Node, Override]
    ) -> tuple[Tensor, Tensor, Tensors]:
        """Logits ``[T, V]``, summed loss and gradients at the given parameters."""
        leaves = {name: parameters[name].detach().requires_grad_() for name in self.factors}
        only = train if self.approximations.train_tokens and not _is_prefix(train) else None
        wanted = (self.graph.logits, self.head()[0]) if self.loss == "mse" else (self.graph.logits,)
        found = run_nodes(self.graph, ids[None], wanted, parameters | leaves, self.dtype, overrides, only)
        total = self.summed_loss(found, ids)[counts[:-1]].sum()
        if not total.requires_grad or not counts.any():
            return found[0][0].detach(), total.detach(), {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        pulled = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
        gradients = {name: g * self.factors[name] for name, g in zip(leaves, pulled, strict=True)}
        return found[0][0].detach(), total.detach(), gradients

    def summed_loss(self, found: tuple[Tensor, ...], ids: Tensor) -> Tensor:
        """The loss at every position but the last, ``[T - 1]`` (Appendix H, Remark H.2)."""
        logits, targets = found[0][0, :-1], ids[1:]
        if self.loss == "ce":
            return F.cross_entropy(logits, targets, reduction="none")
        if self.loss == "quad":  # its gradient with respect to the head's input x is E^T (E x + b) - e_next
            return logits.square().sum(-1) / 2 - logits.gather(1, targets[:, None])[:, 0]
        rows = self.parameters[self.head()[1]][targets]
        return (found[1].reshape(len(ids), -1)[:-1] - rows).square().sum(-1) / 2

    def head(self) -> tuple[Node, str]:
        """The node that the language-model head reads, and the head's matrix."""
        found = self.recognised()
        node = next(node for node, value in found.values.items() if value is found.program.outputs["logits"])
        op = found.program.producers()[found.values[node]]
        if not isinstance(op, Linear):
            raise OptionError("The loss mse needs logits that are a linear function of the last layer; choose ce.")
        return found.inputs[node][0], found.program.parameters[op.weight].source


def _is_prefix(train: Tensor) -> bool:
    """Whether no token before a train token is left out. Then no other token receives a gradient, by causality."""
    count = int(train.sum())
    return bool(train[:count].all())
