"""`check_agreement`: whether an imported program computes what its model computes, before anything is built on it.

The probe has a length other than the captured one, and padding on either side, which export has not seen.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tintc.errors import ModelError
from tintc.ir.auxiliary.interpreter import forward, loading
from tintc.ir.core import Program
from tintc.ir.inputs import Inputs, resolve_inputs

LENGTH, PADS = 12, 3
ROWS = {"without padding": (0, 0), "with padding on the left": (PADS, 0), "with padding on the right": (0, PADS)}
"""Tokens of padding on the left and on the right of each text of the probe."""
ALLOWED = {torch.float64: 1e-4, torch.float32: 1e-3}
SHORT = 0.1
"""Largest differences relative to the size of the logits, by the model's dtype; of half-precision types, `SHORT`. fp64
models drop to fp32 inside."""


def check_agreement(name: str, model: nn.Module, program: Program, tensors: Mapping[str, Tensor], limit: int) -> None:
    """Compare logits on a probe of at most `limit` tokens; raise `ModelError` if they differ.

    tensors: what the program's parameters name as their sources. The program runs in fp32 or better.
    """
    length = min(LENGTH, limit)
    dtype = next(model.parameters()).dtype
    allowed = ALLOWED.get(dtype, SHORT)
    wide = torch.promote_types(dtype, torch.float32)
    vocab = program.attributes["vocab_size"]
    ids = torch.randint(0, vocab, (len(ROWS), length), generator=torch.Generator().manual_seed(0))
    valid = torch.stack([_valid(length, *pads) for pads in ROWS.values()])
    inputs = resolve_inputs(ids, attention_mask=valid)
    device = next(model.parameters()).device
    with torch.no_grad():
        found = forward(program, loading(program, tensors, wide, device), _on(inputs, device)).cpu()
        right = _logits(model, inputs, valid, device).to(wide).cpu()
    for row, (case, real) in enumerate(zip(ROWS, valid, strict=True)):
        a, b = found[row][real], right[row][real]
        if not real.all() and not b.isfinite().all():
            continue  # the model's own padding fails, such as ALiBi's added to the least number of fp64
        error = float((a - b).norm() / b.norm())
        if error <= allowed:
            continue
        with torch.no_grad():
            unused = [] if real.all() else _unused(model, inputs, valid, device)
        if unused:
            raise ModelError(
                f"{name} is not compiled, because it ignores {' and '.join(unused)}, and so gives other logits for a "
                f"text {case} than for the text alone, which a simulator does not; make its forward use them."
            )
        raise ModelError(
            f"{name} is not compiled, because what its graph was read as is not what it computes: on a text "
            f"{case} the logits differ by {error:.2g}, relatively, and {allowed:g} is allowed. Please report it."
        )


def _valid(length: int, left: int, right: int) -> Tensor:
    """``[T]`` bool; short probes are padded less."""
    positions = torch.arange(length)
    left, right = (min(pads, length // 3) for pads in (left, right))
    return (positions >= left) & (positions < length - right)


def _on(inputs: Inputs, device: torch.device) -> Inputs:
    return Inputs(*(getattr(inputs, name).to(device) for name in inspect.signature(Inputs).parameters))


def _unused(model: nn.Module, inputs: Inputs, valid: Tensor, device: torch.device) -> list[str]:
    """Which of the inputs that say where the padding is change nothing about the model's logits."""
    right = _logits(model, inputs, valid, device)
    unpadded = resolve_inputs(inputs.input_ids)
    others = {
        "attention_mask": _logits(model, inputs, torch.ones_like(valid), device),
        "position_ids": _logits(model, unpadded, valid, device),
    }
    return [key for key, found in others.items() if torch.equal(found, right)]


def _logits(model: nn.Module, inputs: Inputs, valid: Tensor, device: torch.device) -> Tensor:
    """The model's own logits, with the positions that the program is run on if the model takes any."""
    taken = inspect.signature(model.forward).parameters
    given: dict[str, Any] = {"attention_mask": valid.long().to(device), "use_cache": False}
    given |= {"position_ids": inputs.position_ids.to(device)}
    was_training = model.training
    model.eval()
    try:
        output = model(inputs.input_ids.to(device), **{key: value for key, value in given.items() if key in taken})
    finally:
        model.train(was_training)
    return output.logits
