"""`make sweep`: every causal language model that transformers registers, each in a process of its own.

    python -m tools.sweep.run [--only TYPE ... [--update]] [--fresh] [--no-write] [--describe]

Two run at a time, each within `SECONDS` and `MEMORY`. What is done is kept in `build/sweep.jsonl`, one line a
configuration, so that an interrupted sweep goes on where it stopped. When all is done the table goes into the package
(`tintc/families.json`, which `tintc families` prints) and into `docs/families.md`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

SECONDS, MEMORY, AT_ONCE = 240, 12 << 30, 2
"""Limits of one configuration (wall clock; bytes of address space), and how many run at a time."""
ROOT = Path(__file__).parents[2]
PARTIAL = ROOT / "build" / "sweep.jsonl"
Job = tuple[str, str]


def main() -> int:
    arguments = _arguments()
    if arguments.describe:
        return _describe()
    jobs = all_jobs(arguments.only)
    PARTIAL.parent.mkdir(exist_ok=True)
    if arguments.fresh:
        PARTIAL.unlink(missing_ok=True)
    done = _read()
    start = time.perf_counter()
    for outcome in _run([job for job in jobs if job not in done]):
        done[outcome["model_type"], outcome["variant"]] = outcome
        with PARTIAL.open("a", encoding="utf-8") as file:
            file.write(json.dumps(outcome) + "\n")
        print(_line(outcome), flush=True)
    outcomes = [done[job] for job in jobs]
    print(f"{time.perf_counter() - start:.0f} s")
    if arguments.only and arguments.update:
        return _update(outcomes)
    return _finish(outcomes, write=not (arguments.only or arguments.no_write))


def all_jobs(only: list[str] | None = None) -> list[Job]:
    """Return every registered type, and the variants of each; of the types in `only`, if any are given."""
    from tools.sweep.tiny import registered_types
    from tools.sweep.variants import VARIANTS

    types = [name for name in registered_types() if not only or name in only]
    return [(name, variant) for name in types for variant in ("", *VARIANTS.get(name, {}))]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check every decoder type that transformers registers.")
    parser.add_argument("--only", nargs="+", metavar="TYPE", help="check these types, and write nothing unless told to")
    parser.add_argument("--update", action="store_true", help="with --only, write what these types' rows say now")
    parser.add_argument("--fresh", action="store_true", help="forget what an interrupted sweep has done")
    parser.add_argument("--no-write", action="store_true", help="leave the tables as they are")
    parser.add_argument(
        "--describe", action="store_true", help="check nothing, and write the stored outcomes in new words"
    )
    return parser.parse_args()


def _read() -> dict[Job, dict[str, Any]]:
    if not PARTIAL.exists():
        return {}
    text = PARTIAL.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]  # the last line of a killed sweep may be half written
    if whole != text:
        PARTIAL.write_text(whole, encoding="utf-8")
    lines = [json.loads(line) for line in whole.splitlines()]
    return {(line["model_type"], line["variant"]): line for line in lines}


def _run(jobs: list[Job]) -> Iterator[dict[str, Any]]:
    """Outcomes as they come; workers are forked off a server that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tools.sweep.worker"])
    running: dict[Connection, tuple[Any, Job, float]] = {}
    waiting = list(reversed(jobs))
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            job, (here, there) = waiting.pop(), context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(*job, there), daemon=True)
            process.start()
            there.close()
            running[here] = (process, job, time.monotonic() + SECONDS)
        ready = wait(list(running), timeout=1.0)
        for connection, (process, job, deadline) in list(running.items()):
            late = time.monotonic() > deadline
            if connection not in ready and not late:
                continue
            yield _outcome(connection, process, job) if connection in ready else _lost(job, f"took over {SECONDS} s")
            process.kill()
            process.join()
            del running[connection]


def _work(model_type: str, variant: str, connection: Connection) -> None:
    from tools.sweep.worker import check

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    connection.send(check(model_type, variant))


def _outcome(connection: Connection, process: Any, job: Job) -> dict[str, Any]:
    try:
        return connection.recv()
    except EOFError:
        process.join()
        return _lost(job, f"its process ended with code {process.exitcode}")


def _lost(job: Job, why: str) -> dict[str, Any]:
    from tools.sweep.family import Outcome

    return Outcome(*job, reasons=[why]).to_json()


def _line(outcome: dict[str, Any]) -> str:
    name = ", ".join(filter(None, (outcome["model_type"], outcome["variant"])))
    return f"{name:40} {outcome['stage']:10} {outcome['seconds']:6.1f} s  {'; '.join(outcome['reasons'])[:200]}"


def _describe() -> int:
    from tintc.known_families import read_data
    from tools.sweep.page import described_anew, write_tables

    write_tables(described_anew(read_data()))
    return 0


def _update(outcomes: list[dict[str, Any]]) -> int:
    from tintc.known_families import read_data
    from tools.sweep.page import with_outcomes, write_tables

    write_tables(with_outcomes(read_data(), outcomes))
    return 0


def _finish(outcomes: list[dict[str, Any]], write: bool) -> int:
    """Write the tables, and compare with what is promised."""
    from tintc.reference.family_table import summary
    from tools.sweep.page import to_data, write_tables

    data = to_data(outcomes)
    print(summary(data))
    if write:
        write_tables(data)
        PARTIAL.unlink()
    return 0 if data["dense_passed"] >= data["dense_wanted"] or not write else 1


if __name__ == "__main__":
    sys.exit(main())
