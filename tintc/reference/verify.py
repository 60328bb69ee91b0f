"""`verify`: whether a compiled simulator does to a model what its options say, by the reference beside it.

Three things are compared, on a probe text:

- every stored tensor with the one that compiling the model again gives, bit for bit;
- logits before and after the simulated descent with those of `tune` under the same options;
- the gradient of the first step, parameter by parameter, with that of `tune` (and, to show what the approximations
  cost, with autograd's, which has none).

The simulator computes in its own dtype, the reference in fp64 where memory allows; `Tolerances` says how far apart they
may be. Whatever the dtype, the update has to point where the reference's does: `LEAST_COSINE`.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import psutil
import torch
from torch import Tensor

from tintc.errors import InputError
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.source.load import AuxiliarySource
from tintc.ir.inputs import resolve_inputs
from tintc.reference.approximations import Approximations, Difference
from tintc.reference.comparison import (
    References,
    Simulated,
    compared_gradients,
    compared_logits,
    direction_problems,
    gradient_problems,
    logits_problems,
    other_parameters,
)
from tintc.reference.simulated_gradients import simulated_gradients
from tintc.reference.stored import check_program, dtype_of, stored_problems
from tintc.reference.tune import Tuned, tune
from tintc.reference.verdict import Tolerances, Verdict
from tintc.runtime.artefact.config import TintConfig, options_of
from tintc.runtime.model.causal_lm import TintForCausalLM

LOGGER = logging.getLogger("tintc")


COPIES = 6
"""How many times the model's size the reference takes."""


def captured(sim: TintForCausalLM, source: AuxiliarySource) -> CapturedGraph:
    """Return the graph of a model, for texts as long as the simulator takes."""
    LOGGER.info("capturing the model")
    return capture(source.model, sim.layout.max_length, source.provenance["source"])


def verify(
    path: str,
    sim: TintForCausalLM,
    source: AuxiliarySource,
    ids: Tensor,
    train: int,
    graph: CapturedGraph | None = None,
) -> Verdict:
    """Compare the simulator in folder `path`, loaded as `sim`, with the model, on ``ids [T]``, the first `train` of
    which are trained on.

    graph: the captured model, where it was captured already. Raises `ModelError` if the simulator was compiled from
    another model, `InputError` if training blows up on this text.
    """
    return verified(path, sim, source, ids, train, graph)[0]


def verified(
    path: str,
    sim: TintForCausalLM,
    source: AuxiliarySource,
    ids: Tensor,
    train: int,
    graph: CapturedGraph | None = None,
) -> tuple[Verdict, References]:
    """Return the same, and the explicit tuning that the simulator was compared with."""
    if graph is None:
        graph = captured(sim, source)
    check_program(path, graph, source, options_of(sim.config))
    LOGGER.info("comparing stored tensors")
    problems = stored_problems(path, sim, graph, source)
    mask = (torch.arange(len(ids)) < train)[None]
    run = simulated_run(sim, ids, mask)
    dtype = reference_dtype(source)
    references = references_for(sim, graph, ids, mask, dtype)
    tolerances = tolerances_for(path, sim)
    gradients = compared_gradients(sim, graph, run, references, tolerances.gradient, tolerances.floor)
    numbers = compared_logits(run, references.tuned)
    problems += logits_problems(tolerances, numbers, references.tuned)
    problems += gradient_problems(gradients.parameters)
    problems += direction_problems(sim.dtype, numbers.update_cosine, gradients.whole.cosine)
    problems += other_parameters(sim, references.tuned, gradients.sources, gradients.stays)
    verdict = Verdict(
        problems=problems,
        tolerances=tolerances,
        logits_before_error=numbers.before / float(references.tuned.logits_before.norm()),
        logits_after_error=numbers.after / float(references.tuned.logits.norm()),
        update_error=numbers.update_error,
        update_cosine=numbers.update_cosine,
        gradient=gradients.whole,
        parameters=gradients.parameters,
        executor=run.executor,
        dtype=str(sim.dtype).removeprefix("torch."),
        reference_dtype=str(dtype).removeprefix("torch."),
        tokens=len(ids),
        train_tokens=train,
    )
    return verdict, references


def simulated_run(sim: TintForCausalLM, ids: Tensor, mask: Tensor) -> Simulated:
    """Return what the simulator computes of ``ids [T]``, of which the tokens in ``mask [1, T]`` are trained on."""
    LOGGER.info("running the simulator")
    batch = ids[None].to(sim.device)
    with torch.no_grad():
        out = sim(batch, train_mask=mask, return_before=True)
    executor = sim.last_executor
    inputs = resolve_inputs(batch, mask, semantics=sim.config.semantics)
    return Simulated(out.logits_before, out.logits, simulated_gradients(sim, inputs), executor)


def references_for(
    sim: TintForCausalLM, graph: CapturedGraph, ids: Tensor, mask: Tensor, dtype: torch.dtype
) -> References:
    """Return the model fine-tuned with the simulator's approximations, and without any.

    Raises `InputError` if that blows up on this text.
    """
    config = sim.config
    approximations = approximations_of(sim)
    LOGGER.info("fine-tuning the model with the same approximations")
    tuned = tuned_with(graph, config, ids, mask, approximations, config.n_steps, dtype)
    if not bool(tuned.logits.isfinite().all()):
        raise InputError(f"The learning rate {config.inner_lr} is too large for this text; pass another with --text.")
    LOGGER.info("fine-tuning the model by autograd alone")
    return References(tuned, tuned_with(graph, config, ids, mask, plain(approximations), 1, dtype))


def tolerances_for(path: str, sim: TintForCausalLM) -> Tolerances:
    """Return the tolerances for the shorter of the types that are stored and computed in."""
    shortest = max(sim.dtype, dtype_of(path), key=lambda kind: torch.finfo(kind).eps)
    return Tolerances.of(shortest, sim.config.difference, sim.config.linear_attention)


def reference_dtype(source: AuxiliarySource) -> torch.dtype:
    """Return fp64, or fp32 for a model too large for that."""
    size = sum(tensor.numel() for tensor in source.model.parameters())
    if COPIES * size * 8 <= psutil.virtual_memory().available:
        return torch.float64
    return torch.float32


def plain(approximations: Approximations) -> Approximations:
    """Return none of these, for the same parameters: autograd."""
    off: dict[str, Any] = dict.fromkeys(("scores", "router", "tiled_bias"), False)
    return replace(approximations, norms=None, activations=None, **off)


def approximations_of(sim: TintForCausalLM) -> Approximations:
    """Return the approximations that a simulator was compiled with."""
    difference = Difference(sim.config.difference, sim.config.fd_step)
    groups = frozenset(sim.config.descend.split(","))
    chosen = Approximations.of(sim.config.semantics, gradient=sim.config.gradient)
    scores: bool | Difference = True
    if sim.config.gradient == "full":
        scores = difference
    return replace(chosen, scores=scores, norms=difference, activations=difference, groups=groups)


def tuned_with(
    graph: CapturedGraph,
    config: TintConfig,
    ids: Tensor,
    mask: Tensor,
    approximations: Approximations,
    n_steps: int,
    dtype: torch.dtype,
) -> Tuned:
    """Return the model fine-tuned with a simulator's options, but these approximations and number of steps."""
    return tune(
        graph,
        ids[None],
        mask,
        inner_lr=config.inner_lr,
        n_steps=n_steps,
        n_update_layers=config.n_update_layers,
        loss=config.loss,
        semantics=config.semantics,
        approximations=approximations,
        dtype=dtype,
        optimizer=config.optimizer,
        normalize=config.normalize,
        momentum=config.momentum,
        decay=config.decay,
    )
