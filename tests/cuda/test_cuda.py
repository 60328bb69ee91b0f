"""The same program on a GPU: fused and literal execution there agree with the CPU's.

fp64: 1e-9 of the update; fp32 1e-3; bf16 0.2 of the update, as on the CPU.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fused_cases import FAMILIES, compiled, family, relative_to_update, run, token_ids
from kernel_cases import close

from tintc.errors import InputError
from tintc.ir.simulator.kernels.grouped import grouped_product
from tintc.runtime.execution.fused.planner import UPDATES
from tintc.runtime.load import load, write_artefact

pytestmark = pytest.mark.cuda
DTYPES = [(torch.float64, 1e-9), (torch.float32, 1e-3), (torch.bfloat16, 0.2)]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_as_on_the_cpu(cuda: torch.device, name: str, dtype: torch.dtype, tolerance: float) -> None:
    ids, mask = token_ids(3, 16), torch.ones(3, 16)
    mask[1, :5] = 0
    right = run(compiled(name, n_steps=2), ids, "literal", attention_mask=mask, return_before=True)
    wanted = right.logits - right.logits_before
    sim = family(name).compile(dtype=dtype, n_steps=2, inner_lr=0.02).to(cuda)
    ways = [("fused", update) for update in UPDATES] + ([("literal", "auto")] if dtype == torch.float64 else [])
    for executor, update in ways:
        out = run(sim, ids.to(cuda), executor, update, attention_mask=mask.to(cuda), return_before=True)
        assert out.logits.is_cuda and out.logits.dtype == dtype
        got = (out.logits.double() - out.logits_before.double()).cpu()
        assert float((got - wanted).norm() / wanted.norm()) < tolerance, (executor, update)


def test_gradients_through_the_update(cuda: torch.device) -> None:
    gradients = []
    for device in (torch.device("cpu"), cuda):
        sim = family("llama").compile(n_steps=2, inner_lr=0.02).to(device)
        sim.executor = "fused"
        ids = token_ids(2, 12).to(device)
        sim(ids, labels=ids).loss.backward()
        gradient = sim.rate("model.layers.1.mlp.up_proj").grad
        assert gradient is not None
        gradients.append(gradient.cpu())
    assert torch.allclose(*gradients, rtol=1e-9)


@pytest.mark.parametrize("name", FAMILIES)
def test_generation(cuda: torch.device, name: str) -> None:
    """Token by token and in beams as on the CPU, fp64."""
    ids, mask = token_ids(2, 8), torch.tensor([[1] * 8, [0] * 3 + [1] * 5])
    found = []
    for device in (torch.device("cpu"), cuda):
        sim = family(name).compile(inner_lr=0.1).to(device)
        sim.executor = "fused"
        given = {"attention_mask": mask.to(device), "max_new_tokens": 5, "do_sample": False}
        found.append([sim.generate(ids.to(device), num_beams=beams, **given).cpu() for beams in (1, 3)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_load_onto_the_gpu(cuda: torch.device, tmp_path: Path) -> None:
    """All of it moves."""
    sim = load(write_artefact(family("opt").compile(), tmp_path / "sim"), device=cuda)
    ids = token_ids(1, 9).to(cuda)
    fused = run(sim, ids, "auto", return_before=True)
    literal = run(sim, ids, "literal")
    assert relative_to_update(fused.logits, literal.logits, fused.logits_before) < 1e-3
    assert {p.device.type for p in sim.parameters()} == {"cuda"}


def test_a_batch_that_does_not_fit_is_refused(cuda: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    from tintc.runtime.execution import memory

    sim = family("opt").compile().to(cuda)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 10_000)
    with pytest.raises(InputError, match="GB can be used"):
        run(sim, token_ids(4, 16).to(cuda))


def test_states_follow_a_simulator_from_device_to_device(cuda: torch.device) -> None:
    """fp64, 1e-9 of the largest logit; the cache of a text stays where it was filled."""
    sim = family("llama").compile(inner_lr=0.02)
    sim.executor, ids = "fused", token_ids(2, 12)
    state, past = sim.adapt(ids), sim(ids, use_cache=True).past_key_values
    wanted = sim(ids, state=state).logits
    sim.to(cuda)
    for _ in range(2):
        found = sim(ids.to(cuda), state=state).logits.cpu()
        assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-9
    with pytest.raises(InputError, match="what the cache has read"):
        sim(ids[:, :1].to(cuda), past_key_values=past)
    sim.to("cpu")
    assert torch.equal(sim(ids, state=state).logits, wanted)


def test_graphs(cuda: torch.device) -> None:
    """Replayed passes and steps are those without, fp32: 1e-5 of the logits; weights that move end them."""
    sim = family("llama").compile(dtype=torch.float32, n_steps=2, inner_lr=0.02).to(cuda)
    sim.executor, ids = "fused", token_ids(2, 14).to(cuda)
    given = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        wanted, text = sim(ids).logits, sim.generate(ids, **given)
        sim.warm_up(2, 16)
        sim.warm_up(3, 16, new_tokens=6)
        sim.warm_up(2, 16, new_tokens=6)
        for _ in range(3):
            torch.testing.assert_close(sim(ids).logits, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
            assert torch.equal(sim.generate(ids, **given), text)
        assert len(sim.graphs) == 5
        sim.to("cpu")
        sim.to(cuda)
        torch.testing.assert_close(sim(ids).logits, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("transposed", [False, True])
def test_grouped_products(cuda: torch.device, transposed: bool) -> None:
    """bf16, 1e-2 of the largest; experts that nobody chose among them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(13, 16 if transposed else 24, generator=generator).to(cuda, torch.bfloat16)
    weight = torch.randn(5, 16, 24, generator=generator).to(cuda, torch.bfloat16)
    keys = torch.tensor([3, 0, 0, 3, 1, 0, 3, 3, 1, 0, 0, 1, 3], device=cuda)
    with torch.no_grad():
        wanted = grouped_product(x.double(), weight.double(), keys, transposed)
        close(grouped_product(x, weight, keys, transposed), wanted, 1e-2)


def test_layers_on_two_cards(cuda: torch.device) -> None:
    """fp64, 1e-9 of the update."""
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    ids = token_ids(2, 12).to(cuda)
    sim = family("llama").compile(n_steps=2, inner_lr=0.02).to(cuda)
    right = run(sim, ids, return_before=True)
    assert len(sim.place_layers({"": 0, "prefixes.model.layers.1": 1})) == 2
    assert relative_to_update(run(sim, ids).logits, right.logits, right.logits_before) < 1e-9
