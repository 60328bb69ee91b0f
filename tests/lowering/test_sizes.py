"""The check of a program's numbers takes whatever the passes write, of every kind and option."""

from __future__ import annotations

from typing import Any

import pytest
from fused_cases import family
from programs import gpt_like, hybrid_like, llama_like, mixture_like

from tintc import stages
from tintc.ir.text import parse_program, print_program
from tintc.lowering.emission.sizes import check_sizes
from tintc.options import Options

KINDS = {
    "gpt": gpt_like,
    "llama": llama_like,
    "experts": lambda: mixture_like(chosen=2),
    "hybrid": lambda: hybrid_like(key_heads=2),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "as they are": {},
    "three steps on one layer": {"n_steps": 3, "n_update_layers": 1},
    "all groups": {"descend": "all"},
    "paper-code": {"semantics": "paper-code"},
    "quad": {"loss": "quad"},
    "one row in a prefix": {"stack": 1},
    "nothing shared": {"reuse": "none"},
    "softmax heads": {"linear_attention": "softmax"},
    "two steps, the full gradient": {"gradient": "full", "descend": "all", "n_steps": 2},
    "central differences": {"difference": "central"},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_passes_write(kind: str, options: str) -> None:
    if kind not in ("gpt", "llama") and "full" in options:
        pytest.skip("dense decoders have a full gradient")
    program, _ = KINDS[kind]()
    lowered = stages.lower(program, Options(**OPTIONS[options]), 24)
    check_sizes(parse_program(print_program(lowered)))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_what_models_become(name: str) -> None:
    check_sizes(parse_program(print_program(stages.lower(family(name).auxiliary.program, Options(), 32))))
