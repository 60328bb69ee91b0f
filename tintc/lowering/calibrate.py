"""Steps of the scheme ``calibrated``: a constant power of two for every module, from a calibration text
(construction.md, section 6).

The gradients of the text's loss are pulled back once, with the scheme ``token``, which suits gradients of any size. Of
every module that takes a difference, ``r_t = rms(g_t) / c_t`` is noted at each token t, where g is what the difference
goes along and c the scale of the norm at x (1 for activations). The token's own step would be ``eps / r_t``; the
module's is ``eps / sqrt(mean r_t^2)``, rounded to a power of two, so that multiplying and dividing by it is exact.
Tokens of large gradients, which make up most of a sum, weigh most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tintc.errors import OptionError
from tintc.ir import auxiliary as aux
from tintc.ir.auxiliary.interpreter import Descent, differentiate_once, loading
from tintc.ir.core import Program
from tintc.ir.functions import FiniteDifference, at_least_fp32, rms
from tintc.ir.inputs import resolve_inputs
from tintc.lowering.options import Options


@dataclass(frozen=True)
class _Watched(FiniteDifference):
    """A difference that notes how large its gradients are: ``rms(g) / c``, by token."""

    seen: list[Tensor] = field(default_factory=list)

    def derivative(self, f: Callable[[Tensor], Tensor], x: Tensor, g: Tensor, c: Tensor | float = 1.0) -> Tensor:
        self.seen.append((rms(g) / c).flatten())
        return super().derivative(f, x, g, c)


@torch.no_grad()
def calibrate(program: Program, source: Mapping[str, Tensor], ids: Tensor, options: Options) -> dict[str, float]:
    """The step of every norm, activation and gate of an auxiliary program, by the name of its result.

    ids ``[T]``: the calibration text, every token of which is trained on; computed in fp32 or better.
    """
    dtype = at_least_fp32(next(tensor for tensor in source.values() if tensor.is_floating_point())).dtype
    ops = [op for op in program.ops if isinstance(op, aux.Norm | aux.Activation | aux.Gate)]
    watched = {op.result.name: _Watched("token", options.fd_step) for op in ops}
    inputs = resolve_inputs(ids[None], torch.ones_like(ids)[None], semantics=options.semantics)
    descent = Descent(0.0, loss=options.loss, semantics=options.semantics, differences=watched)
    differentiate_once(program, loading(program, source, dtype), inputs, descent, layers=0)
    return {name: power_of_two(options.fd_step, watch.seen) for name, watch in watched.items()}


def power_of_two(eps: float, sizes: list[Tensor]) -> float:
    """The power of two nearest to eps over the root mean square of `sizes`, on a logarithmic scale; to eps itself if
    no gradient has come by. Raises `OptionError` for sizes that are not finite."""
    size = float(torch.cat(sizes).double().square().mean().sqrt()) if sizes else 0.0
    if not math.isfinite(size):
        raise OptionError(
            "Gradients on the calibration text are not finite, so no step suits them; choose another text, or another "
            "difference."
        )
    return 2.0 ** round(math.log2(eps / size if size else eps))
