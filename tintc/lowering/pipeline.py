"""The passes of the compiler in their order, as data that can be printed, cut and timed.

The first two bring an imported program into its canonical form; the others turn it into a simulator's, with tiles and
memory slots. `tintc opt` runs any of them by hand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from tintc.errors import IRError, OptionError, PassError
from tintc.ir.core import Program
from tintc.ir.simulator import Repeat
from tintc.lowering.passes.allocate_slots import allocate_slots
from tintc.lowering.passes.assign_layers import assign_layers
from tintc.lowering.passes.canonicalise import canonicalise
from tintc.lowering.passes.differentiate import differentiate
from tintc.lowering.passes.eliminate_common import eliminate_common
from tintc.lowering.passes.plan_layout import plan_layout
from tintc.lowering.passes.unroll_steps import unroll_steps
from tintc.lowering.whole_program import REQUIRED
from tintc.options import Options


@dataclass(frozen=True)
class Pass:
    """A pass by name.

    takes, gives: the dialects of its program and of its result; apply: the pass itself, as a function of program and
    options; needs: attributes that its program must have, which earlier passes give; unrolled: True if it takes
    straight-line programs alone.
    """

    name: str
    takes: str
    gives: str
    apply: Callable[[Program, Options], Program]
    needs: tuple[str, ...] = ()
    unrolled: bool = False


def _plan_layout(program: Program, options: Options) -> Program:
    if options.max_length is None:
        raise OptionError("The layout depends on the longest text; say how long it is (max_length, --max-length).")
    return plan_layout(program, options, options.max_length)


PIPELINE = (
    Pass(
        "canonicalise",
        "aux",
        "aux",
        lambda program, options: canonicalise(program, options.gradient == "full"),
        ("width",),
    ),
    Pass("assign-layers", "aux", "aux", lambda program, options: assign_layers(program)),
    Pass("differentiate", "aux", "sim", differentiate, ("width", "vocab_size", "n_layers")),
    Pass("unroll-steps", "sim", "sim", lambda program, options: unroll_steps(program)),
    Pass("cse", "sim", "sim", lambda program, options: eliminate_common(program)),
    Pass("plan-layout", "sim", "sim", _plan_layout, ("width", "semantics"), unrolled=True),
    Pass("allocate-slots", "sim", "sim", lambda program, options: allocate_slots(program), ("layout",), unrolled=True),
)
"""The passes in the order in which `tintc.compile` runs them. `calibrate_softmax_heads`, which needs a text and is for
softmax heads alone, is not among them: `tintc.compile` runs it afterwards."""
AUXILIARY_PASSES = tuple(one for one in PIPELINE if one.gives == "aux")
"""Those that an auxiliary's program goes through."""
SIMULATOR_PASSES = tuple(one for one in PIPELINE if one.gives == "sim")
"""Those that make a simulator's program of an auxiliary's."""
PASSES_BEFORE_LAYOUT = tuple(takewhile(lambda one: one.name != "plan-layout", SIMULATOR_PASSES))
"""Those of them whose result a layout is chosen for."""

Observer = Callable[[Pass, Program, float], object]
"""A function of a pass, its result and the seconds that it took."""


def passes_named(names: str) -> tuple[Pass, ...]:
    """Return the passes of a list ``canonicalise,differentiate``; raise `OptionError` for a name that is unknown."""
    known = {one.name: one for one in PIPELINE}
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in known:
            raise OptionError(f"The pass {name!r} is unknown; choose among {', '.join(known)}.")
    return tuple(known[name] for name in chosen)


def run_passes(passes: Sequence[Pass], program: Program, options: Options, observe: Observer | None = None) -> Program:
    """Return the program after all passes, verified before and after each. observe: called after every pass.

    Raises `PassError`, which names the pass and those before it, for a program that does not verify or is not of the
    pass's dialect; the user's own mistakes, and defects of a pass, are raised as they are, with a note that does.
    """
    done: list[str] = []
    for one in passes:
        start = time.perf_counter()
        try:
            program = _run(one, program, options)
        except IRError as error:
            raise PassError(f"The pass {one.name} failed {_after(done)}: {error}") from error
        except Exception as error:
            error.add_note(f"In the pass {one.name}, {_after(done)}.")
            raise
        if observe is not None:
            observe(one, program, time.perf_counter() - start)
        done.append(one.name)
    return program


def _run(one: Pass, program: Program, options: Options) -> Program:
    """Return the program after one pass; raise `IRError` if it does not verify, before or after."""
    if program.dialect != one.takes:
        raise IRError(f"it takes a program of the dialect {one.takes}, and this one is of {program.dialect}.")
    missing = [name for name in one.needs if name not in program.attributes]
    if missing:
        raise IRError(f"the program has no attribute {missing[0]!r}, which an earlier pass gives.")
    wrong = [name for name in one.needs if not isinstance(program.attributes[name], REQUIRED[name])]
    if wrong:
        raise IRError(f"the program's attribute {wrong[0]!r} is no {REQUIRED[wrong[0]].__name__}.")
    if one.unrolled and any(isinstance(op, Repeat) for op in program.ops):
        raise IRError("the program has sim.repeat, which unroll-steps removes.")
    if program.dialect == "aux" and "logits" not in program.outputs:
        raise IRError("the program does not return logits.")
    return one.apply(program.verify(), options).verify()


def _after(done: Sequence[str]) -> str:
    """Return the words for the passes that ran before one."""
    if not done:
        return "at the start"
    return f"after {', '.join(done)}"
