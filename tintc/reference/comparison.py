"""Numbers and sentences in which a simulator and the reference are compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tintc.frontend.graph.captured import CapturedGraph
from tintc.ir.auxiliary.interpreter import view, viewed_rows
from tintc.reference.groups import origin_of
from tintc.reference.tune import Tuned
from tintc.reference.verdict import LEAST_COSINE, Compared, Tolerances
from tintc.runtime.model.causal_lm import TintForCausalLM


@dataclass(frozen=True)
class Simulated:
    """What a simulator computes: logits ``[1, T, V]``, gradients of the first step by parameter, and by which
    executor."""

    before: Tensor
    after: Tensor
    gradients: dict[str, Tensor]
    executor: str


@dataclass(frozen=True)
class References:
    """Explicit tuning with the simulator's approximations, and one step of it by autograd, without any."""

    tuned: Tuned
    exact: Tuned


@dataclass(frozen=True)
class LogitsCompared:
    """Distances of the logits to the reference's, the size of the reference's update, and the update's error."""

    before: float
    after: float
    update: float
    update_error: float
    update_cosine: float


@dataclass(frozen=True)
class GradientsCompared:
    """Gradients beside the reference's. whole: all together; sources: the tensors that the parameters are views of;
    stays: parameters that do not descend in the reference."""

    parameters: dict[str, Compared]
    whole: Compared
    sources: dict[str, str]
    stays: list[str]


def compared_logits(run: Simulated, tuned: Tuned) -> LogitsCompared:
    """Return the simulator's logits beside the reference's."""
    before = distance(run.before, tuned.logits_before)
    after = distance(run.after, tuned.logits)
    update = float((tuned.logits - tuned.logits_before).norm())
    if not update:
        return LogitsCompared(before, after, update, 0.0, 1.0)
    return LogitsCompared(before, after, update, after / update, update_cosine(run.after - run.before, tuned))


def compared_gradients(
    sim: TintForCausalLM, graph: CapturedGraph, run: Simulated, references: References, allowed: float, floor: float
) -> GradientsCompared:
    """Return the gradients of the first step beside the reference's. allowed, floor: as in `Tolerances`."""
    sources = {name: origin_of(graph, sim.program.parameters[name].source) for name in run.gradients}
    stays = [name for name in sources if sources[name] not in references.tuned.gradients[0]]
    products: dict[str, Tensor] = {}
    for name, gradient in run.gradients.items():
        if name not in stays:
            products[name] = gradient_products(sim, name, sources[name], gradient, references)
    total = float(sum(numbers[1] for numbers in products.values())) ** 0.5
    parameters: dict[str, Compared] = {}
    for name, numbers in products.items():
        size = float(numbers[1]) ** 0.5
        limit = allowed
        if size:
            limit += floor * total / size
        parameters[name] = compared_by(numbers, limit)
    whole = compared_by(torch.stack(list(products.values())).sum(0), allowed)
    return GradientsCompared(parameters, whole, {name: sources[name] for name in products}, stays)


def gradient_products(sim: TintForCausalLM, name: str, source: str, gradient: Tensor, references: References) -> Tensor:
    """Return seven products of a parameter's gradient g.

    ``<g, g>``, then ``<r, r>``, ``<g, r>``, ``|g - r|^2`` with r the reference's gradient of the same rows, and the
    same three with the exact one. source: the tensor that the parameter is a view of.
    """
    parameter = sim.program.parameters[name]
    products: list[Tensor] = []
    for reference in (references.tuned, references.exact):
        right = view(parameter, reference.gradients[0][source][0]).cpu()
        own = gradient.to("cpu", right.dtype)
        products += [right.square().sum(), (own * right).sum(), (own - right).square().sum()]
    return torch.stack([gradient.double().square().sum().cpu(), *products]).double()


def compared_by(products: Tensor, allowed: float) -> Compared:
    """Return cosines and errors from the seven products of `gradient_products`."""
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


def distance(logits: Tensor, right: Tensor) -> float:
    """Return the norm of the difference, in the type of the right one."""
    return float((logits.to("cpu", right.dtype) - right.cpu()).norm())


def update_cosine(update: Tensor, tuned: Tuned) -> float:
    """Return the cosine of the logits' update ``[1, T, V]`` to the reference's."""
    right = (tuned.logits - tuned.logits_before).cpu()
    return float(torch.cosine_similarity(update.to("cpu", right.dtype).flatten(), right.flatten(), dim=0))


def direction_problems(dtype: torch.dtype, logits: float, gradient: float) -> Iterator[str]:
    """Yield a problem for each of the two cosines to the reference's that is too small."""
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


def logits_problems(tolerances: Tolerances, numbers: LogitsCompared, tuned: Tuned) -> Iterator[str]:
    """Yield a problem for logits before and after that are farther off than allowed."""
    size = float(tuned.logits_before.norm())
    if not numbers.before <= tolerances.logits * size:
        off = numbers.before / size
        yield f"the logits before the update are {off:.2g} off, relatively; {tolerances.logits:g} is allowed"
    allowed = tolerances.logits * float(tuned.logits.norm()) + tolerances.gradient * numbers.update
    if not numbers.after <= allowed:
        yield (
            f"the logits after the update are {numbers.after:.3g} off; {allowed:.3g} is allowed (the update is "
            f"{numbers.update:.3g})"
        )


def gradient_problems(parameters: dict[str, Compared]) -> Iterator[str]:
    """Yield one problem if gradients are farther off than allowed, with the worst of them."""
    wrong = [name for name, compared in parameters.items() if not compared.error <= compared.allowed]
    if wrong:
        worst = max(wrong, key=lambda name: parameters[name].error)
        compared = parameters[worst]
        yield (
            f"the gradients of {len(wrong)} of {len(parameters)} parameters are off, most that of {worst}: "
            f"{compared.error:.2g}, relatively; {compared.allowed:.2g} is allowed"
        )


def other_parameters(sim: TintForCausalLM, tuned: Tuned, updated: dict[str, str], stays: list[str]) -> Iterator[str]:
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
