"""The memory that a run may take, of the machine, of the container around it, of this process, or of the GPU; and what
this process has taken."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
UNLIMITED = 1 << 60
"""Limits from here on are no limits: cgroup v1 writes the largest number there is."""


def available_bytes(device: torch.device) -> int:
    """Return the bytes that can still be allocated. CUDA: free, plus what PyTorch keeps cached without using it."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return min(psutil.virtual_memory().available, container_bytes(), address_bytes())


def address_bytes() -> int:
    """Return the bytes of address space that this process may still have (``ulimit -v``), or `UNLIMITED`."""
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most in (resource.RLIM_INFINITY, -1):
        return UNLIMITED
    return max(0, most - psutil.Process().memory_info().vms)


def container_bytes() -> int:
    """Return the bytes that this process's control groups leave it (Linux, versions 1 and 2), or `UNLIMITED`."""
    return min((_left(folder) for folder in _groups()), default=UNLIMITED)


def _groups() -> Iterator[Path]:
    """Yield the folders of this process's groups and of those around them, whose limits count as well."""
    try:
        lines = MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            folder = CGROUP / controllers / path.lstrip("/")
            yield from (folder, *(above for above in folder.parents if above.is_relative_to(CGROUP)))


def _left(folder: Path) -> int:
    """Return limit less use; pages of files that can be dropped do not count as use."""
    for limit, use, dropped in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        most = _number(folder / limit)
        if most is not None and most < UNLIMITED:
            return max(0, most - (_number(folder / use) or 0) + _statistic(folder, dropped))
    return UNLIMITED


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _statistic(folder: Path, name: str) -> int:
    try:
        entries = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
        return int(entries[name])
    except (OSError, ValueError, KeyError):
        return 0


def peak_rss_bytes() -> int:
    """Return the largest resident memory of this process so far.

    Linux's own mark of it: `ru_maxrss` starts from the size of the process that started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if sys.platform == "darwin":
            return peak
        return peak * 1024
