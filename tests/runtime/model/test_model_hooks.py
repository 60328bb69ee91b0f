"""The module tree: stable names, and hooks on every module see whole embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from programs import gpt_like, llama_like, simulator
from torch import Tensor, nn

from tintc.runtime.execution.module_tree import Container

IDS = torch.randint(0, 11, (2, 8), generator=torch.Generator().manual_seed(3))
MAKERS = {"gpt": gpt_like, "llama": llama_like}


@pytest.mark.parametrize("semantics", ["exact", "paper-code"])
@pytest.mark.parametrize("make", MAKERS)
def test_a_hook_on_any_module_sees_embeddings(make: str, semantics: str) -> None:
    sim = simulator(*MAKERS[make](layers=1), max_length=12, n_steps=2, semantics=semantics)
    shape = (2, sim.layout.n_prefixes + 8, sim.layout.d_sim)
    seen: dict[str, int] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def hook(module: nn.Module, given: tuple[Any, ...], out: Tensor) -> None:
            assert tuple(given[0].shape) == shape and tuple(out.shape) == shape, name
            seen[name] = seen.get(name, 0) + 1

        return hook

    watched = {name for name, module in sim.named_modules() if module is not sim and not isinstance(module, Container)}
    for name, module in sim.named_modules():
        if name in watched:
            module.register_forward_hook(watch(name))
    with torch.no_grad():
        sim(IDS, return_before=True)
    assert set(seen) == watched
    assert {name.split(".")[0] for name in watched} == {"structure", "sites", "prefixes"}


def test_a_hook_may_change_what_flows() -> None:
    sim = simulator(*gpt_like(layers=1), max_length=12)
    with torch.no_grad():
        right = sim(IDS).logits
        site: Any = sim.get_submodule("sites.forward_0.h.0.ffn.down")
        handle = site.register_forward_hook(lambda module, operands, out: out + 0.1)
        assert not torch.equal(sim(IDS).logits, right)
        handle.remove()
        assert torch.equal(sim(IDS).logits, right)


@pytest.mark.parametrize("make", MAKERS)
def test_names_are_stable(make: str, golden: Callable[[str, str], None]) -> None:
    sim = simulator(*MAKERS[make](layers=1), max_length=12, n_steps=1)
    modules = [f"{name}: {module!r}".splitlines()[0] for name, module in sim.named_modules() if name]
    parameters = [f"{name} {list(parameter.shape)}" for name, parameter in sim.named_parameters()]
    golden(f"tree_{make}", "\n".join(["modules", *modules, "", "parameters", *parameters, ""]))
