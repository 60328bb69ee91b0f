"""What the parts of a run hand to each other: values by part of the text, each until every reader has let it go."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable
from typing import Any


class Stopped(Exception):
    """Another part has failed."""


class Relay:
    """A board that several threads write to and wait at.

    What is put there stands under a key until it has been released as often as it is `held`.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._version = 0
        self._kept: dict[Hashable, Any] = {}
        self._holders: dict[Hashable, int] = {}
        self.error: BaseException | None = None

    def put(self, key: Hashable, value: Any, holders: int) -> None:
        with self._changed:
            self._kept[key] = value
            self._count(key, holders)
            self._version += 1
            self._changed.notify_all()

    def has(self, keys: Iterable[Hashable]) -> bool:
        return all(key in self._kept for key in keys)

    def get(self, key: Hashable) -> Any:
        return self._kept[key]

    def hold(self, keys: Iterable[Hashable]) -> None:
        """One more reader of each, whether it is there yet or not."""
        with self._changed:
            for key in keys:
                self._count(key, 1)

    def release(self, keys: Iterable[Hashable]) -> None:
        """One reader of each has gone, or will not come; what is not there yet will be there for one less."""
        with self._changed:
            for key in keys:
                self._count(key, -1)

    def _count(self, key: Hashable, change: int) -> None:
        self._holders[key] = self._holders.get(key, 0) + change
        if not self._holders[key]:
            del self._holders[key]
            self._kept.pop(key, None)

    def wait(self, keys: Iterable[Hashable], meanwhile: Callable[[], bool]) -> None:
        """Until all keys are there; `meanwhile` does something useful, and says whether there was anything to do.

        Raises `Stopped` if another part has failed.
        """
        keys = tuple(keys)
        while not self.has(keys):
            version = self._version
            if self.has(keys) or meanwhile():
                continue
            with self._changed:
                while self._version == version and self.error is None:
                    self._changed.wait()
            if self.error is not None:
                raise Stopped

    def fail(self, error: BaseException) -> None:
        """Nothing more will come of this part."""
        with self._changed:
            self.error = self.error or error
            self._changed.notify_all()
