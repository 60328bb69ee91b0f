"""Mixtures of experts in an exported graph: one node a layer, in place of transformers' loop over the experts.

transformers' modules of experts hand their weights to a function that the configuration names. During an export that is
`tintc::experts`, an operation without a body, so that what a graph holds does not depend on which experts the tokens
choose. `fill_in` then gives every such node a target that computes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from tintc.errors import Reason, UnsupportedModelError
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.evaluation import execute
from tintc.frontend.graph.obstacle_words import SPECIAL_EXPERTS

NAME = "tintc"
"""Under which transformers knows the function."""
EAGER = "eager"
"""transformers' name for the loop over the experts: the only one of its functions that takes every dtype."""
MARK = ("_apply_gate", "has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "config")
"""Attributes of a module whose experts are computed by the function that its configuration names."""
NOT_CHOSEN = -1
"""In place of the number of an expert."""
SIZES = (2, 3)
"""Batch size and length of the vectors on which gates are traced; both are symbolic."""

SCHEMA = "(Tensor x, Tensor index, Tensor weights, Tensor[] parameters, int module) -> Tensor"


def _shape(x: Tensor, index: Tensor, weights: Tensor, parameters: list[Tensor], module: int) -> Tensor:
    return torch.empty_like(x)


if not hasattr(torch.ops.tintc, "experts"):  # operators outlive a module that is imported anew
    torch.library.define("tintc::experts", SCHEMA)
    torch.library.register_fake("tintc::experts", _shape)


@dataclass(frozen=True, eq=False)
class CapturedExperts:
    """What a node of experts computes: ``sum_j weights[t, j] W2 gate(W1 x_t + b1) + b2`` with expert ``index[t, j]``'s.

    It is called with ``x [n, D]``, ``index [n, k]``, ``weights [n, k]`` and the module's parameters: W1 ``[E, F, D]``,
    b1 ``[E, F]`` with `has_bias`, W2, b2; with `is_transposed` W1 and W2 are stored ``[E, in, out]``. Without an index
    (None) the weights are those of all experts, ``[n, E]``, zero where one is not chosen. gate: the graph of what is
    between the two layers, from ``[B, T, F]``; with `scales_input` the weights multiply x instead of the result.
    """

    gate: CapturedGraph
    is_transposed: bool
    has_bias: bool
    scales_input: bool = False
    __name__ = "experts"

    def __call__(self, x: Tensor, index: Tensor | None, weights: Tensor, *parameters: Tensor) -> Tensor:
        return self.compute(x, index, weights, parameters, self.run_gate)

    def compute(
        self,
        x: Tensor,
        index: Tensor | None,
        weights: Tensor,
        parameters: tuple[Tensor, ...],
        gate: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Return the same with another function ``[n, F] -> [n, F']`` as gate."""
        up, up_bias, down, down_bias = self.layers(*parameters)
        if index is None:
            index = torch.arange(weights.shape[1], device=weights.device).masked_fill(weights == 0, NOT_CHOSEN)
        y = torch.zeros_like(x)
        for expert in index.unique().tolist():
            if expert == NOT_CHOSEN:
                continue
            token, place = (index == expert).nonzero(as_tuple=True)
            factor = weights[token, place, None]
            vectors = x[token]
            if self.scales_input:
                vectors = (vectors * factor).to(x.dtype)
            result = self._linear(gate(self._linear(vectors, up, up_bias, expert)), down, down_bias, expert)
            if not self.scales_input:
                result = result * factor
            y = y.index_add(0, token, result.to(y.dtype))
        return y

    def run_gate(self, x: Tensor) -> Tensor:
        """Return the gate's value for vectors ``[n, F]``, in their dtype."""
        values: dict[Node, Any] = {self.gate.input_ids: x[None]}
        for node in self.gate.module.graph.nodes:
            if node.op == "call_function":
                values[node] = execute(node, values.__getitem__, x.dtype)
        return values[self.gate.logits][0]

    def layers(self, *parameters: Any) -> tuple[Any, Any, Any, Any]:
        """Return W1, b1, W2 and b2 of the parameters, or of what stands for them; None for biases that are not."""
        if self.has_bias:
            up, up_bias, down, down_bias = parameters
            return up, up_bias, down, down_bias
        up, down = parameters
        return up, None, down, None

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, expert: int) -> Tensor:
        matrix = weight[expert]
        if not self.is_transposed:
            matrix = matrix.T
        y = x @ matrix
        if bias is None:
            return y
        return y + bias[expert]


@contextmanager
def experts_computed_by(model: nn.Module, name: str) -> Iterator[None]:
    """Let the function of that name compute the model's experts."""
    configs: list[Any] = list({id(module.config): module.config for module in expert_modules(model)}.values())
    kept = [config._experts_implementation_internal for config in configs]
    for config in configs:
        config._experts_implementation_internal = name
    try:
        yield
    finally:
        for config, value in zip(configs, kept, strict=True):
            config._experts_implementation_internal = value


@contextmanager
def opaque_experts(model: nn.Module) -> Iterator[None]:
    """Let every layer of experts be one operation without a body."""
    numbers = {module: number for number, module in enumerate(expert_modules(model))}

    def experts(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        return torch.ops.tintc.experts(
            hidden_states, top_k_index, top_k_weights, _parameters_of(module), numbers[module]
        )

    ALL_EXPERTS_FUNCTIONS[NAME] = experts
    try:
        with experts_computed_by(model, NAME):
            yield
    finally:
        del ALL_EXPERTS_FUNCTIONS[NAME]


def expert_modules(model: nn.Module) -> list[Any]:
    """Return the modules whose experts are computed by the function that their configuration names."""
    return [module for module in model.modules() if all(hasattr(module, key) for key in MARK)]


def fill_in(model: nn.Module, graph: torch.fx.Graph, name: str) -> None:
    """Give every node of experts in an exported graph a target that computes, a `CapturedExperts`.

    name: what messages call the model. Raises `UnsupportedModelError` for experts that are more than two linear layers
    and a function between them.
    """
    modules = expert_modules(model)
    paths = {module: path for path, module in model.named_modules()}
    gates: dict[Hashable, CapturedGraph] = {}
    reasons: list[Reason] = []
    for node in graph.nodes:
        if node.target is not torch.ops.tintc.experts.default:
            continue
        x, index, weights, parameters, number = node.args
        module = modules[number]
        key = _kind(module)
        why = ""
        if module.has_post_expert_norm:
            why = "each expert's result is normalised before the sum, which is not supported"
        elif key not in gates:
            gate = _gate_of(module)
            if gate is None:
                why = "the function between an expert's two layers has weights of its own, which is not supported"
            else:
                gates[key] = gate
        if why:
            reasons.append(Reason("experts", paths[module], why, SPECIAL_EXPERTS))
            continue
        node.target = CapturedExperts(gates[key], module.is_transposed, module.has_bias)
        node.args = (x, index, weights, *parameters)
    if reasons:
        raise UnsupportedModelError(name, reasons, (SPECIAL_EXPERTS,))


def _parameters_of(module: Any) -> list[Tensor]:
    """Return the parameters in the order in which `CapturedExperts` takes them."""
    up = "up_proj"
    if module.has_gate:
        up = "gate_up_proj"
    names = [up, "down_proj"]
    if module.has_bias:
        names = [up, f"{up}_bias", "down_proj", "down_proj_bias"]
    return [getattr(module, name) for name in names]


def _kind(module: Any) -> Hashable:
    """Return what modules with the same gate have in common: their class, numbers and activation."""
    numbers = {key: value for key, value in vars(module).items() if isinstance(value, int | float | str)}
    widths = tuple(tuple(parameter.shape) for parameter in _parameters_of(module))
    return type(module), tuple(sorted(numbers.items())), repr(getattr(module, "act_fn", None)), widths


class _Gate(nn.Module):
    """What a module of experts does between its two layers, on its own."""

    def __init__(self, experts: Any):
        super().__init__()
        self.experts = experts

    def forward(self, hidden: Tensor) -> Tensor:
        if self.experts.has_gate:
            return self.experts._apply_gate(hidden)
        return self.experts.act_fn(hidden)


def _gate_of(module: Any) -> CapturedGraph | None:
    """Return the graph of a module's gate, from ``[B, T, F]``; None if it reads tensors of its own."""
    up = _parameters_of(module)[0]
    width = up.shape[1]
    if module.is_transposed:
        width = up.shape[2]
    return traced_gate(_Gate(module), up, width)


def traced_gate(gate: nn.Module, like: Tensor, width: int) -> CapturedGraph | None:
    """Return the graph of a function of vectors ``[B, T, width]``; None if it reads tensors of its own.

    like: a tensor of their dtype and device.
    """
    hidden = torch.zeros(*SIZES, width, dtype=like.dtype, device=like.device)
    shapes = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    with torch.no_grad():
        exported = torch.export.export(gate, (hidden,), strict=False, dynamic_shapes=shapes)
    nodes = list(exported.graph.nodes)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    (output,) = nodes[-1].args[0]
    if any(node.users for node in placeholders[:-1]) or any(node.op == "get_attr" for node in nodes):
        return None
    return CapturedGraph("gate", exported.graph_module, placeholders[-1], output, {}, {}, {}, frozenset(), SIZES[1])
