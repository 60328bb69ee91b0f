"""Whether what a folder holds fits together: its configuration and its tensors, beside its program."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tintc.errors import ArtefactError
from tintc.ir.core import Program
from tintc.lowering.emission.sharing import reuse_of
from tintc.lowering.passes.plan_layout import layout_of
from tintc.runtime.artefact.folder import text_digest

RECORDED = ("inner_lr", "loss", "descend", "fd_scheme", "fd_step", "linear_attention")
"""Options that stand in the configuration only to be read: what they did is in the program's ops and in the tensors."""


def of_program(program: Program) -> dict[str, Any]:
    """What a configuration says because its program does."""
    layout, attributes = layout_of(program), program.attributes
    found = {
        "vocab_size": attributes["vocab_size"],
        "hidden_size": layout.d_aux,
        "num_hidden_layers": attributes["n_layers"],
        "max_position_embeddings": layout.max_length,
        "d_sim": layout.d_sim,
        "n_sim_heads": layout.n_heads,
        "n_prefixes": layout.n_prefixes,
        "stack": layout.stack,
        "shards": layout.shards,
        "n_steps": attributes["n_steps"],
        "semantics": attributes["semantics"],
        "reuse": reuse_of(program),
    }
    return found | {name: attributes[name] for name in ("n_update_layers",) if name in attributes}


def options_digest(config: Mapping[str, Any]) -> str:
    """Of the recorded options."""
    return text_digest(json.dumps([config.get(name) for name in RECORDED]))


def check_config(path: str | os.PathLike[str], config: Mapping[str, Any], program: Program) -> None:
    """Raise `ArtefactError` if a configuration is not that of its program, or its recorded options were changed."""
    for name, value in of_program(program).items():
        if config.get(name, value) != value:
            raise ArtefactError(
                f"The configuration of {path} says {name} {config[name]!r} and its program {value!r}; put {value!r} "
                "back, or compile the model again with the options you want."
            )
    right = config.get("digests", {}).get("options")
    if right is not None and right != options_digest(config):
        raise ArtefactError(
            f"The configuration of {path} was changed in one of {', '.join(RECORDED)}, which only record how it was "
            "compiled; put it back, and pass inner_lr where the simulator runs, or compile the model again."
        )


def check_tensors(path: str | os.PathLike[str], info: Mapping[str, Any], edited: bool) -> None:
    """Raise `ArtefactError` unless the file held exactly the tensors that the program needs, by transformers' report.

    A program whose text was edited after compiling may have no use for some of them any more.
    """
    problems = []
    for kind, what in (
        ("missing_keys", "lacks {}"),
        ("unexpected_keys", "has {} it does not know"),
        ("mismatched_keys", "has {} of another shape"),
    ):
        names = sorted(key if isinstance(key, str) else str(key[0]) for key in info.get(kind, ()))
        if names and not (edited and kind == "unexpected_keys"):
            count = f"{len(names)} tensor{'s' if len(names) > 1 else ''}"
            problems.append(f"{what.format(count)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})")
    if problems:
        raise ArtefactError(f"{path} does not fit its program: it {' and '.join(problems)}. Compile the model again.")


@contextmanager
def unreported() -> Iterator[None]:
    """Without transformers' own table of tensors that do not fit, whose advice is to train them: ours is an error."""

    def other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)
