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
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil
import torch
from torch import Tensor

from tintc.errors import InputError
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.source.load import AuxiliarySource
from tintc.ir.auxiliary.interpreter import view, viewed_rows
from tintc.ir.inputs import resolve_inputs
from tintc.reference.approximations import Approximations, Difference
from tintc.reference.groups import origin_of
from tintc.reference.simulated_gradients import simulated_gradients
from tintc.reference.stored import check_program, dtype_of, stored_problems
from tintc.reference.tune import Tuned, tune
from tintc.runtime.artefact.config import TintConfig
from tintc.runtime.model.causal_lm import TintForCausalLM

LOGGER = logging.getLogger("tintc")
LEAST_COSINE = 0.99
"""Of the logits' update, and of all gradients together, to the reference's."""
COPIES = 6
"""How many times the model's size the reference takes."""


@dataclass(frozen=True)
class Tolerances:
    """Largest relative errors, in the Euclidean norm.

    logits: of the logits before; gradient: of each parameter's gradient. Logits after may differ by both: `logits` of
    their size and `gradient` of the update's. floor: part of the whole gradient's norm that is let pass in any
    parameter, because rounding does not shrink with a gradient that nearly cancels.
    """

    logits: float
    gradient: float
    floor: float

    @classmethod
    def of(cls, dtype: torch.dtype, scheme: str, linear_attention: str = "linear") -> Tolerances:
        """Return those for a simulator of that dtype.

        A constant step of differences is noisy in short types (construction.md, section 6.1); softmax heads are about
        sqrt(u) of the scores' size off in every module (construction.md, section 12). In bfloat16 the logits of tiny
        models are 0.007 off, the update up to 0.04, and a parameter's gradient 0.01, where ReLUs switch up to 0.16.
        """
        if linear_attention == "softmax":
            if dtype == torch.float64:
                return cls(1e-5, 1e-3, 1e-5)
            return cls(5e-2, 0.3, 1e-2)
        if dtype == torch.float64:
            return cls(1e-9, 1e-6, 1e-9)
        if dtype == torch.float32:
            gradient = {"token": 1e-2, "central": 1e-2, "fixed": 0.3}
            return cls(1e-4, gradient[scheme], 1e-5)
        return cls(3e-2, 0.2, 2e-2)


@dataclass(frozen=True)
class Compared:
    """A simulated gradient beside the reference's, with the same approximations, and beside autograd's, without any."""

    cosine: float
    error: float
    cosine_autograd: float
    error_autograd: float
    allowed: float
    size: float


@dataclass(frozen=True)
class Verdict:
    """The result of `verify`. problems: sentences, none if the simulator does what its options say; gradient: all
    parameters together; errors as in `Tolerances`, that of the update relative to the update; update_cosine: of the
    logits' update to the reference's."""

    problems: list[str]
    tolerances: Tolerances
    logits_before_error: float
    logits_after_error: float
    update_error: float
    update_cosine: float
    gradient: Compared
    parameters: dict[str, Compared]
    executor: str
    dtype: str
    reference_dtype: str
    tokens: int
    train_tokens: int

    @property
    def ok(self) -> bool:
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return plain values; numbers that are not finite are null.

        cosine_exact, error_exact: the former names of cosine_autograd and error_autograd.
        """
        values = {"ok": self.ok, **_finite(asdict(self))}
        for shown in (values["gradient"], *values["parameters"].values()):
            shown |= {"cosine_exact": shown["cosine_autograd"], "error_exact": shown["error_autograd"]}
        return values


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


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
    if graph is None:
        graph = captured(sim, source)
    check_program(path, graph, source, sim.config.gradient == "full")
    LOGGER.info("comparing stored tensors")
    problems = stored_problems(path, sim, graph, source)
    LOGGER.info("running the simulator")
    mask = (torch.arange(len(ids)) < train)[None]
    with torch.no_grad():
        out = sim(ids[None].to(sim.device), train_mask=mask, return_before=True)
    executor = sim.last_executor
    simulated = simulated_gradients(sim, resolve_inputs(ids[None].to(sim.device), mask, semantics=sim.config.semantics))
    config = sim.config
    shortest = max(sim.dtype, dtype_of(path), key=lambda kind: torch.finfo(kind).eps)
    tolerances = Tolerances.of(shortest, config.difference, config.linear_attention)
    dtype = reference_dtype(source)
    LOGGER.info("fine-tuning the model with the same approximations")
    tuned = tuned_with(graph, config, ids, mask, approximations_of(sim), config.n_steps, dtype)
    if not bool(tuned.logits.isfinite().all()):
        raise InputError(f"The learning rate {config.inner_lr} is too large for this text; pass another with --text.")
    LOGGER.info("fine-tuning the model by autograd alone")
    exact = tuned_with(graph, config, ids, mask, plain(approximations_of(sim)), 1, dtype)
    sources = {name: origin_of(graph, sim.program.parameters[name].source) for name in simulated}
    stays = [name for name in simulated if sources[name] not in tuned.gradients[0]]
    products = {
        name: _products(sim, name, sources[name], g, tuned, exact) for name, g in simulated.items() if name not in stays
    }
    parameters = _compare(products, tolerances)
    before = _apart(out.logits_before, tuned.logits_before)
    after = _apart(out.logits, tuned.logits)
    update = float((tuned.logits - tuned.logits_before).norm())
    gradient = _compared(torch.stack(list(products.values())).sum(0), tolerances.gradient)
    update_error = 0.0
    cosine = 1.0
    if update:
        update_error = after / update
        cosine = _update_cosine(out.logits - out.logits_before, tuned)
    problems += _numeric_problems(tolerances, before, after, update, tuned, parameters)
    problems += _direction_problems(sim.dtype, cosine, gradient.cosine)
    problems += _other_parameters(sim, tuned, {name: sources[name] for name in products}, stays)
    return Verdict(
        problems=problems,
        tolerances=tolerances,
        logits_before_error=before / float(tuned.logits_before.norm()),
        logits_after_error=after / float(tuned.logits.norm()),
        update_error=update_error,
        update_cosine=cosine,
        gradient=gradient,
        parameters=parameters,
        executor=executor,
        dtype=str(sim.dtype).removeprefix("torch."),
        reference_dtype=str(dtype).removeprefix("torch."),
        tokens=len(ids),
        train_tokens=train,
    )


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


def _products(sim: TintForCausalLM, name: str, source: str, gradient: Tensor, tuned: Tuned, exact: Tuned) -> Tensor:
    """Return seven products of a parameter's gradient g.

    ``<g, g>``, then ``<r, r>``, ``<g, r>``, ``|g - r|^2`` with r the reference's gradient of the same rows, and the
    same three with the exact one. source: the tensor that the parameter is a view of.
    """
    parameter = sim.program.parameters[name]
    products: list[Tensor] = []
    for other in (tuned, exact):
        right = view(parameter, other.gradients[0][source][0]).cpu()
        own = gradient.to("cpu", right.dtype)
        products += [right.square().sum(), (own * right).sum(), (own - right).square().sum()]
    return torch.stack([gradient.double().square().sum().cpu(), *products]).double()


def _compare(products: dict[str, Tensor], tolerances: Tolerances) -> dict[str, Compared]:
    total = float(sum(numbers[1] for numbers in products.values())) ** 0.5
    compared = {}
    for name, numbers in products.items():
        size = float(numbers[1]) ** 0.5
        allowed = tolerances.gradient
        if size:
            allowed += tolerances.floor * total / size
        compared[name] = _compared(numbers, allowed)
    return compared


def _compared(products: Tensor, allowed: float) -> Compared:
    own, *others = products.tolist()
    cosines: list[float] = []
    errors: list[float] = []
    for size, both, apart in (others[:3], others[3:]):
        if own and size:
            cosines.append(both / (own * size) ** 0.5)
        else:
            cosines.append(float(own == size))
        # Beside a gradient that is zero an error has nothing to be relative to.
        errors.append((apart / (size or 1.0)) ** 0.5)
    return Compared(cosines[0], errors[0], cosines[1], errors[1], allowed, others[0] ** 0.5)


def _apart(logits: Tensor, right: Tensor) -> float:
    return float((logits.to("cpu", right.dtype) - right.cpu()).norm())


def _update_cosine(update: Tensor, tuned: Tuned) -> float:
    """Return the cosine of the logits' update ``[1, T, V]`` to the reference's."""
    right = (tuned.logits - tuned.logits_before).cpu()
    return float(torch.cosine_similarity(update.to("cpu", right.dtype).flatten(), right.flatten(), dim=0))


def _direction_problems(dtype: torch.dtype, logits: float, gradient: float) -> Iterator[str]:
    name = str(dtype).removeprefix("torch.")
    longer = f"; {name} may be too short for it, compile with --dtype float64"
    if dtype == torch.float64:
        longer = ""
    elif dtype == torch.bfloat16:
        longer = f"; {name} is too short for it, pass --dtype float32, or compile without --dtype"
    for what, cosine in (("the update of the logits", logits), ("the gradient", gradient)):
        if not cosine >= LEAST_COSINE:
            yield (
                f"{what} points elsewhere: its cosine to the reference's is {cosine:.3f}, less than "
                f"{LEAST_COSINE}{longer}"
            )


def _numeric_problems(
    tolerances: Tolerances, before: float, after: float, update: float, tuned: Tuned, parameters: dict[str, Compared]
) -> Iterator[str]:
    size = float(tuned.logits_before.norm())
    if not before <= tolerances.logits * size:
        yield f"the logits before the update are {before / size:.2g} off, relatively; {tolerances.logits:g} is allowed"
    allowed = tolerances.logits * float(tuned.logits.norm()) + tolerances.gradient * update
    if not after <= allowed:
        yield f"the logits after the update are {after:.3g} off; {allowed:.3g} is allowed (the update is {update:.3g})"
    wrong = [name for name, compared in parameters.items() if not compared.error <= compared.allowed]
    if wrong:
        worst = max(wrong, key=lambda name: parameters[name].error)
        compared = parameters[worst]
        yield (
            f"the gradients of {len(wrong)} of {len(parameters)} parameters are off, most that of {worst}: "
            f"{compared.error:.2g}, relatively; {compared.allowed:.2g} is allowed"
        )


def _other_parameters(sim: TintForCausalLM, tuned: Tuned, updated: dict[str, str], stays: list[str]) -> Iterator[str]:
    """Yield a problem for parameters that the options say descend and the program leaves alone, and the reverse.

    updated: parameters that the program updates, and the tensors that they are views of.
    """
    if stays:
        yield f"the program updates {len(stays)} parameters that its options say stay, {stays[0]} among them"
    left = {name: gradient[0].clone() for name, gradient in tuned.gradients[0].items()}
    for name, source in updated.items():
        parameter = sim.program.parameters[name]
        for _, rows, _ in viewed_rows(parameter, left[source]):
            rows.zero_()
    names = [name for name, gradient in left.items() if bool(gradient.any())]
    if names:
        yield f"the program does not update {len(names)} parameters that its options say it does, {names[0]} among them"
