"""Running a simulator's program on a batch that was checked, by the executor that the caller names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from tintc.errors import InputError, OptionError
from tintc.ir.core import Op, Program
from tintc.ir.inputs import Inputs
from tintc.ir.simulator import SimOp
from tintc.runtime.execution.fused.batches import NO_STARTS, Starts, run_fused, run_together
from tintc.runtime.execution.fused.pass_graph import replay_pass
from tintc.runtime.execution.literal.batches import check_fits, run_literal
from tintc.runtime.execution.literal.executor import LiteralExecutor
from tintc.runtime.execution.rates import Rates
from tintc.runtime.execution.simulator import Simulator

NO_FLOAT16 = (
    "A simulator does not compute in float16, whose range small updates leave; use sim.to(torch.bfloat16), or keep "
    "float32 (of Trainer's options, leave out fp16_full_eval)."
)


def execute(
    sim: Simulator,
    inputs: Inputs,
    rates: Rates | None,
    outputs: tuple[str, ...],
    executor: str,
    max_batch: int | str | None = None,
) -> dict[str, Tensor]:
    """Return the named outputs and capture points of the simulator's program.

    rates: instead of the stored ones; executor ``fused`` or ``literal``; max_batch: examples that run at a time,
    ``auto``: as many as memory takes. Raises `InputError` if memory does not take the batch.
    """
    if executor == "literal":
        return run_literal(sim, inputs, rates, outputs, max_batch)
    replayed = replay_pass(sim, inputs, rates, outputs)
    if replayed is not None:
        return replayed
    return run_fused(sim, inputs, rates, outputs, max_batch)


def execute_program(
    sim: Simulator,
    program: Program,
    inputs: Inputs,
    rates: Rates | None,
    executor: str,
    starts: Starts = NO_STARTS,
    carrying: Mapping[str, SimOp] | None = None,
) -> dict[str, Any]:
    """Return all outputs of a program with the simulator's ops, weights among them, for a batch that is not cut.

    Weights are `PrefixTiles` in literal execution and `FusedWeights` in fused. starts: weights in place of stored ones,
    for literal execution without pending updates. carrying: ops of which fused execution also returns, by these names,
    the state that the text leaves.
    """
    if executor == "literal":
        check_fits(sim, program, inputs)
        return LiteralExecutor(sim, inputs, rates, starts).run(tuple(program.outputs), program)
    return run_together(sim, program, inputs, rates, starts, carrying)


def refuse_float16(dtype: torch.dtype) -> None:
    """Raise `OptionError` for a simulator that was cast to float16."""
    if dtype == torch.float16:
        raise OptionError(NO_FLOAT16)


def _refuse_placeholders(ids: Tensor, placeholders: list[int]) -> None:
    """Raise `InputError` for ids that stand for an image or the like."""
    if not placeholders:
        return
    found = ids[torch.isin(ids, torch.tensor(placeholders, device=ids.device))]
    if found.numel():
        raise InputError(
            f"Token id {int(found[0])} stands for an image, a video or a sound, and this simulator has the model's "
            "decoder of text alone; leave such tokens out."
        )


def check_inputs(sim: Simulator, inputs: Inputs, length: int = 0, ops: Iterable[Op] | None = None) -> None:
    """Raise `InputError` or `OptionError` unless the simulator can run these tokens.

    length: of the whole text, if these are only its last tokens; ops: those that will run, if not all.
    """
    refuse_float16(sim.dtype)
    if torch.finfo(sim.dtype).eps / 2 > sim.program.attributes.get("softmax_unit", 1.0):
        raise OptionError(
            "The constants of this simulator's softmax heads are those of a longer floating type than "
            f"{str(sim.dtype).removeprefix('torch.')}; load it as it was stored, or compile for this type."
        )
    whole = length or inputs.shape[1]
    limit = sim.layout.max_length
    if whole > limit:
        raise InputError(
            f"The text has {whole} tokens; this simulator was compiled for at most {limit}. Shorten it, or "
            "compile with a larger max length."
        )
    for token in (int(inputs.input_ids.min()), int(inputs.input_ids.max())):
        if not 0 <= token < sim.config.vocab_size:
            raise InputError(f"Token id {token} is out of range; the vocabulary has {sim.config.vocab_size} entries.")
    if whole == inputs.shape[1]:  # later tokens are generated ones, which the model reads as they are
        _refuse_placeholders(inputs.input_ids, sim.config.placeholders)
    if ops is None:
        ops = sim.program.ops
    for op in ops:
        if isinstance(op, SimOp):
            op.check(inputs, sim.parameter)
