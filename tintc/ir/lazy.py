"""`Lazy`: tensors that are made when they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import Tensor


class Lazy(Mapping[str, Tensor]):
    """A mapping that makes a tensor whenever it is read and holds none, so that a model need not be in memory twice.

    names: its keys; make: the tensor of a name.
    """

    def __init__(self, names: Iterable[str], make: Callable[[str], Tensor]):
        self._names = dict.fromkeys(names)
        self._make = make

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
