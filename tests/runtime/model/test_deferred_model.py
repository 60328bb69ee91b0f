"""Importing tintc leaves out what transformers' models are made of, and the Auto classes know simulators anyway."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import ROOT

import tintc
from tintc.runtime.model import registration
from tintc.runtime.model.auto_classes import Deferred
from tintc.runtime.model.causal_lm import TintForCausalLM
from tintc.runtime.model.registration import MODEL

SCRIPT = """
import sys
import tintc
import transformers
from transformers import AutoModelForCausalLM

heavy = ("transformers.modeling_utils", "torch._dynamo", "torch.distributed.tensor", "tintc.runtime.model.causal_lm")
stand_in = transformers.TintForCausalLM
assert AutoModelForCausalLM._model_mapping[tintc.TintConfig] is stand_in and stand_in.__name__ == "TintForCausalLM"
assert stand_in.config_class is tintc.TintConfig and not hasattr(stand_in, "__wrapped__")
assert {"compile", "load", "TintForCausalLM", "bridges"} <= set(dir(tintc))
assert [name for name in heavy if name in sys.modules] == [], "tintc imports more than it needs"

sim = AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert type(sim) is tintc.TintForCausalLM and isinstance(sim, stand_in) and issubclass(type(sim), stand_in)
assert AutoModelForCausalLM._model_mapping[tintc.TintConfig] is type(sim) is transformers.TintForCausalLM
"""


def test_a_new_process_imports_little_and_loads_a_simulator(one_layer_sim: Path) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(one_layer_sim)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_what_stands_for_the_model_is_like_it(one_layer_sim: Path) -> None:
    stand_in = Deferred(MODEL, (), {"config_class": tintc.TintConfig})
    sim = stand_in.from_pretrained(one_layer_sim)
    assert type(sim) is TintForCausalLM and isinstance(sim, stand_in) and not isinstance(3, stand_in)
    assert type(stand_in(sim.config)) is TintForCausalLM
    assert issubclass(TintForCausalLM, stand_in) and not issubclass(int, stand_in)
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        _ = stand_in.nosuch


def test_the_model_takes_its_place() -> None:
    """Once it has been imported, as here; in the transformers that tintc has seen, which others may import anew."""
    assert registration.AutoModelForCausalLM._model_mapping[tintc.TintConfig] is TintForCausalLM
    assert getattr(registration.transformers, MODEL) is TintForCausalLM
