"""transformers' own tests of any model (`ModelTesterMixin`, and `GenerationTesterMixin` where it is there), on a Llama
and a GPT-2 simulator, in both executors. fp32, transformers' own tolerances.

They are in transformers' source distribution, which has `ModelTesterMixin`; a checkout of its repository has both::

    pip download --no-deps --no-binary :all: transformers==VERSION && tar xf transformers-VERSION.tar.gz
    pip install parameterized
    TRANSFORMERS_SOURCE=transformers-VERSION pytest -m '' tests/runtime/test_transformers_mixins.py
"""

from __future__ import annotations

import copy
import importlib
import os
import sys
import types
import unittest
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers

import tintc
from tintc.runtime.config import TintConfig
from tintc.runtime.model import TintForCausalLM

SOURCE = Path(os.environ.get("TRANSFORMERS_SOURCE", ""))
if not (SOURCE / "tests" / "test_modeling_common.py").is_file():
    version = transformers.__version__
    pytest.skip(
        "transformers' tests are not here: 'pip download --no-deps --no-binary :all: transformers=="
        f"{version} && tar xf transformers-{version}.tar.gz', and set TRANSFORMERS_SOURCE to the folder",
        allow_module_level=True,
    )
pytest.importorskip("parameterized", reason="transformers' tests need it: pip install parameterized")


def mixin(module: str, name: str) -> Any:
    """A class of transformers' tests, or an empty one where the folder has no such module."""
    package = f"transformers_tests.{module}"
    if not (SOURCE / "tests" / f"{module.replace('.', '/')}.py").is_file():
        *above, last = package.split(".")
        for depth in range(2, len(above) + 1):
            sys.modules.setdefault(".".join(above[:depth]), types.ModuleType(last))
        sys.modules[package] = types.ModuleType(last)
        setattr(sys.modules[package], name, type(name, (), {}))
    return getattr(importlib.import_module(package), name)


root = sys.modules["transformers_tests"] = types.ModuleType("transformers_tests")
root.__path__ = [str((SOURCE / "tests").resolve())]
mixin("exporters.test_export", "ExportTesterMixin")
GenerationTesterMixin = mixin("generation.test_utils", "GenerationTesterMixin")
ModelTesterMixin = mixin("test_modeling_common", "ModelTesterMixin")

MODELS: dict[str, Any] = {"Llama": tiny_models.llama, "GPT2": tiny_models.gpt2}


@cache
def compiled(name: str) -> TintForCausalLM:
    return tintc.compile(MODELS[name](), inner_lr=0.02)


class Simulator(TintForCausalLM):
    """A simulator that has the compiled tensors where transformers' models have random ones."""

    wanted, model = "fused", "Llama"

    def __init__(self, config: TintConfig, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)
        if self.device.type != "meta":
            self.load_state_dict(compiled(self.model).state_dict())
            self.zero_absent_terms()
            self.trust()
        self.executor = self.wanted


class Tester:
    """What transformers' tests ask about a model."""

    batch_size, seq_length, is_training, num_hidden_layers, hidden_size, num_attention_heads = 2, 7, True, 2, 32, 4

    def __init__(self, name: str):
        self.name = name

    def get_config(self) -> TintConfig:
        return copy.deepcopy(compiled(self.name).config)

    def prepare_config_and_inputs_for_common(self) -> tuple[TintConfig, dict[str, Any]]:
        ids = tiny_models.token_ids(self.batch_size, self.seq_length)
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def tests_of(name: str, executor: str) -> type:
    """The test case of one model in one executor."""
    kind = type("Simulator", (Simulator,), {"wanted": executor, "model": name})

    def set_up(self: Any) -> None:
        self.model_tester = Tester(name)
        torch.manual_seed(0)

    fields = {"all_model_classes": (kind,), "setUp": set_up}
    return type(f"Test{name}{executor.title()}", (ModelTesterMixin, GenerationTesterMixin, unittest.TestCase), fields)


for _name in MODELS:
    for _executor in ("fused", "literal"):
        _case = tests_of(_name, _executor)
        globals()[_case.__name__] = _case
