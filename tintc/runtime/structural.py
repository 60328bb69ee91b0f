"""Which executor may run, and the structural tensors that only literal execution needs.

Fused execution is the algebra of the structural tensors that the compiler emitted, and of no others. So it runs only
while they are known to be the compiler's own:

- A loaded simulator has its structural tensors hashed in the file. If they are the compiler's own they are *released*
  (fused execution does not hold them). Looking at the model's modules, parameters or state dict brings them back.
- While they are held they can be edited, so they are hashed again before every fused run.
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

from tintc.errors import OptionError
from tintc.ir.core import Program
from tintc.lowering.emit import stored_dtype, structure_specs
from tintc.runtime.artefact import structure_digest
from tintc.runtime.config import TintConfig
from tintc.runtime.tree import owner

EXECUTORS = ("auto", "fused", "literal")
logger = logging.getLogger("tintc")


def check_executor(executor: str) -> None:
    if executor not in EXECUTORS:
        raise OptionError(f"The executor {executor!r} is unknown; choose one of {', '.join(EXECUTORS)}.")


def stored_digest(folder: str | Path) -> str | None:
    """Digest of the structural tensors in a folder's safetensors files; None if there are none."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            names = [name for name in opened.keys() if name.startswith("structure.")]  # noqa: SIM118 - not a dict
            tensors.update((name, opened.get_tensor(name)) for name in names)
    return structure_digest(tensors.items()) if tensors else None


class StructuralModel(PreTrainedModel):
    """The part of `TintForCausalLM` that holds, releases and checks structural tensors, and chooses the executor."""

    config: TintConfig
    program: Program

    def _start(self) -> None:
        """Called once the modules are built, with their tensors still empty."""
        self.executor = "auto"
        self._held = True
        self._own: str | None = None
        self._said = False
        self._passing = False
        self._structural = tuple(structure_specs(self.program))
        self._every_module = (*_modules_below(self),)
        self.last_executor = ""

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

    def settle(self, digest: str | None) -> None:
        """After loading: trust and release tensors whose file has the compiler's digest, unless literal is wanted."""
        if digest is None or digest != self.config.digests.get("structure"):
            return
        self.trust()
        if self.executor != "literal":
            self.release()

    def release(self) -> None:
        """Drop structural tensors that are the compiler's own; `hold` makes them again. Raises `OptionError` if they
        are not."""
        if self._held and not self._is_own():
            raise OptionError("The structural tensors are not those the compiler emitted, so they are kept.")
        for name in self._structural:
            module, leaf = owner(self, name)
            module._parameters[leaf] = None
        self._held = False
        self.bind()

    def hold(self) -> None:
        """Have the structural tensors in memory: those the compiler emits, since no others are ever released."""
        if self._held:
            return
        self._held = True
        for name, spec in structure_specs(self.program).items():
            module, leaf = owner(self, name)
            tensor = spec.build().to(stored_dtype(name, self.dtype)).to(self.device)
            module._parameters[leaf] = nn.Parameter(tensor)
        self.bind()
        self.trust()

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

    def _is_own(self) -> bool:
        """Whether the tensors and modules held are those the compiler emitted."""
        if self._own is None or self._every_module != (*_modules_below(self),):
            return False
        try:
            return structure_digest(self._held_tensors()) == self._own
        except KeyError:  # a parametrisation has taken a tensor's place
            return False

    def _reason_for_literal(self) -> str | None:
        """Why fused execution would not do what literal execution does; None if it would."""
        if any(_hooked(module) for module in _modules_below(self)):
            return "a module carries a hook"
        if self._held and not self._is_own():
            return "the structural tensors are not those the compiler emitted"
        return None

    def _choose_executor(self) -> str:
        """``fused`` or ``literal`` for this run."""
        check_executor(self.executor)
        reason = None if self.executor == "literal" else self._reason_for_literal()
        if self.executor != "literal" and reason is None:
            self.last_executor = "fused"
            return self.last_executor
        if self.executor == "fused":
            raise OptionError(f"The executor fused cannot be used: {reason}. Choose auto or literal.")
        if reason is not None and not self._said:
            logger.warning("running literally, which is slow: %s", reason)
            self._said = True
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
        self.hold()
        return super()._named_members(*args, **kwargs)

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        if "_held" in self.__dict__:
            self.hold()
        return super().named_modules(*args, **kwargs)

    def named_children(self) -> Iterator[Any]:
        if "_held" in self.__dict__ and not self._passing:
            self.hold()
        return super().named_children()

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
