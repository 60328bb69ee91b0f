"""Products of vectors with the weights of the expert that each has chosen, in shapes that do not depend on the choice.

On a CPU the vectors of one expert are cut out and multiplied alone (`shared/grouped.py`), for which the sizes of the
groups must be known on the host. A GPU would have to wait for that. Here the groups stay on the device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tintc.ir.simulator.kernels.choice import chosen


def grouped_product(x: Tensor, weight: Tensor, keys: Tensor, transposed: bool) -> Tensor:
    """Return ``W_key x`` of every vector, or ``W_key^T x`` where `transposed`.

    ``x [N, width]``, ``weight [G, dout, din]``, ``keys [N]``. Plainly, all vectors meet all weights; torch's grouped
    product takes them in the order of their keys, with where each group ends.
    """
    if not transposed:
        weight = weight.transpose(1, 2)
    if chosen("grouped_product", x, weight):
        ordered, order = keys.sort(stable=True)
        ends = torch.searchsorted(ordered, torch.arange(len(weight), device=keys.device), right=True)
        products = F.grouped_mm(x[order], weight, offs=ends.to(torch.int32))
        return torch.empty_like(products).index_copy_(0, order, products)
    y = x.new_zeros(x.shape[0], weight.shape[-1])
    for key, each in enumerate(weight):
        y = torch.where((keys == key)[:, None], x @ each, y)
    return y


def grouped_pairs(
    y: Tensor, x: Tensor, keys: Tensor, a: Tensor, b: Tensor, pair_keys: Tensor, shift: float, rate: float
) -> Tensor:
    """Return ``y + rate sum_j (<x, a_j> + shift) b_j`` over the pairs of the same key: a pending update of experts.

    ``y [N, wide]``, ``x [N, width]``, ``a [M, width]``, ``b [M, wide]``. Keys tell examples apart too.
    """
    same = keys[:, None] == pair_keys
    return torch.addmm(y, (x @ a.t() + shift) * same, b, alpha=rate)


def grouped_sums(dy: Tensor, x: Tensor, experts: Tensor, count: int) -> Tensor:
    """Return ``sum dy x^T [B, count, dout, din]`` over each expert's vectors; ``dy [B, N, dout]``, ``x [B, N, din]``,
    ``experts [B, N]``."""
    each = [(dy * (experts == expert)[..., None]).transpose(1, 2) @ x for expert in range(count)]
    return torch.stack(each, 1)
