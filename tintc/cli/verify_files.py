"""`tintc verify --files`: every byte of a simulator's files beside the digests that were written with them."""

from __future__ import annotations

import time

from rich.console import Console

from tintc.cli.console import print_json, silence_libraries, stages
from tintc.runtime.artefact.digests import altered, digests_of
from tintc.runtime.artefact.folder import opened
from tintc.runtime.artefact.names import DIGESTS_FILE


def verify_files(path: str, as_json: bool) -> bool:
    """Print which files are not as they were written; return True if there are none.

    Raises `ArtefactError` for a folder that has no digests.
    """
    silence_libraries()
    start = time.perf_counter()
    with stages(), opened(path, weights=True) as snapshot:
        digests = digests_of(snapshot)
        changed = altered(snapshot)
    size = sum(entry["size"] for entry in digests.values())
    if as_json:
        seconds = time.perf_counter() - start
        facts = {"output": path, "seconds": seconds, "files": len(digests), "bytes": size}
        print_json(facts | {"ok": not changed, "changed": changed})
        return not changed
    console = Console()
    for name in changed:
        console.print(f"problem: {name} is not as it was written.", style="red", markup=False, highlight=False)
    console.print(f"{len(digests)} files, {size:,} bytes, compared with {DIGESTS_FILE}", highlight=False)
    verdict = "Every byte is as it was written."
    if changed:
        verdict = "It is NOT as it was written; compile the model again."
    console.print(verdict, style="bold")
    return not changed
