"""Checkpoints whose weights are quantised: how they are loaded as plain numbers, and which packages that needs.

transformers has two ways: some configurations have a switch `dequantize`, which makes plain weights while loading; some
quantisers do it afterwards. Where it has neither (AWQ, GPTQ), a layer says itself what its weight is: what it makes of
the identity matrix.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from tintc.errors import ModelError

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "aqlm": ("aqlm",),
    "auto-round": ("auto-round",),
    "awq": ("gptqmodel",),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed-tensors",),
    "gptq": ("optimum", "gptqmodel"),
    "hqq": ("hqq",),
    "quanto": ("optimum-quanto",),
    "quark": ("amd-quark",),
    "sinq": ("sinq",),
    "torchao": ("torchao",),
    "vptq": ("vptq",),
}
"""What transformers loads a method's checkpoints with, besides what tintc depends on."""
MODULES = {"amd-quark": "quark", "optimum-quanto": "optimum.quanto"}
"""Modules of packages that are not named like them."""
BACKENDS = {"awq": "torch_awq", "gptq": "torch"}
"""Kernels to load a method's layers with: those in plain PyTorch, since others are compiled for minutes first."""
STEP = 4096
"""Columns of an identity matrix that are multiplied at once."""


def check_packages(name: str, method: str) -> None:
    """Raise `ModelError` if packages that load weights quantised by a method are not installed."""
    missing = [package for package in PACKAGES.get(method, ()) if not _installed(package)]
    if missing:
        plural = "s" * (len(missing) > 1)
        raise ModelError(
            f"{name} has weights that are quantised by {method}, and reading them needs the package{plural} "
            f"{' and '.join(missing)}: pip install {' '.join(missing)}, or pass the model from before it was quantised."
        )


def _installed(package: str) -> bool:
    try:
        return find_spec(MODULES.get(package, package.replace("-", "_"))) is not None
    except ModuleNotFoundError:  # of the package that it is a part of
        return False


def dequantising(entries: Any) -> Any:
    """Return a configuration's entry `quantization_config` with the switch that makes plain weights, if it has one, or
    with the backend that does not have to be fast."""
    if not isinstance(entries, dict):
        return entries
    method = entries.get("quant_method", "")
    if method in BACKENDS:
        return entries | {"backend": BACKENDS[method]}
    kind = AUTO_QUANTIZATION_CONFIG_MAPPING.get(method)
    if kind is None or "dequantize" not in inspect.signature(kind.__init__).parameters:
        return entries
    return entries | {"dequantize": True}


@torch.no_grad()
def dequantised(model: PreTrainedModel, name: str, method: str) -> PreTrainedModel:
    """Return a model that transformers has just loaded, with plain weights in its own dtype.

    Raises `ModelError` for layers whose weights cannot be had.
    """
    quantiser: Any = getattr(model, "hf_quantizer", None)
    if quantiser is None:
        return model
    try:
        return model.dequantize(dtype=model.dtype)
    except NotImplementedError:
        for path, module in list(model.named_modules()):
            if _is_packed(module):
                model.set_submodule(path, _plain(module, model.dtype, f"{path} of {name}", method))
        quantiser.remove_quantization_config(model)
        return model


def _is_packed(module: nn.Module) -> bool:
    """Return True for a linear layer whose weight is no plain matrix."""
    if not (hasattr(module, "in_features") and hasattr(module, "out_features")):
        return False
    weight = module._parameters.get("weight")
    plain = weight is not None and weight.dim() == 2 and weight.is_floating_point()
    return not plain or type(weight) is not nn.Parameter


def _plain(module: nn.Module, dtype: torch.dtype, place: str, method: str) -> nn.Linear:
    """Return the linear layer that a packed one computes."""
    sizes: Any = module
    bias = getattr(module, "bias", None)
    with torch.device("meta"):
        linear = nn.Linear(sizes.in_features, sizes.out_features, bias=bias is not None)
    try:
        linear.weight = nn.Parameter(_weight(module, bias, dtype), requires_grad=False)
    except Exception as error:  # of whatever package the layer is of
        raise ModelError(
            f"The weights of {place}, which are quantised by {method}, cannot be made plain numbers "
            f"({type(error).__name__}: {error}); pass the model from before it was quantised."
        ) from error
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
    return linear


def _weight(module: nn.Module, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the matrix ``[out, in]`` by which a layer multiplies, from what it makes of unit vectors."""
    sizes: Any = module
    columns = []
    for start in range(0, sizes.in_features, STEP):
        width = min(STEP, sizes.in_features - start)
        unit = torch.zeros(width, sizes.in_features, dtype=dtype)
        unit[torch.arange(width), start + torch.arange(width)] = 1
        product = module(unit)
        if bias is not None:
            product = product - bias
        columns.append(product.to(dtype))
    return torch.cat(columns).T.contiguous()
