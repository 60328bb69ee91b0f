"""transformers' own tests of any model (`ModelTesterMixin`, and `GenerationTesterMixin` where it is there), on a Llama
and a GPT-2 simulator, in both executors. fp32, transformers' own tolerances.

They are in transformers' source distribution, which has `ModelTesterMixin`; a checkout of its repository has both::

    pip download --no-deps --no-binary :all: transformers==VERSION && tar xf transformers-VERSION.tar.gz
    pip install parameterized
    TRANSFORMERS_SOURCE=transformers-VERSION pytest -m '' tests/runtime/model/test_transformers_mixins.py
"""

from __future__ import annotations

import copy
import importlib
import os
import sys
import types
import unittest
from contextlib import nullcontext
from functools import cache, wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import tiny_models
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import tintc
from tintc.errors import ArtefactError, OptionError
from tintc.runtime.artefact.config import TintConfig
from tintc.runtime.model.causal_lm import TintForCausalLM

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


SHORT = ("test_determinism", "test_hidden_states_output", "test_model_outputs_equivalence", "test_save_load")
"""Tests that are run every time, of a Llama in fused execution; the others take minutes."""
EXPECTED: dict[str, tuple[type[Exception], str, str]] = {
    "test_attention_outputs": (AssertionError, r"\d != \d", "there are two fields more, of before the update"),
    "test_bc_torch_dtype": (OptionError, "float16", "finite differences need more precision"),
    "test_keep_in_fp32_modules": (OptionError, "float16", "finite differences need more precision"),
    "test_cannot_load_with_meta_device_context_manager": (OptionError, "not loaded onto", "refused in our own words"),
    "test_model_base_model_prefix": (AssertionError, "False is not true", "there is no model without the head"),
    "test_model_get_set_embeddings": (OptionError, "no module of input embeddings", "tables are parameters"),
    "test_resize_tokens_embeddings": (OptionError, "no module of input embeddings", "tables are parameters"),
    "test_model_weights_reload_no_missing_tied_weights": (ArtefactError, "lacks", "all tensors must be in the file"),
}
"""Tests that end in a refusal, or in a difference that is meant: the error, what it says, why."""
FUSED: dict[str, tuple[type[Exception], str, str]] = {
    "test_all_tensors_are_parameter_or_buffer": (
        OptionError,
        "Choose auto or literal",
        "gradients of all are asked for",
    )
}
"""The same where fused execution is insisted on."""


@cache
def compiled(name: str) -> TintForCausalLM:
    return tintc.compile(MODELS[name](), inner_lr=1e-3)


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

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        return super().from_pretrained(*args, **({"executor": cls.wanted} | kwargs))


class Asked:
    """What transformers' tests ask about a model."""

    batch_size, seq_length, is_training, num_hidden_layers, hidden_size, num_attention_heads = 2, 7, True, 2, 32, 4

    def __init__(self, name: str):
        self.name = name

    def get_config(self) -> TintConfig:
        return copy.deepcopy(compiled(self.name).config)

    def prepare_config_and_inputs_for_common(self) -> tuple[TintConfig, dict[str, Any]]:
        ids = tiny_models.token_ids(self.batch_size, self.seq_length)
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def expecting(test: Any, error: type[Exception], says: str) -> Any:
    """A test that ends in this error, inside its subtests too."""

    def refused(self: Any, *given: Any) -> None:
        self.subTest = lambda *_, **__: nullcontext()
        with pytest.raises(error, match=says):
            test(self, *given)

    return refused


def case_of(name: str, executor: str) -> type:
    """The test case of one model in one executor."""
    kind = type("Simulator", (Simulator,), {"wanted": executor, "model": name})
    known = patch.dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, {"tint": "Simulator"})

    def set_up(self: Any) -> None:
        known.start()
        self.addCleanup(known.stop)
        self.model_tester = Asked(name)
        torch.manual_seed(0)

    fields: dict[str, Any] = {"all_model_classes": (kind,), "setUp": set_up}
    case = type(f"Test{name}{executor.title()}", (ModelTesterMixin, GenerationTesterMixin, unittest.TestCase), fields)
    expected = EXPECTED | (FUSED if executor == "fused" else {})
    tests = {name: found for name in dir(case) if name.startswith("test_") and callable(found := getattr(case, name))}
    for test, function in tests.items():
        if test in expected:
            function = expecting(function, *expected[test][:2])
        if (name, executor) != ("Llama", "fused") or test not in SHORT:
            function = pytest.mark.slow(wraps(function)(partial_of(function)))
        setattr(case, test, function)
    return case


def partial_of(function: Any) -> Any:
    """The same, as a function of its own: a mark stays with it."""
    return lambda *given, **named: function(*given, **named)


for _name in MODELS:
    for _executor in ("fused", "literal"):
        globals()[f"Test{_name}{_executor.title()}"] = case_of(_name, _executor)
