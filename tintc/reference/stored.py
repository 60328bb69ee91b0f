"""What an artefact stores, beside what compiling its model again gives: streamed, a tensor at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from tintc.errors import ModelError
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.importer import import_graph
from tintc.frontend.padding import reading_biases
from tintc.frontend.source.load import AuxiliarySource
from tintc.ir.text import print_program
from tintc.lowering.emission.emit import emit
from tintc.lowering.pipeline import AUXILIARY_PASSES, run_passes
from tintc.options import Options
from tintc.runtime.artefact.folder import opened, read_auxiliary
from tintc.runtime.artefact.tensor_files import TensorFiles
from tintc.runtime.model.causal_lm import TintForCausalLM


def check_program(path: str, graph: CapturedGraph, source: AuxiliarySource, options: Options) -> None:
    """Raise `ModelError` unless the artefact, of these options, was made from a model with this program."""
    text = read_auxiliary(path)
    program = run_passes(AUXILIARY_PASSES, import_graph(graph), options)
    possible = [one for one in (program, reading_biases(graph, program)) if one is not None]
    if text is not None and text not in map(print_program, possible):
        raise ModelError(
            f"{path} was not compiled from {source.provenance['source']}: their programs differ. Pass the model it was "
            "compiled from, or compile again."
        )


def stored_problems(path: str, sim: TintForCausalLM, graph: CapturedGraph, source: AuxiliarySource) -> list[str]:
    """Return a problem for stored tensors that compiling again does not give.

    Raises `ModelError` if most weights are others.
    """
    missing = sorted({p.source for p in sim.program.parameters.values()} - set(graph.tensors))
    if missing:
        raise ModelError(f"{source.provenance['source']} has no tensor {missing[0]}, from which {path} was compiled.")
    expected = emit(sim.program, graph.tensors, sim.config.inner_lr, dtype_of(path))
    with opened(path, weights=True) as snapshot:
        stored = TensorFiles(snapshot).tensors()
    weights = 0
    changed: list[str] = []
    for name, tensor in expected:
        weights += _is_weight(name)
        if name not in stored or not _same(stored[name], tensor):
            changed.append(name)
    others = [name for name in changed if _is_weight(name)]
    if 2 * len(others) > weights:
        raise ModelError(
            f"{path} was not compiled from {source.provenance['source']}: {len(others)} of its {weights} weight "
            "tensors are others. Pass the model it was compiled from."
        )
    if not changed:
        return []
    more = ""
    if len(changed) > 3:
        more = ", ..."
    return [f"{len(changed)} stored tensors are not those that the compiler makes: {', '.join(changed[:3])}{more}"]


def dtype_of(path: str) -> torch.dtype:
    """Return the type that an artefact's weights are stored in; a simulator loaded from it may compute in another."""
    with opened(path, weights=True) as snapshot:
        stored = TensorFiles(snapshot).tensors()
    return next(tensor.dtype for name, tensor in stored.items() if _is_weight(name))


def _is_weight(name: str) -> bool:
    return name.startswith(("prefixes.", "tables."))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)
