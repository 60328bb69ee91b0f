"""Checking that what a folder holds fits together: its configuration and its tensors, beside its program."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError

from tintc.errors import ArtefactError, OptionError, first_line
from tintc.ir.core import Program
from tintc.ir.simulator.ops.activation_forward import ActivationForward
from tintc.ir.simulator.ops.attention_forward import AttentionForward
from tintc.ir.simulator.ops.gate_forward import GateForward
from tintc.lowering.emission.sharing import reuse_of
from tintc.lowering.passes.plan_layout import layout_of
from tintc.options import Options
from tintc.runtime.artefact.beside import text_digest
from tintc.runtime.artefact.config import TintConfig
from tintc.runtime.artefact.folder import parsed_program

RECORDED = tuple(Options().recorded("config"))
"""Options that stand in the configuration only to be read: what they did is in the program's ops and in the tensors."""
FIRST = ("inner_lr", "loss", "descend", "difference", "fd_step", "linear_attention")
"""Those that the earliest digests cover."""


def of_program(program: Program) -> dict[str, Any]:
    """Return the entries of a configuration that follow from its program."""
    layout = layout_of(program)
    attributes = program.attributes
    entries = {
        "vocab_size": attributes["vocab_size"],
        "hidden_size": layout.d_aux,
        "num_hidden_layers": attributes["n_layers"],
        "max_position_embeddings": layout.max_length,
        **_widths(program),
        "d_sim": layout.d_sim,
        "n_sim_heads": layout.n_heads,
        "n_prefixes": layout.n_prefixes,
        "stack": layout.stack,
        "shards": layout.shards,
        "n_steps": attributes["n_steps"],
        "semantics": attributes["semantics"],
        "gradient": attributes.get("gradient", Options.gradient),
        "reuse": reuse_of(program),
    }
    if "n_update_layers" in attributes:
        entries["n_update_layers"] = attributes["n_update_layers"]
    return entries


def _widths(program: Program) -> dict[str, int]:
    """Return sizes of the auxiliary's widest attention and feed-forward layers, by transformers' names."""
    attentions = [op for op in program.ops if isinstance(op, AttentionForward)]
    hidden = [op.result.type.width for op in program.ops if isinstance(op, ActivationForward | GateForward)]
    sizes = {
        "num_attention_heads": [op.n_heads for op in attentions],
        "num_key_value_heads": [op.n_kv_heads for op in attentions],
        "head_dim": [op.head_dim for op in attentions],
        "intermediate_size": hidden,
    }
    return {name: max(widths, default=0) for name, widths in sizes.items()}


def options_digest(config: Mapping[str, Any]) -> str:
    """Return the sha256 of the recorded options: of all in `FIRST`, and of others only if they are not the default, so
    that folders keep their digest when an option is added."""
    values = [config.get(name) for name in FIRST]
    defaults = Options().recorded("config")
    changed = {name: config[name] for name in RECORDED if config.get(name, defaults[name]) != defaults[name]}
    later = {name: value for name, value in changed.items() if name not in FIRST}
    return text_digest(json.dumps([*values, later] if later else values))


def check_config(path: str | os.PathLike[str], config: Mapping[str, Any], program: Program) -> None:
    """Raise `ArtefactError` if a configuration is not that of its program, or its recorded options were changed."""
    for name, value in of_program(program).items():
        if config.get(name) not in (None, value):
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


@contextmanager
def unreported() -> Iterator[None]:
    """Hide transformers' own table of tensors that do not fit, whose advice is to train them: ours is an error."""

    def other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


def program_alone(config: TintConfig | None, tensors: Mapping[str, Any]) -> tuple[str, Program]:
    """Return the program to load where there is no folder, as text and parsed: the configuration's, beside a state
    dict. Raises `OptionError` where there is neither."""
    text = getattr(config, "program", None)
    if text is None or not tensors:
        raise OptionError(
            "Without a folder a simulator is made of config=, with its program, and state_dict=; pass both, or the "
            "folder."
        )
    return text, parsed_program(text, "The configuration's program")


@contextmanager
def explained_loading(path: object) -> Iterator[None]:
    """Raise `ArtefactError`, with advice, where transformers fails to load in the block."""
    if torch.get_default_device().type == "meta":
        raise OptionError(
            "A simulator is not loaded onto the device meta, which holds no values; load it outside of "
            "torch.device('meta'), or make an empty one by AutoModelForCausalLM.from_config there."
        )
    try:
        yield
    except (SafetensorError, OSError, RuntimeError) as error:
        advice = "Compile the model again."
        if isinstance(error, RuntimeError) or getattr(error, "errno", None) is not None:
            advice = "Mend that, and load it again."
        raise ArtefactError(f"{path} cannot be loaded: {first_line(error)}. {advice}") from error
