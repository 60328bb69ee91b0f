"""The vectors that an attention reads besides q, k and v: rotary frequencies, a gain, scales by position, sinks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from tintc.frontend.attention.operands import Operand, joint_gain
from tintc.frontend.attention.scores import Scores
from tintc.frontend.builder import Builder
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.regions import is_linear


def score_vectors(graph: CapturedGraph, scores: Scores, operands: list[Operand], builder: Builder) -> dict[str, str]:
    """Declare the vectors that an attention reads, and return its attributes that name them."""
    q, k, _ = operands
    names: dict[str, str] = {}
    rotation = q.rotated.rotation
    if rotation is not None:
        names["inv_freq"] = builder.parameter(_frequencies(graph, scores.q, rotation.frequencies))
        names["rotary_style"] = rotation.style
    gain = joint_gain(graph, q, k)
    if gain is not None:
        names["gain"] = builder.parameter(graph.derive_constant("gain", gain))
    if q.heads.scales is not None:
        names["query_scale"] = builder.parameter(graph.derive_constant("query_scale", q.heads.scales))
    if scores.sinks:
        names["sinks"] = builder.parameter(scores.sinks)
    return names


def _alike(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-6, atol=1e-12)


def _frequencies(graph: CapturedGraph, root: Node, frequencies: Tensor) -> str:
    """Return the name of a buffer of the model that holds these frequencies, or of a constant made of them."""
    seen: set[Node] = set()
    stack = [root]
    while stack:
        node = stack.pop()
        name = graph.names.get(node)
        if name is not None and name not in graph.parameter_names:
            tensor = graph.tensors[name].cpu()
            if (
                tensor.shape == frequencies.shape
                and tensor.is_floating_point()
                and _alike(tensor.double(), frequencies)
            ):
                return name
        sources = [source for source in node.all_input_nodes if source not in seen and source is not graph.input_ids]
        seen.update(sources)
        stack.extend(source for source in sources if node not in graph.live or is_linear(graph, node))
    return graph.derive_constant("rotary", frequencies)
