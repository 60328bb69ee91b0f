"""`make fuzz`: cases for as long as one likes, each under watch; what is wrong is written down, and the run goes on.

    python tests/fuzz/run.py --cases 100000 --seed 1 --into FOLDER
    python tests/fuzz/run.py --minutes 60 --guided        # by coverage of tintc, with atheris: pip install atheris
    python tests/fuzz/run.py --replay FOLDER/wrong.jsonl

It prints one object with the figures. A scratch folder in memory (``TMPDIR=/dev/shm``) makes it half as fast again.
Cases that are wrong stand in `wrong.jsonl`, one of each kind, with what was said; once mended they belong into
`corpus.jsonl`, which the tests try.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import random
import re
import resource
import sys
import tempfile
import time
from collections import Counter, defaultdict
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
ADDRESSES = 8 << 30
"""Bytes of address space that the process may have."""
FIRST = 500
"""Random cases that a guided run begins with."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10**12, help="how many")
    parser.add_argument("--minutes", type=float, default=10**6, help="for how long")
    parser.add_argument("--seed", type=int, default=0, help="which: the same seed gives the same cases")
    parser.add_argument("--readers", default="", help="only these, with commas between")
    parser.add_argument("--guided", action="store_true", help="by coverage, with atheris")
    parser.add_argument("--replay", type=Path, help="the cases of that file alone")
    parser.add_argument("--into", type=Path, default=Path("fuzz-results"), help="folder of results")
    return parser.parse_args()


class Tally:
    """Counts of cases, and one case of each kind of what is wrong."""

    def __init__(self, given: argparse.Namespace):
        from cases import Watch
        from command import simulator_folder
        from readers import Sandbox

        self.given = given
        scratch = Path(tempfile.mkdtemp(prefix="tintc-fuzz-"))
        tempfile.tempdir = str(scratch / "tmp")
        (scratch / "tmp").mkdir()
        self.sandbox = Sandbox(scratch / "sandbox", simulator_folder(scratch / "compiled").parent)
        self.watch = Watch(self.sandbox, scratch / "tmp")
        self.counts: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.refused = 0
        self.started = time.process_time()
        self.slowest = 0.0
        self.largest = 0
        self.kinds: Counter[str] = Counter()
        self.start = time.monotonic()
        given.into.mkdir(parents=True, exist_ok=True)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))

    @property
    def done(self) -> bool:
        late = time.monotonic() - self.start > 60 * self.given.minutes
        return late or self.counts.total() >= self.given.cases

    def add(self, case: Any) -> None:
        from cases import tried

        (self.given.into / "current.jsonl").write_text(case.line())  # what a crash leaves
        outcome = tried(case, self.sandbox, self.watch)
        self.counts[case.reader] += 1
        self.seconds[case.reader] += outcome.seconds
        self.refused += outcome.refused
        self.slowest = max(self.slowest, outcome.seconds)
        self.largest = max(self.largest, outcome.extra)
        if outcome.wrong:
            kind = _kind(outcome.wrong)
            self.kinds[kind] += 1
            if self.kinds[kind] == 1:
                with (self.given.into / "wrong.jsonl").open("a") as file:
                    file.write(case.line() + "\n")
                with (self.given.into / "wrong.txt").open("a") as file:
                    file.write(f"{case.line()}\n{outcome.wrong}\n\n")
        if self.counts.total() % 1000 == 0:
            (self.given.into / "figures.json").write_text(json.dumps(self.figures()))

    def figures(self) -> dict[str, Any]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "cases": self.counts.total(),
            "refused": self.refused,
            "wrong": self.kinds.total(),
            "kinds_of_wrong": dict(self.kinds),
            "slowest_seconds": round(self.slowest, 3),
            "most_extra_megabytes": round(self.largest / 1e6, 1),
            "by_reader": dict(self.counts),
            "seconds_by_reader": {name: round(seconds, 1) for name, seconds in self.seconds.items()},
            "cpu_seconds": round(time.process_time() - self.started),
            "peak_megabytes": usage.ru_maxrss >> 10,
            "seed": self.given.seed,
        }


def _kind(wrong: str) -> str:
    """Return what tells one mistake from another: the error and the innermost line of ours."""
    last = re.sub(r"\d+", "N", wrong.strip().splitlines()[-1])[:60]
    places = re.findall(r'File "[^"]*?/(tintc/[^"]+|tests/fuzz/[^"]+)", line (\d+)', wrong)
    return f"{':'.join(places[-1]) if places else ''} {last}"


def drawn(tally: Tally, names: tuple[str, ...]) -> None:
    """Cases as hypothesis draws them, a thousand from each seed."""
    from cases import Case, cases
    from hypothesis import HealthCheck, Phase, given, seed, settings

    @settings(
        max_examples=min(1000, tally.given.cases),
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
    @given(cases(names))
    def one(case: Case) -> None:
        if not tally.done:
            tally.add(case)

    number = tally.given.seed * 1_000_000  # so that runs from other seeds draw other cases
    while not tally.done:
        seed(number)(one)()
        number += 1


def guided(tally: Tally, names: tuple[str, ...]) -> None:
    """Cases whose bytes atheris makes, which keeps those that reach new lines of tintc and changes them further."""
    from cases import LEAST, MOST, case_of, shares_of

    atheris = import_module("atheris")
    shares = shares_of(names)

    def test(data: bytes) -> None:
        if tally.done:
            print(json.dumps(tally.figures()))
            sys.stdout.flush()
            os._exit(0)  # it would go on for ever
        tally.add(case_of(shares, data.ljust(LEAST, b"\0")))

    corpus = tally.given.into / "atheris"
    if not corpus.exists():
        corpus.mkdir()
        generator = random.Random(tally.given.seed)
        for number in range(FIRST):
            (corpus / f"first-{number}").write_bytes(generator.randbytes(MOST))
    options = [f"-seed={tally.given.seed + 1}", f"-max_len={MOST}", "-len_control=0", "-verbosity=0"]
    options.append("-timeout=0")  # the watch of a case has the alarm
    atheris.Setup([sys.argv[0], *options, str(corpus)], test)
    atheris.Fuzz()


def main() -> None:
    given = arguments()
    logging.disable(logging.CRITICAL)
    if given.guided:
        try:
            atheris = import_module("atheris")
        except ImportError:
            sys.exit("--guided needs atheris: pip install atheris (it has wheels for Linux and Python up to 3.13)")
        with atheris.instrument_imports(include=["tintc"], enable_loader_override=False):
            import readers
    else:
        import readers
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    tally = Tally(given)
    gc.collect()
    gc.freeze()  # what is imported stays, and is not looked at again
    names = tuple(readers.READERS)
    if given.readers:
        names = tuple(given.readers.split(","))
    if given.replay:
        from cases import Case

        for line in given.replay.read_text().splitlines():
            tally.add(Case.of_line(line))
    elif given.guided:
        guided(tally, names)
    else:
        drawn(tally, names)
    print(json.dumps(tally.figures()))


if __name__ == "__main__":
    main()
