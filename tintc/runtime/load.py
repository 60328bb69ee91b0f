"""`load` and `write_artefact`: a simulator from a compiled folder, and back."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from tintc.runtime.artefact.folder_writer import writing
from tintc.runtime.model.causal_lm import TintForCausalLM
from tintc.runtime.model.devices import as_device
from tintc.runtime.model.precision import as_dtype


def load(
    path: str | os.PathLike[str],
    executor: str = "auto",
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    check_files: bool = False,
) -> TintForCausalLM:
    """Return a compiled simulator, ready to run.

    executor: ``auto``, ``fused`` or ``literal``; device: where it runs (default cpu); dtype: torch dtype or its name,
    to convert to and compute in (default: as stored; bfloat16 rounds the update, and is warned of). check_files:
    compare all bytes of all files with their digests, and refuse a folder that was changed; otherwise sizes and samples
    are compared, and a change is warned of. Raises `ArtefactError` if the folder is missing or damaged, `OptionError`
    for a device or dtype that cannot be had.
    """
    where = as_device(device)
    kind = as_dtype(dtype)
    sim = TintForCausalLM.from_pretrained(path, executor=executor, dtype=kind or "auto", check_files=check_files)
    return sim.to(where).eval()


def write_artefact(sim: TintForCausalLM, out: str | os.PathLike[str], force: bool = False) -> Path:
    """Write the artefact to `out` in one atomic step; return the absolute path.

    With `force`, an existing `out` is replaced. Whatever fails leaves what was there. Raises `ArtefactError` if `out`
    exists and `force` is not given, or if the disk will not take it.
    """
    with writing(out, force) as folder:
        sim.write_into(folder)
    return Path(out).resolve()
