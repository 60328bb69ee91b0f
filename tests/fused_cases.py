"""Fused execution beside literal execution and the interpreter, on random Hugging Face models."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any

import torch
from programs import Imported, check_agreement, import_model, relative_to_update, three_ways
from tiny_models import gpt2, llama, opt, token_ids
from torch import Tensor

from tintc.ir.auxiliary.interpreter import Descent
from tintc.ir.core import Program
from tintc.ir.inputs import resolve_inputs
from tintc.ir.simulator.interface.interpreter import interpret
from tintc.ir.text import parse_program, print_program
from tintc.options import Options
from tintc.runtime.artefact.config import TintConfig
from tintc.runtime.execution.fused.planner import UPDATES
from tintc.runtime.model.causal_lm import TintForCausalLM

FAMILIES: dict[str, Any] = {
    "gpt2": lambda: gpt2(n_layers=3, n_heads=3, head_dim=6, d_ff=31),
    "opt": lambda: opt(n_layers=3, n_heads=2, head_dim=8, d_ff=45),
    "llama": lambda: llama(n_layers=3, n_heads=4, n_kv_heads=2, head_dim=6, d_ff=37, attention_bias=True),
}


@cache
def family(name: str) -> Imported:
    return import_model(FAMILIES[name]())


def compiled(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> TintForCausalLM:
    """One simulator per set of options for the whole run: tests that change it compile their own."""
    chosen: dict[str, Any] = {"inner_lr": 0.02} | options
    defaults = {field.name: field.default for field in fields(Options)}
    return _compiled(name, dtype, **{key: chosen[key] for key in sorted(chosen) if chosen[key] != defaults[key]})


@cache
def _compiled(name: str, dtype: torch.dtype, **options: Any) -> TintForCausalLM:
    return family(name).compile(dtype=dtype, **options)


def run(sim: TintForCausalLM, ids: Tensor, executor: str = "fused", update: str = "auto", **given: Any) -> Any:
    """Output of a run without gradients; the model's own settings are put back."""
    kept = sim.executor, sim.update
    sim.executor, sim.update = executor, update
    try:
        with torch.no_grad():
            return sim(ids, **given)
    finally:
        sim.executor, sim.update = kept


def check_fused(
    sim: TintForCausalLM, ids: Tensor, inner_lr: Tensor | None = None, literal: bool = True, **given: Any
) -> None:
    """Fused, in every update mode and with and without `return_before`, and literal execution are the interpreter's,
    to 1e-9 of the update in fp64; literal: False where another test has literal execution, which is the dearest."""
    inputs = resolve_inputs(ids, semantics=sim.program.attributes["semantics"], **given)
    right = interpret(sim.program, sim.state_dict(), inputs, ("logits_before", "logits"), inner_lr)
    before, after = right["logits_before"], right["logits"]
    assert float((after - before).norm()) > 0
    given |= {"inner_lr": inner_lr}
    if literal:
        found = run(sim, ids, "literal", return_before=True, **given)
        assert relative_to_update(found.logits, after, before) < 1e-9
    check_updates(sim, ids, before, after, **given)


def check_updates(sim: TintForCausalLM, ids: Tensor, before: Tensor, after: Tensor, **given: Any) -> None:
    """Fused, in every update mode and with and without `return_before`, gives these logits, to 1e-9 of the update in
    fp64."""
    for update in UPDATES:
        both, alone = (run(sim, ids, "fused", update, return_before=ask, **given) for ask in (True, False))
        assert alone.logits_before is None
        assert relative_to_update(both.logits, after, before) < 1e-9, update
        assert relative_to_update(alone.logits, after, before) < 1e-9, update
        assert float((both.logits_before - before).norm() / (after - before).norm()) < 1e-9, update


def check_every_way(
    sim: TintForCausalLM, program: Program, tensors: dict[str, Tensor], ids: Tensor, descent: Descent, **masks: Any
) -> None:
    """Both interpreters, literal and fused execution, in every update mode, agree (fp64, 1e-9 of the update)."""
    ways = three_ways(sim, program, tensors, ids, descent, **masks)
    check_agreement(ways)
    check_updates(sim, ids, *ways["interpreter"], **masks)


def edited(sim: TintForCausalLM, program: Program) -> TintForCausalLM:
    """A simulator with the tensors of `sim` that runs another program, read back from its text."""
    text = print_program(parse_program(print_program(program)))
    config = TintConfig(vocab_size=sim.config.vocab_size, semantics=sim.config.semantics, program=text)
    with torch.device("meta"):
        other = TintForCausalLM(config)
    kept = other.state_dict()
    other.load_state_dict({k: v for k, v in sim.state_dict().items() if k in kept}, strict=True, assign=True)
    other.zero_absent_terms()
    other.trust()
    return other.eval()


__all__ = [
    "FAMILIES",
    "check_every_way",
    "check_fused",
    "check_updates",
    "compiled",
    "edited",
    "family",
    "relative_to_update",
    "run",
    "token_ids",
]
