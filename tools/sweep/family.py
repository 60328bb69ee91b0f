"""`check_family`: one type of decoder, compiled from a tiny random configuration and checked in three ways.

(a) The auxiliary interpreter's logits are the model's, and, closer, those of the exported graph without its down-casts.
(b) The simulated gradient is autograd's on the exported graph with attention probabilities detached.
(c) Fused and literal execution agree, after one step and after two.

All in fp64, at two batch sizes and lengths other than those captured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from tintc import stages
from tintc.errors import ModelError, TintcError, UnsupportedModelError
from tintc.frontend.agreement import check_agreement
from tintc.frontend.exact_agreement import check_graph
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.captured_experts import EAGER as EAGER_EXPERTS
from tintc.frontend.graph.captured_experts import experts_computed_by
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.importer import import_graph
from tintc.frontend.source.load import AuxiliarySource, load_auxiliary
from tintc.ir.auxiliary.interpreter import forward, load, view
from tintc.ir.inputs import resolve_inputs
from tintc.lowering.pipeline import AUXILIARY_PASSES, run_passes
from tintc.options import Options
from tintc.reference.approximations import Approximations
from tintc.reference.captured import run_captured
from tintc.reference.simulated_gradients import simulated_gradients
from tintc.reference.tune import tune
from tintc.runtime.model.causal_lm import TintForCausalLM
from tools.sweep.features import Features, features_of
from tools.sweep.tiny import VOCAB, tiny_model

SHAPES = ((3, 13), (1, 22))
"""Batch sizes and lengths of the checks; the graph is captured at (2, 7)."""
LR = 0.02
EAGER, GRAPH, GRADIENT, EXECUTORS = 1e-5, 1e-8, 1e-4, 1e-9
"""Largest relative errors. A graph's own tables of sines may be fp32 (GPT-J: 3e-9); the eager model drops to fp32
inside norms, softmax and rotary tables; a gradient is off by the order of its finite differences' step, `STEP`; the
executors are compared by the size of the update."""
STEP = 1e-6


@dataclass
class Outcome:
    """The outcome of one configuration of one type.

    stage: where it ended (``build``, ``capture``, ``import``, ``lower``, ``logits``, ``gradient``, ``executors``), or
    ``passed``; reasons: sentences, of a failure; obstacles: the kinds of layers that the compiler named; errors: the
    largest of each check.
    """

    model_type: str
    variant: str = ""
    stage: str = "build"
    reasons: list[str] = field(default_factory=list)
    obstacles: list[str] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    features: Features | None = None
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return self.stage == "passed"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class _Wrong(Exception):
    """A check found a difference; the message says which."""


def check_family(model_type: str, variant: str = "", **options: Any) -> Outcome:
    """Compile the tiny model of that type and run every check; never raises for what is wrong with a type."""
    outcome = Outcome(model_type, variant)
    start = time.perf_counter()
    try:
        _check(outcome, options)
    except ModelError as error:
        outcome.obstacles = list(error.obstacles)
        outcome.reasons = [str(error)]
        if isinstance(error, UnsupportedModelError) and error.reasons:
            outcome.reasons = [str(reason) for reason in error.reasons]
    except (TintcError, _Wrong) as error:
        outcome.reasons = [str(error)]
    except Exception as error:  # of transformers, of torch.export, or ours: the sweep goes on and the table names it
        first = (str(error).strip().splitlines() or ["no message"])[0]
        outcome.reasons = [f"{type(error).__name__}: {first[:300]}"]
    outcome.seconds = round(time.perf_counter() - start, 1)
    return outcome


def _check(outcome: Outcome, options: dict[str, Any]) -> None:
    model = tiny_model(outcome.model_type, **options)
    source = load_auxiliary(model)
    outcome.stage = "capture"
    graph = capture(source.model, source.max_length, outcome.model_type)
    outcome.stage = "import"
    program = run_passes(AUXILIARY_PASSES, import_graph(graph), Options())
    outcome.features = features_of(program)
    auxiliary = stages.Auxiliary(program, graph.tensors, graph)
    outcome.stage = "probe"
    check_graph(outcome.model_type, graph, program, graph.tensors)
    check_agreement(outcome.model_type, source.model, program, graph.tensors, source.max_length)
    outcome.stage = "lower"
    sims = {steps: _simulator(auxiliary, source, Options(n_steps=steps, inner_lr=LR)) for steps in (1, 2)}
    fine = _simulator(auxiliary, source, Options(inner_lr=LR, fd_step=STEP))
    for batch, length in SHAPES:
        ids = torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(length))
        outcome.stage = "logits"
        _check_logits(outcome, model, graph, auxiliary, ids)
        outcome.stage = "gradient"
        _check_gradient(outcome, graph, fine, ids[:1])
        outcome.stage = "executors"
        for sim in sims.values():
            _check_executors(outcome, sim, ids)
    outcome.stage = "passed"


def _simulator(auxiliary: stages.Auxiliary, source: AuxiliarySource, options: Options) -> TintForCausalLM:
    program = stages.lower(auxiliary.program, options, source.max_length)
    return stages.assemble(program, auxiliary, source, options, torch.float64)


@torch.no_grad()
def _check_logits(
    outcome: Outcome, model: torch.nn.Module, graph: CapturedGraph, auxiliary: stages.Auxiliary, ids: Tensor
) -> None:
    program = auxiliary.program
    logits = forward(program, load(program, auxiliary.tensors), resolve_inputs(ids))
    _record(outcome, "graph", _relative(logits, run_captured(graph, ids)), GRAPH)
    with _double_by_default(), experts_computed_by(model, EAGER_EXPERTS):
        _record(outcome, "eager", _relative(logits, model.double()(ids, use_cache=False).logits), EAGER)


@contextmanager
def _double_by_default() -> Iterator[None]:
    """New tensors are fp64: XGLM writes the least number of its scores' dtype into one."""
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(kept)


def _check_gradient(outcome: Outcome, graph: CapturedGraph, sim: TintForCausalLM, ids: Tensor) -> None:
    """Check every parameter that descends, beside autograd of the whole graph, one text at a time."""
    mask = torch.arange(ids.shape[1])[None] < ids.shape[1] // 2
    simulated = simulated_gradients(sim, resolve_inputs(ids, mask))
    right = tune(graph, ids, mask, inner_lr=LR, approximations=Approximations(scores=True, router=True)).gradients[0]
    total = torch.stack([gradient.norm() for gradient in right.values()]).norm()
    for name, gradient in simulated.items():
        parameter = sim.program.parameters[name]
        wanted = view(parameter, right[parameter.source][0])
        error = float((gradient - wanted).norm() / (wanted.norm() + 1e-3 * total))
        _record(outcome, "gradient", error, GRADIENT, f" of {name}")


@torch.no_grad()
def _check_executors(outcome: Outcome, sim: TintForCausalLM, ids: Tensor) -> None:
    outputs = {}
    for executor in ("literal", "fused"):
        with _executor(sim, executor) as run:
            outputs[executor] = run(ids, return_before=True)
    literal = outputs["literal"]
    fused = outputs["fused"]
    size = (literal.logits - literal.logits_before).norm()
    if not size > 0:
        raise _Wrong("the update changes nothing")
    _record(outcome, "executors", float((fused.logits - literal.logits).norm() / size), EXECUTORS)
    _record(outcome, "executors", float((fused.logits_before - literal.logits_before).norm() / size), EXECUTORS)


@contextmanager
def _executor(sim: TintForCausalLM, name: str) -> Iterator[Callable[..., Any]]:
    kept, sim.executor = sim.executor, name
    try:
        yield sim
    finally:
        sim.executor = kept


def _record(outcome: Outcome, name: str, error: float, allowed: float, of: str = "") -> None:
    outcome.errors[name] = max(error, outcome.errors.get(name, 0.0))
    if not error <= allowed:
        raise _Wrong(f"the check {name}{of} is {error:.2g} off, relatively; {allowed:g} is allowed")


def _relative(value: Tensor, right: Tensor) -> float:
    return float((value - right).abs().max() / right.abs().max())
