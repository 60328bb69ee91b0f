"""Products that share an input, taken as one: the same answers, the same parameters, fewer products (fp64, 1e-9)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fused_cases import FAMILIES, check_fused, compiled, family, relative_to_update, run, token_ids
from torch.utils._python_dispatch import TorchDispatchMode

from tintc.runtime.execution.fused import packed_linear
from tintc.runtime.execution.fused.plan import Sizes
from tintc.runtime.execution.fused.planner import make_plan
from tintc.runtime.model.adapted_state import AdaptedState
from tintc.runtime.model.causal_lm import TintForCausalLM

IDS = token_ids(2, 12)


class Products(TorchDispatchMode):
    """How many matrix products run."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += str(func).startswith(("aten.mm.", "aten.addmm.", "aten.bmm.", "aten.baddbmm."))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "DEVICES", ("cpu",))


def fresh(name: str) -> TintForCausalLM:
    sim = family(name).compile(inner_lr=0.02, n_steps=2)
    sim.executor = "fused"
    return sim


@pytest.mark.parametrize("name", FAMILIES)
def test_agreement(on_cpu: None, name: str) -> None:
    sim = fresh(name)
    check_fused(sim, IDS)
    check_fused(sim, IDS[:1], literal=False)


def test_what_is_joined() -> None:
    """q, k and v in both passes; gate and up; k and v, of one width, of layers that no update has changed yet."""
    for name, wanted in (("gpt2", {3}), ("llama", {2, 3})):
        sim = compiled(name)
        plan = make_plan(sim.program, ("logits",), Sizes(1, 12, 6, 53), "lazy")
        assert {len(group.ops) for group in plan.packed.values()} == wanted
        materialised = make_plan(sim.program, ("logits",), Sizes(1, 12, 6, 53), "materialised")
        assert len(materialised.packed) < len(plan.packed)
        for group in plan.packed.values():
            assert len({plan.operands(op)[1] for op in group.ops}) == 1


def test_fewer_products(on_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for devices in ((), ("cpu",)):
        monkeypatch.setattr(packed_linear, "DEVICES", devices)
        sim = fresh("gpt2")
        with torch.no_grad(), Products() as products:
            sim(IDS)
        counts.append(products.count)
    plan = next(iter(sim.plans.values()))
    groups = set(plan.packed.values())
    assert counts[0] - counts[1] == sum(len(group.ops) - 1 for group in groups) > 0


def test_parameters_stay_what_they_are(on_cpu: None) -> None:
    """One piece of memory, the same parameters: what is trained, loaded, cast or stored afterwards is theirs."""
    sim = fresh("llama")
    state = {name: tensor.clone() for name, tensor in sim.state_dict().items()}
    before = dict(sim.prefixes.named_parameters())
    plain = run(sim, IDS, return_before=True)
    assert all(before[name] is parameter for name, parameter in sim.prefixes.named_parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in sim.state_dict().items())
    q, k = (sim.get_parameter(f"prefixes.model.layers.0.self_attn.{name}_proj.weight") for name in "qk")
    assert q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()
    with torch.no_grad():
        k.mul_(3)
    changed, literal = run(sim, IDS, return_before=True), run(sim, IDS, "literal", return_before=True)
    assert relative_to_update(changed.logits, literal.logits, literal.logits_before) < 1e-9
    assert not torch.allclose(changed.logits, plain.logits)
    sim.load_state_dict(state, assign=True)
    assert torch.allclose(run(sim, IDS).logits, plain.logits, rtol=0, atol=1e-12)
    assert run(sim.to(torch.float32), IDS).logits.dtype == torch.float32


def test_gradients_are_those_of_products_taken_alone(on_cpu: None) -> None:
    sim = fresh("llama")
    run(sim, IDS)
    name = "prefixes.model.layers.0.self_attn.k_proj.weight"
    loss = sim(IDS, labels=IDS).loss
    (gradient,) = torch.autograd.grad(loss, [sim.get_parameter(name)])
    assert float(gradient.norm()) > 0


@pytest.mark.parametrize(("name", "update"), [("gpt2", "lazy"), ("opt", "materialised"), ("llama", "lazy")])
def test_states_outlive_the_runs_after_them(on_cpu: None, tmp_path: Path, name: str, update: str) -> None:
    """Packing moves weights without changing them: states made before a first fused run are good after it (fp64)."""
    sim = fresh(name)
    sim.adapt(IDS).save(tmp_path / "state")
    late = fresh(name)
    late.executor = "literal"
    states = [AdaptedState.load(tmp_path / "state", late), late.adapt(IDS)]
    late.executor, late.update = "fused", update
    run(late, IDS)
    run(late, IDS[:1])
    with torch.no_grad():
        for state in states:
            state.check_current()
            assert torch.allclose(
                late(IDS, state=state).logits, sim(IDS, state=sim.adapt(IDS)).logits, rtol=0, atol=1e-9
            )


def test_one_group_holds_all_that_any_plan_takes_as_one() -> None:
    for name in FAMILIES:
        sim = compiled(name)
        for update in ("lazy", "materialised"):
            plan = make_plan(sim.program, ("logits",), Sizes(1, 12, 6, 53), update)
            for group in plan.packed.values():
                assert any(set(group.layers) <= set(names) for names in sim.shared_inputs)
