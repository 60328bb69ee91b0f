"""Code that comes with a model, which is run only for those who say that they trust it."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

from torch import nn

TRUSTED = "trusted_code"
"""Key of the provenance's entry that names the files whose code was run."""
PACKAGE = "transformers_modules"
"""The package in which transformers puts code that comes with a model."""


def code_sentence(name: str) -> str:
    """Return why a model with code of its own is not loaded, and what to do."""
    return (
        f"{name} has Python code of its own (auto_map in its config.json), which tintc does not run unless you trust "
        "it: pass --trust-remote-code (trust_remote_code=True in Python)."
    )


def trusted_code(model: nn.Module, tokenizer: Any | None) -> str:
    """Return the files of code that came with a model and made it or its tokenizer, each with the sha256 of what it
    says; empty if there are none."""
    objects = [*model.modules(), getattr(model, "config", None), tokenizer]
    kinds = {kind for one in objects for kind in type(one).__mro__ if kind.__module__.partition(".")[0] == PACKAGE}
    files = {Path(inspect.getfile(kind)) for kind in kinds}
    said = {f"{file.name} sha256 {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files}
    return ", ".join(sorted(said))
