"""Padding in recurrences and short convolutions of an exported graph, which has none.

Overrides of single nodes, like the approximations. Attention obeys a mask (`placed`); a state and a convolution read
every token before, and so must be told which tokens are none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from tintc.frontend.agreement import check_agreement
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.importer import Recognised
from tintc.frontend.mixers.ops import convolution_of_tokens, recurrence_of_tokens
from tintc.frontend.padding import reading_biases
from tintc.ir.auxiliary import Convolution
from tintc.reference.approximations import Lookup, Override
from tintc.reference.scores import recurrence_of


def mixes_by_state(captured: CapturedGraph) -> bool:
    """Return True if the graph has recurrences or short convolutions."""
    return any(node.target in (recurrence_of_tokens, convolution_of_tokens) for node in captured.module.graph.nodes)


def padded_mixers(
    captured: CapturedGraph, overrides: Mapping[Node, Override], real: Tensor, padding: Mapping[Node, Tensor]
) -> dict[Node, Override]:
    """Return overrides by which padding is nothing to recurrences and reads as ``padding [C]`` in short convolutions,
    zero where none is given.

    overrides: those that the graph has already; real ``[T]`` bool: the tokens that are no padding.
    """
    padded: dict[Node, Override] = {}
    for node in captured.module.graph.nodes:
        if node.target is recurrence_of_tokens:
            padded[node] = _PaddedRecurrence(node, real, getattr(overrides.get(node), "scores", False) is not False)
        elif node.target is convolution_of_tokens:
            padded[node] = _PaddedConvolution(node, real, padding.get(node))
    return padded


def padding_vectors(model: nn.Module, graph: CapturedGraph, recognised: Recognised, limit: int) -> dict[Node, Tensor]:
    """Return what padding reads as in the convolutions of the model's graph, ``[C]``, where that is not zero.

    A graph does not say whether a model puts zeros in front of a convolution or of the linear layer before it, whose
    bias is read then; the model itself does. limit: longest text.
    """
    biased = reading_biases(graph, recognised.program)
    if biased is None:
        return {}
    programs = (recognised.program, biased)
    agreeing = check_agreement(graph.name, model, programs, graph.tensors, limit)
    convolutions = {op.result.name: op for op in agreeing.ops if isinstance(op, Convolution) and op.padding}
    vectors: dict[Node, Tensor] = {}
    for node, value in recognised.values.items():
        if node.target is convolution_of_tokens and value.name in convolutions:
            source = agreeing.parameters[convolutions[value.name].padding].source
            vectors[node] = graph.tensors[source]
    return vectors


class _PaddedRecurrence:
    def __init__(self, node: Node, real: Tensor, detached: bool):
        self.node = node
        self.real = real
        self.detached = detached
        self.inputs = tuple(node.all_input_nodes)

    def __call__(self, lookup: Lookup, dtype: torch.dtype | None) -> Tensor:
        return recurrence_of(self.node, lookup, self.detached, self.real[None])


class _PaddedConvolution:
    def __init__(self, node: Node, real: Tensor, padding: Tensor | None):
        self.node = node
        self.real = real
        self.padding = padding
        self.inputs = tuple(node.all_input_nodes)

    def __call__(self, lookup: Lookup, dtype: torch.dtype | None) -> Tensor:
        arguments: Any = map_arg(self.node.args, lookup)
        x, weight, bias = arguments
        padding = x.new_zeros(())
        if self.padding is not None:
            padding = self.padding.to(x)
        return convolution_of_tokens(torch.where(self.real.to(x.device)[None, :, None], x, padding), weight, bias)
