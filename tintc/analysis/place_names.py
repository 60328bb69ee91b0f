"""The names of what heads read and write: values of the program, and parts of the auxiliary's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tintc.analysis.head_io import SlotRange
from tintc.analysis.role import Applied, Place, expert_and_tile, held_part, of_expert, shifted
from tintc.analysis.trace import Source
from tintc.ir.core import Value
from tintc.ir.layout import Layout


class PlaceNames:
    """The names in one program. values: by name; names: of the weights that its values hold, by value."""

    def __init__(self, layout: Layout, values: Mapping[str, Value], names: Mapping[str, str]):
        self.layout = layout
        self.values = values
        self.names = names

    def read(self, applied: Applied, part: SlotRange) -> Place:
        """Return what a head reads, by name."""
        if part.at == "prefixes":
            return self._in_prefix(applied, part)
        contents = applied.application.contents
        sources = contents[part.slot] if part.slot < len(contents) else ()
        return self._in_tokens(part, sources)

    def written(self, applied: Applied, part: SlotRange) -> Iterator[Place]:
        """Yield the places that a head writes, by name."""
        if part.at == "prefixes":
            yield self._in_prefix(applied, part)
        elif targets := applied.application.feeds.get(part.slot, []):
            yield from (self._in_tokens(part, (target,)) for target in targets)
        else:
            yield Place(part.as_, part.at, part.slot, "", part.numbers)

    def _in_tokens(self, part: SlotRange, sources: tuple[Source, ...]) -> Place:
        named = [f"#{name}" if isinstance(name, int) else name for name, _ in sources]
        numbers = part.numbers
        if len(sources) == 1 and isinstance(sources[0][0], str) and sources[0][0] in self.values:
            name, tile = sources[0]
            kind = self.values[str(name)].type
            expert, tile = expert_and_tile(self.layout, kind, tile)
            named = [f"{name}{of_expert(expert)}"]
            numbers = shifted(numbers, tile * self.layout.pitch, kind.width)
        return Place(part.as_, part.at, part.slot, " + ".join(named), numbers)

    def _in_prefix(self, applied: Applied, part: SlotRange) -> Place:
        held = applied.application.held
        if held is None:
            return Place(part.as_, part.at, part.slot, "", part.numbers)
        if held.computed:
            return Place(part.as_, part.at, part.slot, f"#{held.by}", part.numbers)
        kind = self.values[held.weights].type
        name, rows, _ = held_part(self.layout, kind, held.row, held.column, part)
        return Place(
            part.as_,
            part.at,
            part.slot,
            f"{self.names[held.weights]}.{name}{of_expert(held.expert)}" if rows else "",
            rows,
        )
