"""Choosing the executor: fused execution is the algebra of the structural tensors that the compiler emitted.

Of no others. So `auto` runs fused only while they are known to be the compiler's own:

- When a folder is loaded, the digest of its structural tensors is compared with the one the compiler wrote down.
- Before every run they are compared with a snapshot taken then: where each tensor lies, how often torch has seen it
  written to, and a sample of its numbers, because torch does not count what is written through ``.data``. A single
  number written that way can escape the sample; an optimiser, `load_state_dict` and edits under `torch.no_grad` cannot.
- Where the snapshot differs (after a move, a cast, an edit), every number is compared with what the compiler emits.

Literal execution is also chosen where somebody would notice the difference: a module carries a hook or another
`forward`, a module was added or replaced, or structural tensors wait for gradients.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from tintc.errors import OptionError
from tintc.ir.simulator import SimOp
from tintc.lowering.emission.emit import contiguous, structure_specs
from tintc.runtime.artefact.config import TintConfig
from tintc.runtime.artefact.structure_file import structure_digest
from tintc.runtime.execution.module_tree import Container
from tintc.runtime.execution.watched import place_of, sample_of
from tintc.runtime.model.modules import SimulatorModules
from tintc.runtime.model.precision import DTYPES, as_dtype

EXECUTORS = ("auto", "fused", "literal")
SAMPLED = 32
"""Numbers of each structural tensor that a snapshot holds."""
NOT_OWN = "the structural tensors are not those the compiler emitted"
WAITING = (
    "its structural tensors require gradients, which fused execution does not give them; "
    "sim.trainable('prefixes', 'rates') leaves them out, and torch.no_grad() needs none"
)
logger = logging.getLogger("tintc")


def check_executor(executor: str) -> None:
    """Raise `OptionError` for an executor that does not exist."""
    if executor not in EXECUTORS:
        raise OptionError(f"The executor {executor!r} is unknown; choose one of {', '.join(EXECUTORS)}.")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Tensors as they are at one moment: their names and places, and a sample of their numbers."""

    places: tuple[tuple[str, tuple[int, int], torch.dtype], ...]
    sample: Tensor

    @classmethod
    def of(cls, tensors: dict[str, Tensor]) -> Snapshot:
        """Return the snapshot of tensors on one device; cheap enough for every run."""
        places = tuple((name, place_of(tensor), tensor.dtype) for name, tensor in tensors.items())
        return cls(places, torch.cat([sample_of(tensor, SAMPLED) for tensor in tensors.values()]))

    def same(self, other: Snapshot) -> bool:
        """Return whether nothing was seen to change between two snapshots."""
        return self.places == other.places and torch.equal(self.sample, other.sample)


class StructuralModel(SimulatorModules):
    """The part of `TintForCausalLM` that knows whether its structure is the compiler's, and chooses the executor."""

    config: TintConfig

    def _start(self) -> None:
        """Set what a new simulator begins with; called once its modules are built, their tensors still empty."""
        self._executor = "auto"
        self.last_executor = ""
        self._softened = any(op.softmax for op in self.program.ops if isinstance(op, SimOp))
        self._warnings_given = set[str]()
        self._built_modules = self._executed_modules()
        self._checked: tuple[Snapshot, bool] | None = None
        self._freeze_structure()

    @property
    def executor(self) -> str:
        """Return ``auto``, ``fused`` or ``literal``; setting another raises `OptionError`."""
        return self._executor

    @executor.setter
    def executor(self, executor: str) -> None:
        check_executor(executor)
        self._executor = executor

    def _executed_modules(self) -> tuple[nn.Module, ...]:
        """Return the modules whose work fused execution does by algebra; prefixes and tables are only read, so that a
        parametrisation may stand there."""
        return (*self.structure.modules(), *self.sites.modules())

    def _freeze_structure(self) -> None:
        """Have structural tensors ask for no gradients, which is how a simulator begins (see `trainable`)."""
        for parameter in self._structure_parameters().values():
            parameter.requires_grad_(False)

    def trust(self) -> None:
        """Record that the structural tensors, as they are now, are the compiler's own."""
        self._checked = Snapshot.of(self._structure_tensors()), True

    def check_against(self, tensors: Mapping[str, Tensor]) -> None:
        """Record whether the structural tensors, just loaded from these, are those whose digest the configuration has.
        Raises `OptionError` for a dtype that no simulator has."""
        as_dtype(self.dtype)
        self._freeze_structure()
        own = structure_digest(tensors.items()) == self.config.digests.get("structure")
        names = {name for name in tensors if name.startswith("structure.")}
        complete = names == self._structure_parameters().keys()
        self._checked = Snapshot.of(self._structure_tensors()), own and complete

    def has_own_structure(self) -> bool:
        """Return whether the structural tensors are those the compiler emitted, in the simulator's dtype."""
        now = Snapshot.of(self._structure_tensors())
        if self._checked is None or not self._checked[0].same(now):
            self._checked = now, self._equals_emitted()
        return self._checked[1]

    def own_digest(self) -> str | None:
        """Return the digest of the structural tensors as a file would hold them; None if they are not the compiler's
        own."""
        if not self.has_own_structure():
            return None
        return structure_digest(self._structure_parameters().items())

    def why_literal(self) -> str | None:
        """Return why fused execution would not do what literal execution does, in words; None if it would."""
        if self._softened:
            return "its linear heads are softmax heads, whose errors fused execution would not make"
        modules = dict(self.named_modules())
        hooked = next((name for name, module in modules.items() if _hooked(module) or _replaced(module, self)), None)
        if hooked is not None:
            return f"{hooked or 'the simulator itself'} carries a hook, or another forward"
        if torch_module._has_any_global_hook():
            return "hooks are registered for every module (torch.nn.modules.module.register_module_forward_hook)"
        if self._executed_modules() != self._built_modules:
            return "modules were added to it, or replaced"
        waiting = torch.is_grad_enabled() and any(p.requires_grad for p in self._structure_parameters().values())
        if waiting and self.executor == "auto":
            return WAITING
        if not self.has_own_structure():
            return NOT_OWN
        return None

    def choose_executor(self) -> str:
        """Return ``fused`` or ``literal`` for this run, and say why it is the slow one, each reason once."""
        reason = None
        if self.executor != "literal":
            reason = self.why_literal()
        if self.executor == "fused" and reason is not None:
            raise OptionError(f"The executor fused cannot be used: {reason}. Choose auto or literal.")
        executor = "fused"
        if self.executor == "literal" or reason is not None:
            executor = "literal"
            if self.placed:
                why = reason or "the executor literal is asked for"
                raise OptionError(f"Layers lie on several devices, which only fused execution runs on, and {why}.")
        self.last_executor = executor
        if reason is not None and reason not in self._warnings_given:
            logger.warning("running literally, which is slow: %s", reason)
            self._warnings_given.add(reason)
        if executor == "literal":
            self._warn_of_unheard_hooks()
        return executor

    def _warn_of_unheard_hooks(self) -> None:
        """Say, once, which hooks will not fire: those on modules that only group others."""
        for name, module in self.named_modules():
            sentence = f"the hook on {name} never fires, because it only groups modules; hook those below it"
            if isinstance(module, Container) and _hooked(module) and sentence not in self._warnings_given:
                logger.warning(sentence)
                self._warnings_given.add(sentence)

    def _structure_parameters(self) -> dict[str, nn.Parameter]:
        """Return the structural tensors by their names in the state dict."""
        return {f"structure.{name}": parameter for name, parameter in self.structure.named_parameters()}

    def _structure_tensors(self) -> dict[str, Tensor]:
        """Return every structural tensor, and every term that is zero and not stored, by name."""
        zero: dict[str, Tensor] = {f"structure.{name}": tensor for name, tensor in self.structure.named_buffers()}
        return zero | self._structure_parameters()

    def _equals_emitted(self) -> bool:
        """Return whether every structural number is what the compiler emits: in the simulator's dtype, or rounded to a
        shorter one on the way, as casts back and forth leave it."""
        held = self._structure_parameters()
        specs = structure_specs(self.program)
        if held.keys() != specs.keys() or any(bool(zero.any()) for zero in self.structure.buffers()):
            return False
        return any(
            all(_equal(held[name], contiguous(spec.build, rounded)) for name, spec in specs.items())
            for rounded in (self.dtype, *DTYPES.values())
        )


def _equal(held: Tensor, emitted: Tensor) -> bool:
    return torch.equal(held.detach(), emitted.to(held.device, held.dtype))


def _hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _replaced(module: nn.Module, root: nn.Module) -> bool:
    """Return whether another `forward` stands in a module's place, as nnsight and accelerate put theirs; the model's
    own runs either way."""
    return module is not root and "forward" in module.__dict__
