"""Every tensor of the artefact matters, receives a gradient, and is a parameter under its own name.

fp64, literal execution, two steps (so that every rate and every weight before the last update is read).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from programs import gpt_like, import_model, llama_like, simulator
from safetensors import safe_open
from tiny_models import gpt2
from torch import Tensor, nn
from torch.func import functional_call, vmap

from tintc.lowering.emission.emit import specs
from tintc.runtime.execution.run import execute
from tintc.runtime.model.causal_lm import TintForCausalLM

IDS = torch.randint(0, 11, (1, 8), generator=torch.Generator().manual_seed(3))


@pytest.fixture(
    scope="module",
    params=["gpt", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "gpt, paper-code"))],
)
def sim(request: pytest.FixtureRequest) -> TintForCausalLM:
    options: dict[str, object] = {"n_steps": 2, "inner_lr": 0.01, "stack": 2, "shards": 2}
    make = llama_like if request.param == "llama" else gpt_like
    options |= {"semantics": "paper-code", "stack": None, "shards": None} if "paper" in request.param else {}
    return simulator(*make(width=12, heads=3, layers=1, d_ff=18), max_length=8, **options)


class Literally(nn.Module):
    """A literal run of a simulator without its guard against `vmap`, which other tests are about."""

    def __init__(self, sim: TintForCausalLM):
        super().__init__()
        self.sim = sim
        self.inputs = sim.resolve(IDS)

    def forward(self) -> Tensor:
        return execute(self.sim, self.inputs, None, ("logits",), "literal")["logits"]


def changes(sim: TintForCausalLM, others: Sequence[tuple[str, Tensor]]) -> list[float]:
    """Return how far each of these values, in place of one parameter, moves the logits, as a part of their size.

    They run side by side, as copies of the simulator: bit for bit what one run after the other gives.
    """
    own, rows = dict(sim.named_parameters()), dict[str, Tensor]()
    for at, (name, value) in enumerate(others):
        rows.setdefault(f"sim.{name}", own[name].detach().repeat(len(others), *[1] * value.dim()))[at] = value
    with torch.no_grad():
        right = sim(IDS).logits
        found = vmap(lambda row: functional_call(Literally(sim), row, ()))(rows)
    return [float((one - right).norm() / right.norm()) for one in found]


def invariant(name: str, rotary: bool = False) -> bool:
    """Softmax does not see what is added to all keys alike, unless rotation turns it by position. What the loss adds to
    the next token's vector is subtracted with it, and added again when the positions that count are picked."""
    return name == "structure.loss_pick.w_v.0.bias" or (name.endswith(".k.bias") and not rotary)


def test_every_tensor_changes_the_output(sim: TintForCausalLM) -> None:
    """Strongly, since gates are saturated: t becomes -t - 1 - noise."""
    rotary = any(name.startswith("score_vectors.") for name, _ in sim.named_parameters())
    others: list[tuple[str, Tensor]] = []
    for name, parameter in sim.named_parameters():
        kept, noise = parameter.detach(), torch.Generator().manual_seed(1)
        others.append((name, -kept - 1 - torch.randn(kept.shape, generator=noise, dtype=kept.dtype)))
    idle = [name for (name, _), change in zip(others, changes(sim, others), strict=True) if change <= 1e-7]
    unexplained = [name for name in idle if not invariant(name, rotary)]
    assert not unexplained


def test_every_rate_of_every_step_changes_the_output(sim: TintForCausalLM) -> None:
    others: list[tuple[str, Tensor]] = []
    for name, parameter in sim.named_parameters():
        if name.startswith("rates."):
            others += [(name, parameter.detach() + 0.05 * (torch.arange(2) == step)) for step in range(2)]
    for (name, rate), change in zip(others, changes(sim, others), strict=True):
        assert change > 1e-9, (name, rate)


def test_every_parameter_receives_a_gradient(sim: TintForCausalLM) -> None:
    """Not None for all; not zero for what is the auxiliary's, and the rates."""
    sim.trainable().zero_grad()
    sim(IDS).logits.sum().backward()
    for name, parameter in sim.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        if name.split(".")[0] in ("prefixes", "tables", "rates", "score_vectors") and not invariant(name):
            assert float(parameter.grad.abs().max()) > 0, name
    sim.zero_grad()
    sim.trainable("tables", "prefixes", "rates", "score_vectors")


def test_a_gradient_is_the_slope(sim: TintForCausalLM) -> None:
    """A central difference along one rate, to 1e-4 relative: autograd goes through the whole simulated descent."""
    sim.zero_grad()
    sim(IDS).logits.square().sum().backward()
    name, rate = next(iter(sim.rates.named_parameters()))
    assert rate.grad is not None, name
    step, values = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            rate[0] += sign * step
            values.append(float(sim(IDS).logits.square().sum()))
            rate[0] -= sign * step
    assert abs((values[0] - values[1]) / (2 * step) / float(rate.grad[0]) - 1) < 1e-4
    sim.zero_grad()


def test_names_and_shapes_are_the_compiler_s(sim: TintForCausalLM) -> None:
    wanted = {name: spec.shape for name, spec in specs(sim.program).items()}
    assert {name: tuple(tensor.shape) for name, tensor in sim.state_dict().items()} == wanted
    assert {name for name, _ in sim.named_parameters()} == set(wanted)


def test_the_file_holds_the_parameters_and_nothing_else(tmp_path: Path) -> None:
    sim = import_model(gpt2(n_layers=1)).compile()
    sim.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert stored == {name: tuple(parameter.shape) for name, parameter in sim.named_parameters()}
    assert stored["prefixes.transformer.h.0.attn.c_attn.q.weight"] == (
        -(-32 // sim.layout.stack), sim.layout.stack, 32
    )  # fmt: skip
    assert stored["tables.transformer.wte.weight"] == (53, 32) and "tables.lm_head.weight" not in stored
