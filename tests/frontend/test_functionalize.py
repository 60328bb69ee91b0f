"""Graphs that change tensors in place give the same when they are rewritten, or are said to need tracing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from tintc.frontend.graph.functionalize import NeedsRetracing, functionalize, is_inplace

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "select": lambda x: x.select(-1, -1),
    "every other": lambda x: x[..., ::2],
    "rows": lambda x: x[1:],
    "new dimension": lambda x: x.unsqueeze(0),
    "transposed": lambda x: x.transpose(0, -1),
    "detached": lambda x: x.detach(),
}
WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "add": lambda x: x.add_(1.5),
    "scaled": lambda x: x.mul_(-2),
    "copied": lambda x: x.copy_(x.flip(0) if x.dim() else x + 1),
    "filled": lambda x: x.fill_(0.5),
    "masked": lambda x: x.masked_fill_(x > 0, 0.25),
    "zero": lambda x: x.zero_(),
}
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {"copy": lambda x: x.clone(), "negative": lambda x: -x}
ALL = VIEWS | WRITES | OTHERS
STEPS = st.lists(st.tuples(st.sampled_from([*ALL]), st.integers(0, 20)), min_size=1, max_size=14)


def traced(function: Callable[[Tensor], object], x: Tensor) -> GraphModule:
    return make_fx(function, pre_dispatch=True)(x.clone())


def rewritten(graph: GraphModule) -> GraphModule:
    made = GraphModule(graph, functionalize(graph.graph))
    assert not any(map(is_inplace, made.graph.nodes))
    made.graph.lint()
    return made


@settings(deadline=None, max_examples=50)
@given(steps=STEPS)
def test_any_program_of_views_and_writes(steps: list[tuple[str, int]]) -> None:
    """Every tensor that was made, and looked at before and after the others were written, in fp64 to the last digit;
    what was given stays as it was."""

    def program(x: Tensor) -> list[Tensor]:
        made = [x]
        seen = []
        for name, at in steps:
            one = made[at % len(made)]
            if (one.dim() > 0 and one.shape[0] > 1) or name in WRITES:
                made.append(ALL[name](one))
                seen.append(made[at % 3 % len(made)].sum())
        return [*made, *seen]

    x = torch.arange(-6.0, 6.0, dtype=torch.float64).reshape(4, 3)
    graph, kept = traced(program, x), x.clone()
    found = rewritten(graph)(x)
    assert torch.equal(x, kept)
    wanted = program(x)
    assert len(found) == len(wanted)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_rows_that_build_on_each_other() -> None:
    """As linear attention inverts its triangle."""

    def inverted(x: Tensor) -> Tensor:
        for row in range(1, 5):
            x[..., row, :row] = x[..., row, :row] + (x[..., row, :row].unsqueeze(-1) * x[..., :row, :row]).sum(-2)
        return x.reshape(-1)

    x = torch.randn(2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = rewritten(traced(lambda x: inverted(x.clone()), x))
    assert torch.equal(found(x), inverted(x.clone()))


def test_what_may_share_memory_and_is_read_later_needs_tracing() -> None:
    """A reshaped tensor may be a copy or not; where nobody reads it after the other is written, that is all one."""

    def read_before(x: Tensor) -> Tensor:
        y = x.clone()
        total = y.reshape(-1).sum()
        return y.add_(1) * total

    def read_after(x: Tensor) -> Tensor:
        y = x.clone()
        flat = y.reshape(-1)
        return y.add_(1).sum() + flat

    x = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    assert torch.equal(rewritten(traced(read_before, x))(x), read_before(x))
    graph = traced(read_after, x)
    if not any(node.name.startswith("reshape") for node in graph.graph.nodes):
        pytest.skip("this version of PyTorch traces reshape as the view that it is here")
    with pytest.raises(NeedsRetracing):
        functionalize(graph.graph)


@pytest.mark.parametrize("function", [lambda x: x.clone().split(1)[0].add_(1), lambda x: x.clone().diagonal().add_(1)])
def test_parts_that_cannot_be_put_back_need_tracing(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(NeedsRetracing):
        functionalize(traced(function, torch.ones(2, 3)).graph)
