"""Cases: a reader and edits of its files, drawn by hypothesis or read from a line of JSON; `tried` runs one under
watch and returns what was wrong with it."""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import time
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from edits import Edit, chosen
from hypothesis import strategies as st
from readers import KINDS, READERS, Sandbox

from tintc.errors import TintcError, UnsupportedModelError
from tintc.runtime.execution.available import peak_rss_bytes

MOST_SECONDS = 2.0
"""Seconds of CPU and of sleep of a case; who waits for anything else is stopped after ten times as many of a clock."""
MOST_MEMORY = 200_000_000
"""Bytes that a case may take beyond what the process has."""


CHANGES = {
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
}
"""Events that change files: where the arguments have the path, and the descriptor of the folder that it is in."""
FORBIDDEN = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "pickle.find_class")


class Case(NamedTuple):
    """reader: name of one of `READERS`."""

    reader: str
    edits: tuple[Edit, ...]

    def line(self) -> str:
        """Return it as a line of JSON."""
        return json.dumps([self.reader, [list(edit) for edit in self.edits]])

    @classmethod
    def of_line(cls, line: str) -> Case:
        reader, edits = json.loads(line)
        return cls(reader, tuple(Edit(*edit) for edit in edits))


EDIT = 7
"""Bytes that an edit is made of: one for its file, two each for its kind, its place and what is put there."""
LEAST, MOST = 2 + EDIT, 2 + 4 * EDIT
"""Bytes that a case of one edit, or of four, is made of."""


def shares_of(names: Collection[str]) -> list[str]:
    """Return the names of readers, each as often as its share of the cases."""
    return [name for name, reader in READERS.items() if name in names for _ in range(reader.share)]


def case_of(shares: list[str], drawn: bytes) -> Case:
    """Return the case that bytes stand for: the first two say which reader, each `EDIT` after them an edit."""
    name = chosen(shares, int.from_bytes(drawn[:2]))
    files = list(READERS[name].files.items())
    edits = []
    for start in range(2, len(drawn) - EDIT + 1, EDIT):
        where, kind, place, what = struct.unpack_from(">BHHH", drawn, start)
        file, form = chosen(files, where)
        edits.append(Edit(file, chosen(KINDS[form], kind), place, what))
    return Case(name, tuple(edits))


def cases(names: Collection[str] = tuple(READERS)) -> st.SearchStrategy[Case]:
    """Return the strategy of cases of one to four edits, in which readers have their shares.

    Bytes are drawn at once, since drawing choice by choice would cost more than reading.
    """
    return st.binary(min_size=LEAST, max_size=MOST).map(partial(case_of, shares_of(names)))


@dataclass
class Outcome:
    """refused: whether the files were refused in a sentence; wrong: what was wrong, empty if nothing; costly: whether
    that was time or memory alone; seconds: of CPU and of sleep; extra: bytes of memory beyond what the process had."""

    refused: bool = False
    wrong: str = ""
    costly: bool = False
    seconds: float = 0.0
    extra: int = 0


class TooLongError(BaseException):
    """A case did not come to an end in time."""


class Watch:
    """Notes what a case does beyond its sandbox: files that it writes, or opens though nobody may; programs and
    connections. It is told of by Python (`sys.addaudithook`), and so one stands for a whole process."""

    def __init__(self, sandbox: Sandbox, scratch: Path):
        """scratch: where temporary files may be."""
        self.inside = tuple(f"{os.path.realpath(path)}/" for path in (sandbox.base, scratch))
        self.outside = f"{os.path.realpath(sandbox.base)}/outside/"
        self.seen: list[str] = []
        self.slept = 0.0
        self.active = False
        self.follows = False
        sys.addaudithook(self._heard)

    def _heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event == "open":
            self._opened(*arguments)
        elif event in CHANGES:
            for path, folder in CHANGES[event]:
                self._changed(event, arguments[path], -1 if folder is None else arguments[folder])
        elif event == "time.sleep":
            self.slept += arguments[0]
        elif event in FORBIDDEN:
            self.seen.append(f"{event} {arguments!r:.200}")

    def _opened(self, path: Any, _: Any, flags: int) -> None:
        if isinstance(path, int) or path is None or not os.path.isabs(os.fsdecode(path)):
            return  # in a folder that is open: what is read there was looked at before
        place = os.path.realpath(os.fsdecode(path))
        if place.startswith(self.outside) and not self.follows:
            self.seen.append(f"opened {place}")
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and place != "/dev/null":
            self._changed("open", path, -1)

    def _changed(self, event: str, path: Any, folder: int) -> None:
        """Note a change of what a path names; a link is changed itself, those above it are followed."""
        named = Path(os.fsdecode(path))
        if folder != -1 and not named.is_absolute():
            named = Path(os.readlink(f"/proc/self/fd/{folder}")) / named
        place = os.path.join(os.path.realpath(named.parent), named.name)
        if not place.startswith(self.inside) or place.startswith(self.outside):
            self.seen.append(f"{event} of {place}")

    @contextmanager
    def over(self, follows: bool) -> Iterator[None]:
        """Listen during the block. follows: whether links out of the sandbox may be followed."""
        self.seen = []
        self.slept = 0.0
        self.follows = follows
        self.active = True
        try:
            yield
        finally:
            self.active = False


def tried(case: Case, sandbox: Sandbox, watch: Watch) -> Outcome:
    """Return what a case does; the sandbox is whole afterwards.

    One that took too much time or memory is tried once more: the machine may have other work, and what comes first
    imports packages that others use too.
    """
    outcome = _tried(case, sandbox, watch)
    if outcome.costly:
        outcome = _tried(case, sandbox, watch)
    return outcome


def _tried(case: Case, sandbox: Sandbox, watch: Watch) -> Outcome:
    reader = READERS[case.reader]
    sandbox.apply(reader, list(case.edits))
    outcome = Outcome()
    before = _reset_peak()
    start = time.process_time()
    try:
        with _limited(), watch.over(reader.follows):
            reader.read(sandbox, sandbox.base / reader.folder)
    except TintcError as error:
        outcome.refused = True
        lines = isinstance(error, UnsupportedModelError)  # which lists all places
        if ("\n" in str(error) and not lines) or len(str(error)) > 2000:
            outcome.wrong = f"a sentence of {len(str(error))} characters: {str(error)[:200]!r}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome.costly = isinstance(error, TooLongError)
        outcome.wrong = "".join(traceback.format_exception(error)[-6:])[-3000:]
    finally:
        outcome.seconds = time.process_time() - start + watch.slept
        outcome.extra = max(0, peak_rss_bytes() - before)
        sandbox.restore(reader)
    if not outcome.wrong and watch.seen:
        outcome.wrong = f"it {'; '.join(watch.seen[:3])}"
    costs = []
    if outcome.extra > MOST_MEMORY:
        costs.append(f"{outcome.extra // 10**6} MB")
    if outcome.seconds > MOST_SECONDS:
        costs.append(f"{outcome.seconds:.1f} s")
    if costs and not outcome.wrong:
        outcome.costly, outcome.wrong = True, f"it took {' and '.join(costs)}"
    return outcome


@contextmanager
def _limited() -> Iterator[None]:
    """Stop what takes longer than it may, even where it waits for a pipe."""

    def stop(*_: object) -> None:
        raise TooLongError("it does not come to an end")

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGALRM, signal.SIGPROF)}
    signal.setitimer(signal.ITIMER_PROF, 2 * MOST_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 10 * MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _reset_peak() -> int:
    """Begin to count the largest memory anew; return what the process has now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_rss_bytes()
