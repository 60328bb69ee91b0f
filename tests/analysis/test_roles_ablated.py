"""`sim.roles()` against ablation: with a head's outgoing weights at zero, what it was said to write is gone, and
nothing else has changed.

Literal execution in fp64, 1e-12; every module has tensors of its own (reuse ``none``), so that an ablation hits one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from programs import import_model
from tiny_models import gpt2, llama, token_ids
from torch import Tensor, nn

from tintc.analysis.role import Role
from tintc.runtime.model.causal_lm import TintForCausalLM

MODELS: dict[str, Any] = {
    "llama": lambda: llama(n_layers=1, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=45),
    "gpt2": lambda: gpt2(n_layers=1, n_heads=3, head_dim=8, d_ff=40),
}
IDS = token_ids(2, 9)


@cache
def simulator(name: str) -> TintForCausalLM:
    descend = "values,out,ffn,norm-bias" + (",norm-gain" if name == "gpt2" else "")
    return import_model(MODELS[name]()).compile(max_length=16, inner_lr=0.02, reuse="none", descend=descend)


def run(sim: TintForCausalLM, site: str) -> tuple[Tensor, dict[str, Tensor]]:
    """What the module at `site` returned last, and the capture points of the run, modules of other passes aside."""
    calls: list[Tensor] = []

    def keep(module: torch.nn.Module, operands: Any, out: Any) -> None:
        calls.append(out)

    handle = sim.get_submodule(f"sites.{site}").register_forward_hook(keep)
    try:
        with torch.no_grad(), sim.capture("pass1.modules.*", "final", "step0.*") as seen:
            sim(IDS)
    finally:
        handle.remove()
    return calls[-1], dict(seen)


@cache
def whole(name: str, site: str) -> tuple[Tensor, dict[str, Tensor]]:
    return run(simulator(name), site)


@contextmanager
def without(sim: TintForCausalLM, role: Role) -> Iterator[None]:
    """The head's chunk goes nowhere: its column of the first operation of W_o is zero. A gate lets nothing new pass."""
    block: Any = sim.get_submodule(f"structure.{role.block}")
    if role.phase == "gate":
        weight, index = block.v_new, slice(None)
    else:
        first = block.w_o[0]
        weight = first.weight
        index = (slice(None), slice(None), role.head) if first.kind == "dimension" else role.head
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[index] = 0
        yield
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def numbers(runs: Any) -> list[int]:
    return [number for run in runs for number in range(*run)]


def ways(found: Tensor, right: Tensor) -> Tensor:
    """Where two tensors differ."""
    return (found - right).abs() > 1e-12 * right.abs().max()


def last_heads(sim: TintForCausalLM, site: str) -> list[Role]:
    """Of every head of a module, the roles in the last block that it applies."""
    rows = [role for role in sim.roles().rows(site=site) if role.phase != "gate" and role.head >= 0]
    return [role for role in rows if role.block == rows[-1].block]


def columns_of(sim: TintForCausalLM, role: Role) -> set[int]:
    """The columns of the tokens' embeddings that a head writes."""
    return {place.slot * sim.layout.pitch + number for place in role.writes for number in numbers(place.numbers)}


def changed_columns(found: Tensor, right: Tensor) -> set[int]:
    return set(ways(found, right).flatten(0, 1).any(0).nonzero()[:, 0].tolist())


FORWARD = [
    ("llama", "forward_1.model.layers.0.self_attn.o_proj"),
    ("llama", "forward_1.model.layers.0.self_attn.attention"),
    ("gpt2", "forward_1.transformer.h.0.attn.k"),
]


@pytest.mark.parametrize(("name", "site"), FORWARD)
def test_a_forward_head_writes_its_part_of_the_result(name: str, site: str) -> None:
    sim, k = simulator(name), simulator(name).layout.n_prefixes
    right, seen = whole(name, site)
    for role in last_heads(sim, site):
        with without(sim, role):
            found, after = run(sim, site)
        assert changed_columns(found[:, k:], right[:, k:]) == columns_of(sim, role), role
        assert torch.equal(found[:, :k], right[:, :k])
        assert not torch.equal(after["pass1.final"], seen["pass1.final"])
        assert all(torch.equal(after[key], seen[key]) for key in seen if not key.startswith("pass1."))


def test_what_a_forward_head_adds() -> None:
    """Exactly the product of the rows and the shard that it handles."""
    sim, site = simulator("llama"), "forward_0.model.layers.0.self_attn.q_proj"
    _, seen = whole("llama", site)
    weight = sim.prefix("model.layers.0.self_attn.q_proj").weight.flatten(0, 1).detach()
    x = seen["pass1.modules.model.layers.0.input_layernorm"]
    point = "pass1.modules.model.layers.0.self_attn.q_proj"
    for role in last_heads(sim, site):
        rows, columns = numbers(role.rows), numbers(role.columns)
        assert role.parameter == "model.layers.0.self_attn.q_proj.weight"
        with without(sim, role):
            _, after = run(sim, site)
        lost = torch.zeros_like(seen[point])
        lost[..., rows] = x[..., columns] @ weight[rows][:, columns].T
        assert torch.allclose(seen[point] - after[point], lost, rtol=0, atol=1e-12)


@pytest.mark.parametrize("site", ["o_proj", "attention"])
def test_a_backward_head_is_its_part_of_the_gradient(site: str) -> None:
    """Gradients of what comes before it in the backward pass stay as they are."""
    sim, stem = simulator("llama"), "model.layers.0.self_attn"
    right, seen = whole("llama", f"backward_0.{stem}.{site}")
    k, behind = sim.layout.n_prefixes, f"step0.gradients.{stem}.v_proj.weight"
    ahead = [f"step0.gradients.{name}.weight" for name in ("model.layers.0.mlp.up_proj", f"{stem}.o_proj")]
    for role in last_heads(sim, f"backward_0.{stem}.{site}"):
        with without(sim, role):
            found, after = run(sim, role.site)
        assert changed_columns(found[:, k:], right[:, k:]) == columns_of(sim, role), role
        assert all(torch.equal(after[name], seen[name]) for name in ahead)
        assert ways(after[behind], seen[behind]).any()


@pytest.mark.parametrize("name", MODELS)
def test_a_descent_head_leaves_exactly_its_rows_and_shard_as_they_were(name: str) -> None:
    """Of weights, biases, gains: the union over the tiles that the head runs for; every other update is the same."""
    sim = simulator(name)
    descents = list(sim.roles().rows(phase="descent", layer=0))
    chosen = {(role.site, role.head): role for role in descents if role.head >= 0}
    for ending in ("mlp.down_proj", "mlp.c_fc", "attn.v", "ln_1"):
        heads = [role for (at, _), role in chosen.items() if at.endswith(ending)]
        for role in heads[:: max(1, len(heads) // 2)]:
            alike = [one for one in descents if (one.site, one.head) == (role.site, role.head)]
            seen, lost = whole(name, role.site)[1], expected_loss(sim, alike)
            with without(sim, role):
                _, after = run(sim, role.site)
            for update in (key for key in seen if key.startswith("step0.updates.")):
                mask = lost.get(update, torch.zeros_like(seen[update][0], dtype=torch.bool))
                assert not after[update][:, mask].any() and seen[update][:, mask].all(), (role, update)
                assert torch.equal(after[update][:, ~mask], seen[update][:, ~mask]), (role, update)


def expected_loss(sim: TintForCausalLM, roles: list[Role]) -> dict[str, Tensor]:
    """Which entries of which update these heads are said to write, by capture point."""
    shapes: dict[str, Any] = {point.name: point.shape[1:] for point in sim.capture_points()}
    found: dict[str, Tensor] = {}
    for role in roles:
        point = f"step0.updates.{role.parameter}"
        mask = found.setdefault(point, torch.zeros(shapes[point], dtype=torch.bool))
        for row in numbers(role.rows):
            mask[(row, numbers(role.columns)) if role.columns else row] = True
    assert found
    return found


def test_gates() -> None:
    """A descent gate lets the prefixes take the step, a forward gate the tokens the result."""
    sim = simulator("llama")
    (gate,) = {
        role.block: role for role in sim.roles().rows(phase="gate", site="descent_0*.0.self_attn.v_proj")
    }.values()
    _, seen = whole("llama", gate.site)
    assert gate.writes[0].at == "prefixes"
    with without(sim, gate):
        _, after = run(sim, gate.site)
    for name in (name for name in seen if name.startswith("step0.updates")):
        gone = name == "step0.updates.model.layers.0.self_attn.v_proj.weight"
        assert not after[name].any() if gone else torch.equal(after[name], seen[name])
    assert not torch.equal(after["pass1.final"], seen["pass1.final"])
    (gate,) = sim.roles().rows(phase="gate", site="forward_1.model.layers.0.self_attn.o_proj")
    with without(sim, gate):
        found, after = run(sim, gate.site)
    assert gate.writes[0].at == "tokens" and not after["pass1.modules.model.layers.0.self_attn.o_proj"].any()
    assert found[:, : sim.layout.n_prefixes].any() and torch.equal(after["pass0.final"], seen["pass0.final"])


def test_a_loss_head_is_its_part_of_the_gradient() -> None:
    sim, site = simulator("llama"), "loss_0.lm_head"
    right, k = whole("llama", site)[0], sim.layout.n_prefixes
    for role in [role for role in last_heads(sim, site) if role.writes[0].of == "lm_head.g0"]:
        with without(sim, role):
            found = run(sim, site)[0][:, k:]
        where = numbers(role.writes[0].numbers)
        assert not found[..., where].any()
        rest = [n for n in range(sim.layout.pitch) if n not in where]
        assert torch.equal(found[..., rest], right[:, k:][..., rest])


def test_every_module_of_the_tree_has_rows() -> None:
    for name in MODELS:
        sim = simulator(name)
        sites = {role.site for role in sim.roles()}
        modules = {
            n.removeprefix("sites.") for n, m in sim.named_modules() if n.startswith("sites.") and not is_container(m)
        }
        assert sites == modules
        assert {role.phase for role in sim.roles()} == {"forward", "loss", "backward", "descent", "gate"}


def is_container(module: nn.Module) -> bool:
    return type(module).__name__ == "Container"
