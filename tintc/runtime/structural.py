"""Which executor may run, and the structural tensors that only literal execution needs.

Fused execution is the algebra of the structural tensors that the compiler emitted, and of no others. So it runs only
while they are known to be the compiler's own:

- A loaded simulator has its structural tensors hashed in the file. If they are the compiler's own they are *released*
  (fused execution does not hold them); those of a simulator just compiled are, at its first fused run. Looking at the
  model's modules, parameters or state dict brings them back from the file, checked again.
- Once somebody has looked they can be edited, so they are hashed again before every fused run. Where they could be
  trained as well (autograd records, and they require gradients), only literal execution gives them theirs.
- They can be set apart (`TrainableModel.trainable`): then walking over the model does not count as looking at them.
- Gates whose pre-activation leaves them short of 1 (option gate scale) are literal execution's alone: the program's
  meaning, which the interpreters and fused execution compute, has gates of 0 and 1.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from tintc.errors import ArtefactError, OptionError
from tintc.ir.core import Program
from tintc.ir.simulator import SimOp
from tintc.ir.structure import is_saturated
from tintc.lowering.emit import contiguous, gate_scale_of, stored_dtype, structure_specs
from tintc.runtime.artefact import as_dtype, structure_digest
from tintc.runtime.config import TintConfig
from tintc.runtime.tree import owner

EXECUTORS = ("auto", "fused", "literal")
logger = logging.getLogger("tintc")


def check_executor(executor: str) -> None:
    if executor not in EXECUTORS:
        raise OptionError(f"The executor {executor!r} is unknown; choose one of {', '.join(EXECUTORS)}.")


def stored_structure(folder: str | Path) -> dict[str, Tensor]:
    """The structural tensors in a folder's safetensors files, memory-mapped; none if there is no such file."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            names = [name for name in opened.keys() if name.startswith("structure.")]  # noqa: SIM118 - not a dict
            tensors.update((name, opened.get_tensor(name)) for name in names)
    return tensors


class StructuralModel(PreTrainedModel):
    """The part of `TintForCausalLM` that holds, releases and checks structural tensors, and chooses the executor."""

    config: TintConfig
    program: Program

    def _start(self) -> None:
        """Called once the modules are built, with their tensors still empty."""
        self.executor = "auto"
        self._held = True
        self._softened = any(op.softmax for op in self.program.ops if isinstance(op, SimOp))
        self._own: str | None = None
        self._said = set[str]()
        self._passing = False
        self._apart = False
        self._structural = tuple(structure_specs(self.program))
        self._every_module = (*_modules_below(self),)
        self.last_executor = ""
        self._seen = False
        self._origin: tuple[Path | None, str | None, torch.dtype | None] = None, None, None

    def bind(self) -> None:
        """Point blocks at the tensors they share. Needed whenever parameters have been replaced."""
        raise NotImplementedError

    def own_digest(self) -> str | None:
        """Digest of the structural tensors as a file would hold them, if they are the compiler's own."""
        self.hold()
        stored = ((name, tensor) for name, tensor in self._held_tensors() if name in self._structural)
        return structure_digest(stored) if self._is_own() else None

    def trust(self) -> None:
        """Record that the structural tensors, as they are now, are the compiler's own."""
        self._own = structure_digest(self._held_tensors())

    def settle(self, folder: Path | None = None) -> None:
        """After compiling, or loading from `folder`: remember where the compiler's own tensors are to be had, and
        release them unless literal execution is wanted. Tensors without the compiler's digest stay."""
        self._origin = folder, self.config.digests.get("structure"), as_dtype(self.config.dtype)
        if folder is not None:
            tensors = stored_structure(folder)
            if not self._matches(tensors):
                return
            self._origin = *self._origin[:2], next(iter(tensors.values())).dtype
        if folder is not None and self.executor != "literal":
            self._drop()
        else:
            self.trust()
        self._seen = False

    def _matches(self, tensors: dict[str, Tensor]) -> bool:
        """Whether these are the tensors whose digest the compiler wrote down."""
        return tensors.keys() == set(self._structural) and structure_digest(tensors.items()) == self._origin[1]

    def release(self) -> None:
        """Drop structural tensors that are the compiler's own; `hold` brings them back. Raises `OptionError` if they
        are not."""
        if self._held and not self._is_own():
            raise OptionError("The structural tensors are not those the compiler emitted, so they are kept.")
        self._drop()

    def _drop(self) -> None:
        for name in self._structural:
            module, leaf = owner(self, name)
            module._parameters[leaf] = None
        self._held = False
        self.bind()

    def hold(self) -> None:
        """Have the structural tensors in memory again, checked against the compiler's digest: those of the file, or,
        where the file is gone or has changed, those that the compiler emits. Raises `ArtefactError` if neither are."""
        self._seen = True
        if self._held:
            return
        tensors = self._compilers_own()
        self._held = True
        for name, stored in tensors.items():
            module, leaf = owner(self, name)
            tensor = torch.empty(stored.shape, dtype=stored_dtype(name, self.dtype), device=self.device)
            module._parameters[leaf] = nn.Parameter(tensor.copy_(stored), requires_grad=not self._apart)
        self.bind()
        self.trust()

    def _look(self) -> None:
        """What walking over the model begins with."""
        if not self._apart:
            self.hold()

    def _compilers_own(self) -> dict[str, Tensor]:
        folder, digest, dtype = self._origin
        if folder is not None and self._matches(tensors := stored_structure(folder)):
            return tensors
        specs = structure_specs(self.program).items()
        tensors = {name: contiguous(spec.build, stored_dtype(name, dtype or self.dtype)) for name, spec in specs}
        if digest is not None and not self._matches(tensors):
            raise ArtefactError(
                "The simulator's file has changed since it was loaded, and this version of tintc would emit other "
                "structural tensors; load the simulator again."
            )
        return tensors

    def _held_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every structural tensor, and every term that is zero and not stored, by name."""
        structure = self._modules["structure"]
        assert structure is not None
        for index, module in enumerate(_modules_below(structure)):
            yield from ((f"structure.{index}.{name}", b) for name, b in module._buffers.items() if b is not None)
        for name in self._structural:
            module, leaf = owner(self, name)
            tensor = module._parameters[leaf]
            assert tensor is not None
            yield name, tensor

    def _held_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every parameter that is in memory, or mapped, by name; structural tensors that were released stay so."""
        for name, module in nn.Module.named_modules(self):
            for leaf, parameter in module._parameters.items():
                if parameter is not None:
                    yield f"{name}.{leaf}", parameter

    def _is_own(self) -> bool:
        """Whether the tensors and modules held are those the compiler emitted."""
        if self._own is None or self._every_module != (*_modules_below(self),):
            return False
        try:
            return structure_digest(self._held_tensors()) == self._own
        except KeyError:  # a parametrisation has taken a tensor's place
            return False

    def why_literal(self) -> str | None:
        """Why fused execution would not do what literal execution does, in words; None if it would."""
        if self._softened:
            return "its linear heads are softmax heads, whose errors fused execution would not make"
        if hooked := {module for module in _modules_below(self) if _hooked(module) or _replaced(module, self)}:
            name = next((name for name, module in nn.Module.named_modules(self) if name and module in hooked), "")
            return f"{name or 'the simulator itself'} carries a hook, or another forward"
        if self._held and not self._is_own():
            return "the structural tensors are not those the compiler emitted"
        scale = gate_scale_of(self.program)
        if not is_saturated(scale, self.dtype):
            return f"its position gates, of pre-activation {scale:g}, are not exactly 1"
        return None

    def _choose_executor(self) -> str:
        """``fused`` or ``literal`` for this run."""
        check_executor(self.executor)
        reason = None if self.executor == "literal" else self.why_literal()
        if self.executor != "literal" and reason is None:
            if self._held and not self._seen:  # nobody can have a tensor to edit, so none need be checked again
                self._drop()
            self.last_executor = "fused"
            return self.last_executor
        if self.executor == "fused":
            raise OptionError(f"The executor fused cannot be used: {reason}. Choose auto or literal.")
        if reason is not None and reason not in self._said:
            logger.warning("running literally, which is slow: %s", reason)
            self._said.add(reason)
        self.hold()
        self.last_executor = "literal"
        return self.last_executor

    @property
    def device(self) -> torch.device:
        return self._witness.device

    @property
    def dtype(self) -> torch.dtype:
        return self._witness.dtype

    @property
    def _witness(self) -> Tensor:
        """A parameter that is always there and always of the simulator's dtype."""
        module = self._modules["tables"]
        while module is not None and not module._parameters:
            module = next(iter(module._modules.values()))
        assert module is not None
        tensor = next(iter(module._parameters.values()))
        assert tensor is not None
        return tensor

    def __getattr__(self, name: str) -> Any:
        if name == "structure" and "_held" in self.__dict__:
            self.hold()
        return super().__getattr__(name)

    def _named_members(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        self._look()
        return super()._named_members(*args, **kwargs)

    def named_modules(self, memo: set[nn.Module] | None = None, *args: Any, **kwargs: Any) -> Iterator[Any]:
        if "_held" in self.__dict__:
            self._look()
            memo = {self._modules["structure"], *(memo or ())} if self._apart else memo  # pyright: ignore
        return super().named_modules(memo, *args, **kwargs)

    def named_children(self) -> Iterator[Any]:
        if "_held" not in self.__dict__ or self._passing:
            return super().named_children()
        self._look()
        return (pair for pair in super().named_children() if not (self._apart and pair[0] == "structure"))

    def train(self, mode: bool = True) -> Any:
        """As any module's; it looks at no tensor, so that nothing need be held for it."""
        for module in self._every_module:
            module.training = mode
        return self

    def get_submodule(self, target: str) -> nn.Module:
        if target.startswith("structure") and "_held" in self.__dict__:
            self.hold()
        return super().get_submodule(target)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self.hold()
        return super().state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        self.hold()
        return super().load_state_dict(*args, **kwargs)

    def _precise(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Rates and rotary frequencies, which stay in fp32 or better."""
        for kind in ("rates", "rotary"):
            root = self._modules[kind]
            assert root is not None
            for module in _modules_below(root):
                yield from (
                    (f"{kind}.", parameter) for parameter in module._parameters.values() if parameter is not None
                )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moves and casts keep the tensors the compiler's own, in another form."""
        own = self._held and self._is_own()
        precise = [(name, parameter, parameter.data) for name, parameter in self._precise()]
        self._passing = True
        try:
            super()._apply(fn, recurse)
        finally:
            self._passing = False
        for name, parameter, before in precise:
            wanted = stored_dtype(name, parameter.dtype)
            if parameter.dtype != wanted:
                parameter.data = before.to(device=parameter.device, dtype=wanted)
        if own:
            self.trust()
        self.bind()
        return self


def _modules_below(root: nn.Module) -> Iterator[nn.Module]:
    """`root` and all modules below it, without what `StructuralModel` does when a user asks."""
    yield root
    for child in root._modules.values():
        if child is not None:
            yield from _modules_below(child)


def _hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _replaced(module: nn.Module, root: nn.Module) -> bool:
    """Whether another `forward` stands in a module's place, as nnsight and accelerate put theirs; the model's own runs
    either way."""
    return module is not root and "forward" in module.__dict__
