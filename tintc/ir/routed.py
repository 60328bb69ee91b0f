"""Values between a mixture's two sums, and the linear layers of its experts: types, and what both dialects compute.

A *routed* value is one vector for every token and every expert, ``[B, T, E, width]``, zero where the token has not
chosen the expert.
"""

from __future__ import annotations

from torch import Tensor

from tintc.ir.core import Op, Type, Value


def routed(experts: int, chosen: int, width: int) -> Type:
    """Return the type of one vector of `width` for every token and each of its `chosen` of all `experts`."""
    return Type("routed", (experts, chosen, width))


def check_routed(op: Op, routing: Value, value: Value) -> None:
    """Raise `IRError` unless `value` is routed among as many experts as `routing` has weights for."""
    kind = value.type
    op.expect(kind.kind == "routed" and len(kind.dims) == 3, f"needs a routed value, not {kind}")
    same = routing.type.kind == "tokens" and routing.type.width == kind.dims[0]
    op.expect(same and 0 < kind.dims[1] <= kind.dims[0], f"the routing is {routing.type}, the value is {kind}")


def check_experts(op: Op, weights: Value, routing: Value, dout: Value, din: Value) -> None:
    """Raise `IRError` unless `weights` are a linear layer for each expert, of the widths of its output and input."""
    kind = weights.type
    check_routed(op, routing, dout)
    check_routed(op, routing, din)
    op.expect(kind.kind == "experts" and len(kind.dims) == 3, f"needs the weights of experts, not {kind}")
    wanted = (routing.type.width, dout.type.width, din.type.width)
    op.expect(kind.dims == wanted, f"weights are {kind}, the routed values want {wanted}")


def factors(r: Tensor, weighted: bool) -> Tensor:
    """Return ``[B, T, E, 1]``: the routing weights ``r [B, T, E]``, or one for every expert that is chosen."""
    if not weighted:
        r = (r != 0).to(r.dtype)
    return r[..., None]


def weights_gradient(r: Tensor, a: Tensor, y: Tensor) -> Tensor:
    """Return ``<a_t, y_te>``, ``[B, T, E]``, of ``a [B, T, width]`` and a routed value; zero for experts that are not
    chosen."""
    return (a[..., None, :] * y).sum(-1) * (r != 0)


def used_experts(r: Tensor) -> Tensor:
    """Return the experts that any token has chosen, in order."""
    return (r != 0).flatten(0, 1).any(0).nonzero()[:, 0]


def apply_experts(weight: Tensor, bias: Tensor | None, r: Tensor, x: Tensor) -> Tensor:
    """Return ``W_e x_te + b_e``, ``[B, T, E, dout]``, for ``W [E, dout, din]`` or ``[B, E, dout, din]``; zero where
    the expert is not chosen."""
    used = used_experts(r)
    product = x[:, :, used].transpose(1, 2) @ weight[..., used, :, :].transpose(-1, -2)
    if bias is not None:
        product = product + bias[..., used, None, :]
    y = x.new_zeros((*x.shape[:3], weight.shape[-2])).index_copy(2, used, product.transpose(1, 2))
    return y * factors(r, weighted=False)


def apply_experts_transposed(weight: Tensor, r: Tensor, dy: Tensor) -> Tensor:
    """Return ``W_e^T dy_te``, ``[B, T, E, din]``; dy is zero where the expert is not chosen."""
    used = used_experts(r)
    product = dy[:, :, used].transpose(1, 2) @ weight[..., used, :, :]
    dx = dy.new_zeros((*dy.shape[:3], weight.shape[-1]))
    return dx.index_copy(2, used, product.transpose(1, 2))


def expert_gradients(dy: Tensor, x: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``dW_e = sum dy_te x_te^T [B, E, dout, din]`` and ``db_e = sum dy_te [B, E, dout]`` over train tokens.

    train: ``[B, T, 1]``, one for these.
    """
    summed = (dy * train[..., None]).transpose(1, 2)
    return summed.transpose(-1, -2) @ x.transpose(1, 2), summed.sum(2)
