"""Weights that lie in mapped files: read when they are needed, and not held.

The tensors that transformers makes of a safetensors file are views of a private mapping of it. A page that was read
counts as this process's memory until it is given back; then it costs nothing, and is read again when somebody looks.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from tintc.ir.lazy import Lazy

MAPS = Path("/proc/self/maps")


class MappedWeights:
    """The files behind a model's tensors, for models that nobody writes to: a page that was written to loses it.

    Tensors in memory (converted, dequantised) are no business of it. Where the system does not say what is mapped, it
    does nothing.
    """

    def __init__(self, tensors: Iterable[Tensor] = ()):
        self._tensors = tuple(tensors)  # held, so that no other memory can take the mappings' place
        self._files = [area for area in _weight_files() if any(_lies_in(tensor, area) for tensor in self._tensors)]

    @property
    def nbytes(self) -> int:
        """Return the size of the mappings in bytes."""
        return sum(end - start for start, end in self._files)

    def release(self) -> None:
        """Give back the pages of all files."""
        for start, end in self._files:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)

    def read_sparingly(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the same tensors; reading one gives back the pages of those that were read before."""

        def read(name: str) -> Tensor:
            self.release()
            return tensors[name]

        return Lazy(tensors, read)

    @contextmanager
    def sparing(self, model: nn.Module) -> Iterator[None]:
        """Keep the weights of one module at a time in memory while a model runs."""
        owners = [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]
        hooks = [module.register_forward_hook(lambda *_: self.release()) for module in owners]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self.release()


def _weight_files() -> list[tuple[int, int]]:
    """Return first and last address of every mapped safetensors file."""
    try:
        lines = MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    areas = (line.split(maxsplit=1)[0].split("-") for line in lines if line.endswith(".safetensors"))
    return [(int(start, 16), int(end, 16)) for start, end in areas]


def _lies_in(tensor: Tensor, area: tuple[int, int]) -> bool:
    return tensor.device.type == "cpu" and area[0] <= tensor.data_ptr() < area[1]
