"""`check_agreement`: compare an imported program with its model, before anything is built on it.

The probe has a length other than the captured one, and padding on either side, which export has not seen.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tintc.errors import ModelError, joined
from tintc.frontend.graph.captured_experts import EAGER, experts_computed_by
from tintc.frontend.graph.trace_model import without_cache
from tintc.frontend.source.kinds import is_registered
from tintc.frontend.source.modules import run_on_ids
from tintc.frontend.source.sample import numbers
from tintc.ir.auxiliary.interpreter import forward, loading
from tintc.ir.core import Program
from tintc.ir.inputs import Inputs, resolve_inputs

LENGTH = 12
"""Tokens of the probe."""
PADS = 3
ROWS = {"without padding": (0, 0), "with padding on the left": (PADS, 0), "with padding on the right": (0, PADS)}
"""Tokens of padding on the left and on the right of each text of the probe."""
LEFT = 1
"""The row of these with padding on the left."""
ALLOWED = {torch.float64: 1e-4, torch.float32: 1e-3}
"""Largest differences relative to the size of the logits, by the model's dtype; fp64 models drop to fp32 inside."""
ALLOWED_WIDENED = 5e-3
"""The same for a half-precision model that computes in fp32: constants of its graph may be rounded to bf16 (2^-9)."""
ALLOWED_SHORT = 0.1
"""The same for a half-precision model that computes in its own dtype."""


def check_agreement(
    name: str,
    model: nn.Module,
    programs: Program | Sequence[Program | None],
    tensors: Mapping[str, Tensor],
    limit: int,
    placeholders: Sequence[int] = (),
) -> Program:
    """Compare logits on a probe of at most `limit` tokens; raise `ModelError` if they differ.

    Return the program that agrees best with padding on the left, of one or of several (None: left out) that differ
    there. tensors: the sources of their parameters; placeholders: token ids that are left out, for they stand for
    something else than text. A wrapper is run whole, and a module outside transformers on each text alone. The program
    runs in fp32 or better, and so does a half-precision model, whose modules are widened one at a time: it takes the
    memory of the largest. A model whose modules read each other's weights cannot be widened so, and is compared in its
    own dtype.
    """
    length = min(LENGTH, limit)
    first_weight = next(model.parameters())
    device = first_weight.device
    wide = torch.promote_types(first_weight.dtype, torch.float32)
    candidates = [programs] if isinstance(programs, Program) else [one for one in programs if one is not None]
    vocab_size = candidates[0].attributes["vocab_size"]
    ids = numbers(vocab_size, len(ROWS) * length, placeholders).reshape(len(ROWS), length)
    valid = torch.stack([_valid(length, *pads) for pads in ROWS.values()])
    inputs = resolve_inputs(ids, attention_mask=valid)
    with torch.no_grad():
        here = _on(inputs, device)
        logits = [forward(one, loading(one, tensors, wide, device), here).cpu() for one in candidates]
        expected, allowed = _precise_logits(model, inputs, valid, wide)
    left = valid[LEFT]
    distances = [float((one[LEFT] - expected[LEFT])[left].norm()) for one in logits]
    best = min(range(len(candidates)), key=distances.__getitem__)
    program, computed = candidates[best], logits[best]
    for row, (case, real) in enumerate(zip(ROWS, valid, strict=True)):
        right = expected[row][real]
        if not real.all() and not right.isfinite().all():
            continue  # the model's own padding fails, such as ALiBi's added to the least number of fp64
        error = float((computed[row][real] - right).norm() / right.norm())
        if error > allowed:
            turned = forward(program, loading(program, tensors, wide, device), _on(_counted_anew(inputs), device)).cpu()
            positions = not torch.equal(turned[row][real], computed[row][real])
            raise _refusal(name, model, inputs, valid, case, error, allowed, positions)
    return program


def _counted_anew(inputs: Inputs) -> Inputs:
    """Return the inputs with positions that count padding."""
    return replace(inputs, position_ids=resolve_inputs(inputs.input_ids).position_ids)


def _refusal(
    name: str,
    model: nn.Module,
    inputs: Inputs,
    valid: Tensor,
    case: str,
    error: float,
    allowed: float,
    positions: bool,
) -> ModelError:
    """Return what to raise for a model that is not compiled. positions: whether they matter to its program."""
    ignored: list[str] = []
    if ROWS[case] != (0, 0):
        ignored = [one for one in _ignored_inputs(model, inputs, valid) if positions or one != "position_ids"]
    if ignored:
        inputs_ignored = joined(ignored)
        return ModelError(
            f"{name} is not compiled, because it ignores {inputs_ignored}, and so gives other logits for a "
            f"text {case} than for the text alone, which a simulator does not; make its forward use them.",
            [f"a forward that ignores {inputs_ignored}, so that padding changes its logits"],
        )
    return ModelError(
        f"{name} is not compiled, because what its graph was read as is not what it computes: on a text "
        f"{case} the logits differ by {error:.2g}, relatively, and {allowed:g} is allowed. Please report it."
    )


def _valid(length: int, left: int, right: int) -> Tensor:
    """Return which positions are no padding, ``[T]`` bool; short probes are padded less."""
    positions = torch.arange(length)
    left = min(left, length // 3)
    right = min(right, length // 3)
    return (positions >= left) & (positions < length - right)


def _on(inputs: Inputs, device: torch.device) -> Inputs:
    return Inputs(**{name: tensor.to(device) for name, tensor in inputs.tensors().items()}, kept=inputs.kept)


@torch.no_grad()
def _ignored_inputs(model: nn.Module, inputs: Inputs, valid: Tensor) -> list[str]:
    """Return the inputs that say where the padding is and change nothing about the model's logits."""
    padded = _logits(model, inputs, valid)
    unpadded = resolve_inputs(inputs.input_ids)
    variants = {
        "attention_mask": _logits(model, inputs, torch.ones_like(valid)),
        "position_ids": _logits(model, unpadded, valid),
    }
    return [key for key, logits in variants.items() if torch.equal(logits, padded)]


def _precise_logits(model: nn.Module, inputs: Inputs, valid: Tensor, wide: torch.dtype) -> tuple[Tensor, float]:
    """Return the model's logits in the dtype `wide`, on the CPU, and how far the program's may be off."""
    dtype = next(model.parameters()).dtype
    if dtype == wide:
        return _logits(model, inputs, valid).to(wide).cpu(), ALLOWED[wide]
    try:
        return _logits(model, inputs, valid, wide).cpu(), ALLOWED_WIDENED
    except RuntimeError:  # of torch: operands of two dtypes
        return _logits(model, inputs, valid).to(wide).cpu(), ALLOWED_SHORT


def _logits(model: nn.Module, inputs: Inputs, valid: Tensor, wide: torch.dtype | None = None) -> Tensor:
    """Return the model's own logits, at the positions that the program is run on if the model takes any.

    wide: the dtype to compute in, None for the model's own.
    """
    device = next(model.parameters()).device
    if not is_registered(model):
        with nullcontext() if wide is None else _widened(model, wide):
            return _each_alone(model, inputs.input_ids, valid)
    arguments: dict[str, Any] = {
        "attention_mask": valid.long().to(device),
        "use_cache": False,
        "position_ids": inputs.position_ids.to(device),
    }
    accepted = inspect.signature(model.forward).parameters
    arguments = {key: value for key, value in arguments.items() if key in accepted}
    was_training = model.training
    model.eval()
    try:
        widened = nullcontext() if wide is None else _widened(model, wide)
        with widened, experts_computed_by(model, EAGER), without_cache(model):
            return model(inputs.input_ids.to(device), **arguments).logits
    finally:
        model.train(was_training)


def _each_alone(model: nn.Module, ids: Tensor, valid: Tensor) -> Tensor:
    """Return a module's logits ``[B, T, V]`` of each text without its padding, where they are zero."""
    rows: list[Tensor] = []
    for text, real in zip(ids, valid, strict=True):
        alone = run_on_ids(model, text[real][None])[0]
        row = alone.new_zeros(len(text), alone.shape[-1])
        row[real] = alone
        rows.append(row)
    return torch.stack(rows)


@contextmanager
def _widened(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let every module compute with its own parameters and buffers in that dtype, which they have for that time."""
    narrow: dict[nn.Module, list[tuple[dict[str, Any], dict[str, Any]]]] = {}

    def widen(module: nn.Module, *_: Any) -> None:
        stores = [store for part in _own(module) for store in (part._parameters, part._buffers)]
        narrow[module] = [(store, dict(store)) for store in stores]
        for store in stores:
            store.update({key: _wide(tensor, dtype) for key, tensor in store.items()})  # pyright: ignore[reportArgumentType, reportCallIssue]

    def restore(module: nn.Module, *_: Any) -> None:
        for store, tensors in narrow.pop(module, []):
            store.update(tensors)

    owners = [module for module in model.modules() if any(part._parameters or part._buffers for part in _own(module))]
    hooks = [module.register_forward_pre_hook(widen, prepend=True) for module in owners]
    hooks += [module.register_forward_hook(restore, always_call=True) for module in owners]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in list(narrow):
            restore(module)


def _own(module: nn.Module) -> list[nn.Module]:
    """Return the module and its short convolutions, whose weights it reads without calling them."""
    return [module, *(child for child in module.children() if isinstance(child, nn.Conv1d))]


def _wide(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if tensor is None or not tensor.is_floating_point():
        return tensor
    wide = tensor.detach().to(dtype)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(wide, requires_grad=False)
    return wide
