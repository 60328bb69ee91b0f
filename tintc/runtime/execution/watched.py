"""How to tell whether a tensor is still what it was: where it lies, how often it was written to, some numbers."""

from __future__ import annotations

from torch import Tensor


def place_of(tensor: Tensor) -> tuple[int, int]:
    """Return (address, number of writes that torch has seen); torch does not count those of inference tensors."""
    if tensor.is_inference():
        return tensor.data_ptr(), 0
    return tensor.data_ptr(), tensor._version


def sample_of(tensor: Tensor, count: int) -> Tensor:
    """Return about `count` numbers at even distances: torch does not count what is written through ``.data``."""
    flat = tensor.detach().flatten()
    return flat[:: max(1, flat.numel() // count)]
