"""The types of values between a mixture's two sums, and of the weights of its experts."""

from __future__ import annotations

from tintc.ir.core import Op, Type, Value


def routed(experts: int, chosen: int, width: int) -> Type:
    """Return the type of one vector of `width` for every token and each of its `chosen` of all `experts`."""
    return Type("routed", (experts, chosen, width))


def check_routed(op: Op, routing: Value, value: Value) -> None:
    """Raise `IRError` unless `value` is routed among as many experts as `routing` has weights for."""
    kind = value.type
    op.expect(kind.kind == "routed" and len(kind.dims) == 3, f"needs a routed value, not {kind}")
    same = routing.type.kind == "tokens" and routing.type.width == kind.dims[0]
    op.expect(same, f"the routing is {routing.type}, the value is {kind}")
