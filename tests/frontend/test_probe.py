"""A program that is not what its model computes is refused before anything is compiled from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from tiny_models import gpt2, llama

import tintc
from tintc import compiler as driver
from tintc.errors import ModelError
from tintc.frontend.agreement import check_agreement
from tintc.frontend.source.load import load_auxiliary
from tintc.ir.auxiliary import Attention, Norm
from tintc.ir.core import Program
from tools.sweep.tiny import tiny_model


def broken(program: Program, kind: type, **attributes: float) -> Program:
    """With other attributes of the first op of that kind."""
    at = next(index for index, op in enumerate(program.ops) if isinstance(op, kind))
    ops = [*program.ops[:at], replace(program.ops[at], **attributes), *program.ops[at + 1 :]]
    return Program(program.dialect, program.attributes, program.parameters, ops, program.outputs)


@pytest.mark.parametrize(
    ("make", "dtype"),
    [(gpt2, torch.float32), (llama, torch.bfloat16), pytest.param(llama, torch.float64, marks=pytest.mark.slow)],
)
def test_a_program_that_is_right(make: Any, dtype: torch.dtype) -> None:
    source = load_auxiliary(make(n_layers=1).to(dtype))
    auxiliary = driver.import_auxiliary(source)
    check_agreement("it", source.model, auxiliary.program, auxiliary.tensors, source.max_length)


def test_a_model_that_cannot_take_padding_itself() -> None:
    """MPT in fp64 gives NaN for padded texts; what it gives without padding is still compared."""
    source = load_auxiliary(tiny_model("mpt", n_layers=1).double())
    auxiliary = driver.import_auxiliary(source)
    check_agreement("it", source.model, auxiliary.program, auxiliary.tensors, source.max_length)
    wrong = broken(auxiliary.program, Attention, scale=0.5)
    with pytest.raises(ModelError, match="a text without padding"):
        check_agreement("it", source.model, wrong, auxiliary.tensors, source.max_length)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_hides_no_wrong_factor(dtype: torch.dtype) -> None:
    """A scale that is off by 5 % moves the logits by about as much as bf16 rounds them; 0.5 % is allowed."""
    source = load_auxiliary(cast(Any, llama(n_layers=1)).to(dtype))
    before = {key: tensor.clone() for key, tensor in source.model.state_dict().items()}
    auxiliary = driver.import_auxiliary(source)
    wrong = broken(auxiliary.program, Norm, eps=0.02)
    with pytest.raises(ModelError, match=r"0\.005 is allowed"):
        check_agreement("it", source.model, wrong, auxiliary.tensors, source.max_length)
    after = source.model.state_dict()
    assert all(torch.equal(after[key], tensor) and after[key].dtype == tensor.dtype for key, tensor in before.items())


def test_a_half_precision_model_that_cannot_be_widened() -> None:
    """Its head reads the weight of a module that it does not call."""
    model = llama(n_layers=1).bfloat16()
    norm = model.model.norm
    model.lm_head.forward = lambda x: torch.nn.functional.linear(x, model.model.embed_tokens.weight)
    source = load_auxiliary(model)
    auxiliary = driver.import_auxiliary(source)
    check_agreement("it", source.model, auxiliary.program, auxiliary.tensors, source.max_length)
    assert norm.weight.dtype == torch.bfloat16


def test_a_program_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    source = load_auxiliary(llama(n_layers=1))
    auxiliary = driver.import_auxiliary(source)
    for kind, attributes in ((Attention, {"scale": 0.5}), (Norm, {"eps": 0.1})):
        wrong = broken(auxiliary.program, kind, **attributes)
        with pytest.raises(ModelError, match="a text without padding"):
            check_agreement("it", source.model, wrong, auxiliary.tensors, source.max_length)
    wrong = broken(auxiliary.program, Attention, scale=0.5)
    monkeypatch.setattr(
        driver, "import_auxiliary", lambda *_: driver.Auxiliary(wrong, auxiliary.tensors, auxiliary.graph)
    )
    with pytest.raises(ModelError, match="not compiled"):
        tintc.compile(llama(n_layers=1))
