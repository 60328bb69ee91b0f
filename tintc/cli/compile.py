"""`tintc compile`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import tintc
from tintc.analysis.report import sizes
from tintc.cli.console import print_json, print_table, silence_libraries, stages
from tintc.cli.texts import read_text
from tintc.options import Options
from tintc.runtime.artefact.folder_writer import check_output
from tintc.runtime.execution.available import peak_rss_bytes


def compile_model(
    model: str,
    output: Path,
    options: dict[str, Any],
    calibration: Path | None,
    max_shard_size: str,
    force: bool,
    trusted: bool,
    as_json: bool,
) -> None:
    """Compile and write; whatever can be checked before the long work is checked before it.

    trusted: whether Python code that comes with the model may be run.
    """
    silence_libraries()
    check_output(output, force)
    chosen = Options(**options)
    text = None
    if calibration is not None:
        text = read_text(None, calibration)
    start = time.perf_counter()
    with stages():
        sim = tintc.compile(
            model,
            chosen,
            calibration=text,
            output=output,
            max_shard_size=max_shard_size,
            force=force,
            trust_remote_code=trusted,
        )
    facts = {
        "output": str(output),
        "seconds": time.perf_counter() - start,
        "peak_rss_bytes": peak_rss_bytes(),
        "file_bytes": sum(file.stat().st_size for file in output.iterdir()),
        "dtype": str(sim.dtype).removeprefix("torch."),
        "tokenizer": sim.tokenizer is not None,
        **sizes(sim.program),
    }
    if as_json:
        print_json(facts)
    else:
        print_table(f"Compiled {model}", facts)
