"""Unique names."""

from __future__ import annotations


class Names:
    """Gives every name once: the wanted one, or the wanted one with a number after `separator`."""

    def __init__(self, separator: str = "-"):
        self.separator = separator
        self.taken: set[str] = set()

    def fresh(self, wanted: str) -> str:
        """Return the wanted name if it is free, else that name with the next number."""
        name = wanted
        count = 1
        while name in self.taken:
            count += 1
            name = f"{wanted}{self.separator}{count}"
        self.taken.add(name)
        return name
