"""Capture points: the same names and values in fused and literal execution, without changing either.

fp64, 1e-9 of a value's size, unless a test says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fused_cases import FAMILIES, compiled, family, run
from programs import gpt_like, simulator
from tiny_models import token_ids
from torch import Tensor

from tintc.analysis.capture_points import point_of, sized
from tintc.errors import InputError, OptionError
from tintc.ir.inputs import resolve_inputs
from tintc.reference.simulated_gradients import simulated_gradients
from tintc.runtime.execution.fused.costs import peak_bytes
from tintc.runtime.execution.fused.plan import Sizes
from tintc.runtime.execution.fused.planner import make_plan
from tintc.runtime.model.causal_lm import TintForCausalLM

IDS = token_ids(2, 11)


def seen_by(
    sim: TintForCausalLM, executor: str, *patterns: str, update: str = "auto", **given: Any
) -> dict[str, Tensor]:
    with sim.capture(*patterns) as seen:
        run(sim, IDS, executor, update, **given)
    assert sim.last_executor == executor
    return dict(seen)


def off(found: Tensor, right: Tensor) -> float:
    return float((found - right).norm() / right.norm())


TWO: dict[str, Any] = {"n_steps": 2, "n_update_layers": 2}


@pytest.mark.parametrize("options", [TWO, {"descend": "out,norm-gain,norm-bias"}])
@pytest.mark.parametrize("name", FAMILIES)
def test_both_executors_show_the_same(name: str, options: dict[str, Any]) -> None:
    """Every point there is, with the shape it says, for tokens of its own in each example, in every kind of update."""
    sim, mask = compiled(name, **options), torch.tensor([[1] * 6 + [0] * 5, [1, 1, 0, 1, 1, 1, 1, 1, 0, 0, 0]])
    literal = seen_by(sim, "literal", "*", train_mask=mask)
    for update in ("lazy", "materialised"):
        fused = seen_by(sim, "fused", "*", update=update, train_mask=mask)
        assert list(fused) == list(literal) == [point.name for point in sim.capture_points()]
        for point in sim.capture_points():
            assert tuple(fused[point.name].shape) == sized(point.shape, 2, 11), point
            assert off(fused[point.name], literal[point.name]) < 1e-9, point


def test_the_points_of_every_pass_and_step() -> None:
    sim = compiled("llama", n_steps=2, n_update_layers=1)
    names = [point.name for point in sim.capture_points() if ".modules." not in point.name]
    own = ["embeddings", *(f"layers.{layer}.residual" for layer in range(3)), "final"]
    own += [f"layers.{layer}.attention" for layer in range(3)]
    assert [name for name in names if name.startswith("pass")] == [
        f"pass{at}.{name}" for at in range(3) for name in own
    ]
    layers = ["mlp.down_proj", "mlp.up_proj", "mlp.gate_proj", "self_attn.o_proj", "self_attn.v_proj"]
    stems = [f"model.layers.2.{layer}" for layer in layers]
    descending = [name for name in names if name.startswith("step0.gradients.")]
    assert sorted(descending) == sorted(
        f"step0.gradients.{stem}.{part}"
        for stem in stems
        for part in (["weight", "bias"] if "self_attn" in stem else ["weight"])
    )
    assert len([name for name in names if name.startswith("step")]) == 4 * len(descending)


def test_patterns() -> None:
    sim = compiled("gpt2", **TWO)
    assert set(seen_by(sim, "fused", "layers.1.residual")) == {f"pass{at}.layers.1.residual" for at in range(3)}
    assert set(seen_by(sim, "fused", "pass2.final", "step?.updates.*.h.2.ln_1.bias")) == {
        "pass2.final",
        *(f"step{at}.updates.transformer.h.2.ln_1.bias" for at in range(2)),
    }
    with (
        pytest.raises(OptionError, match=r"'layers.7.residual'; sim.capture_points\(\) lists"),
        sim.capture("layers.7.residual"),
    ):
        pass
    with pytest.raises(OptionError, match="Say what to capture"), sim.capture():
        pass


@pytest.mark.parametrize("name", FAMILIES)
def test_capturing_changes_nothing(name: str) -> None:
    """Fused logits are the same to 1e-12; a plan without points shows nothing, and one with points counts them."""
    sim = compiled(name, **TWO)
    alone = run(sim, IDS)
    with sim.capture("*") as seen:
        watched = run(sim, IDS)
    assert torch.allclose(watched.logits, alone.logits, rtol=0, atol=1e-12)
    assert torch.equal(run(sim, IDS).logits, alone.logits)
    sizes = Sizes(2, 11, 5, 53)
    plain, more = (make_plan(sim.program, outputs, sizes) for outputs in (("logits",), ("logits", *seen)))
    assert not plain.shown and peak_bytes(more, 8) - peak_bytes(plain, 8) > 0.5 * sum(t.nbytes for t in seen.values())


def test_gradients_are_those_of_the_descent() -> None:
    """Of every parameter that descends; an update is minus the rate times it, whatever the rate is."""
    sim, ids = compiled("gpt2", n_steps=2, descend="values,out,ffn,norm-bias,norm-gain"), IDS[:1]
    right = simulated_gradients(sim, resolve_inputs(ids))
    rate = torch.tensor([0.05], dtype=torch.float64)
    for executor in ("fused", "literal"):
        with sim.capture("step0.*") as seen:
            run(sim, ids, executor, inner_lr=rate)
        assert {name.removeprefix("step0.gradients.") for name in seen if "gradients" in name} == right.keys()
        for name, gradient in right.items():
            assert off(seen[f"step0.gradients.{name}"][0], gradient) < 1e-9, name
            assert off(seen[f"step0.updates.{name}"][0], -0.05 * gradient) < 1e-9, name


def test_authors_bias_copies_step_together() -> None:
    sim = compiled("gpt2", semantics="paper-code")
    fused, literal = (seen_by(sim, executor, "step0.*") for executor in ("fused", "literal"))
    assert all(off(fused[name], literal[name]) < 1e-9 for name in literal)


def test_nothing_to_train_on_gives_zero_gradients() -> None:
    sim, mask = compiled("llama"), torch.zeros(2, 11)
    for executor in ("fused", "literal"):
        seen = seen_by(sim, executor, "gradients.*", "updates.*", train_mask=mask)
        assert seen and not any(tensor.any() for tensor in seen.values())


def test_captures_nest_and_keep_the_last_run() -> None:
    sim = compiled("opt")
    with sim.capture("pass1.final") as outer:
        with sim.capture("pass0.final") as inner:
            run(sim, IDS)
        kept = inner["pass0.final"]
        run(sim, IDS[:, :7])
    assert inner["pass0.final"] is kept and kept.shape[1] == 11
    assert list(outer) == ["pass1.final"] and outer["pass1.final"].shape[1] == 7


def test_batches_in_parts_are_put_together() -> None:
    sim = compiled("llama", **TWO)
    whole, parts = (seen_by(sim, "fused", "*", max_batch=most) for most in (None, 1))
    assert all(off(parts[name], whole[name]) < 1e-9 for name in whole)


def gradients_with_respect_to(sim: TintForCausalLM, executor: str, pattern: str, **given: Any) -> dict[str, Tensor]:
    """Of the logits' summed squares, with respect to what is captured, by name."""
    sim.executor = executor
    with sim.capture(pattern) as seen:
        out = sim(IDS, **given)
    sim.executor = "auto"
    found = torch.autograd.grad(out.logits.square().sum(), list(seen.values()))
    return dict(zip(seen, found, strict=True))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gpt2", {}),
        ("opt", {"descend": "out,norm-gain,norm-bias"}),
        ("llama", {"semantics": "paper-code"}),
        ("llama", {"descend": "out,norm-gain,norm-bias"}),
    ],
)
def test_gradients_reach_what_is_captured(name: str, options: dict[str, Any]) -> None:
    """Of every point, the same in both executors: gradients and updates of a step are what is added to the weights.

    fp64, 1e-11 of a gradient's size; 1e-12 is the worst.
    """
    sim = compiled(name, n_update_layers=1, **options)
    for pattern in ("step0.gradients.*", "step0.updates.*", "pass1.layers.*"):
        literal, fused = (gradients_with_respect_to(sim, executor, pattern) for executor in ("literal", "fused"))
        assert literal.keys() == fused.keys()
        for point, gradient in literal.items():
            assert gradient.any() or not fused[point].any(), point
            assert float((fused[point] - gradient).norm()) <= 1e-11 * float(gradient.norm()), point


@pytest.mark.parametrize("executor", ["fused", "literal"])
@pytest.mark.parametrize("pattern", ["step0.updates.*", "step0.*"])
def test_the_rate_acts_by_the_updates_alone(executor: str, pattern: str) -> None:
    """``r dL/dr = sum <dL/dU, U>``, for one step: exact, to 1e-9 in fp64, whatever else is captured beside it."""
    sim = compiled("gpt2", n_update_layers=2)
    rate = torch.tensor(0.02, dtype=torch.float64, requires_grad=True)
    sim.executor = executor
    with sim.capture(pattern) as seen:
        out = sim(IDS, inner_lr=rate)
    sim.executor = "auto"
    for value in seen.values():
        value.retain_grad()
    out.logits.square().sum().backward()
    assert rate.grad is not None
    whole = 0.0
    for name, value in seen.items():
        assert value.grad is not None, name
        if name.startswith("step0.updates."):
            whole += float((value.grad * value.detach()).sum())
    assert whole == pytest.approx(float(rate.grad) * 0.02, rel=1e-9)
    sim.zero_grad()


def test_captures_leave_recorded_runs_as_they_are() -> None:
    """The logits of a run that autograd records, with and without points of its step, to 1e-12 in fp64."""
    sim = compiled("llama", n_steps=2, n_update_layers=1)
    for executor in ("fused", "literal"):
        sim.executor = executor
        plain = sim(IDS).logits
        with sim.capture("step*"):
            shown = sim(IDS).logits
        sim.executor = "auto"
        assert off(shown, plain) < 1e-12, executor


def test_a_programs_own_names_do_not_matter() -> None:
    """Points come from layers and phases: an auxiliary of other names has them too."""
    sim = simulator(*gpt_like(), n_steps=1)
    with sim.capture("layers.*", "embeddings", "final") as seen, torch.no_grad():
        sim(IDS % 11)
    assert len(seen) == 2 * (2 + 2 + 2)


@pytest.mark.parametrize("name", FAMILIES)
def test_edits_patch_both_executors_alike(name: str) -> None:
    """Swapping the examples of a residual stream, before and after the update; what is before it stays."""
    sim = compiled(name, **TWO)
    swap = {"pass0.layers.1.residual": lambda x: x.flip(0), "pass2.modules.*h.2.ln_2": lambda x: 0.5 * x}
    swap = {key: f for key, f in swap.items() if "ln_2" not in key or name == "gpt2"}
    alone = run(sim, IDS, return_before=True)
    outs, streams = [], []
    for executor in ("fused", "literal"):
        with sim.edit(swap), sim.capture("pass0.layers.*.residual", "step1.gradients.*") as seen:
            outs.append(run(sim, IDS, executor, return_before=True))
        streams.append(dict(seen))
    for field in ("logits", "logits_before"):
        assert off(outs[0][field], outs[1][field]) < 1e-9 < off(outs[0][field], alone[field])
    assert all(off(streams[0][key], streams[1][key]) < 1e-9 for key in streams[1])
    plain = seen_by(sim, "fused", "pass0.layers.*.residual")
    first, second = ("pass0.layers.0.residual", "pass0.layers.1.residual")
    assert torch.equal(streams[0][first], plain[first]) and torch.equal(streams[0][second], plain[second].flip(0))
    assert torch.equal(run(sim, IDS, return_before=True).logits, alone.logits)


def test_an_edit_is_a_hook_on_the_auxiliary() -> None:
    """1e-6: transformers takes its softmax in fp32."""
    model: Any = family("llama").source.model
    sim = compiled("llama")
    ablated = lambda module, given, out: torch.zeros_like(out)  # noqa: E731
    handle = model.model.layers[1].mlp.register_forward_hook(ablated)
    try:
        with torch.no_grad():
            right = model(IDS).logits
    finally:
        handle.remove()
    with sim.edit({"pass0.modules.model.layers.1.mlp.down_proj": torch.zeros_like}):
        assert off(run(sim, IDS, return_before=True).logits_before, right) < 1e-6


def test_what_cannot_be_edited_is_refused() -> None:
    sim = compiled("gpt2", n_update_layers=1)
    run_of = {
        "pass0.layers.0.attention": "attention patterns",
        "pass0.modules.transformer.h.0.mlp.act": "activations",
        "step0.gradients.*": "gradients",
        "pass1.layers.0.residual": r"would change pass0.layers.0.residual too.*: 'layers.0.residual'",
    }
    for pattern, sentence in run_of.items():
        with pytest.raises(OptionError, match=sentence), sim.edit({pattern: torch.zeros_like}):
            pass
    value: Any = torch.zeros(1)
    with pytest.raises(OptionError, match="is a Tensor; pass a function"), sim.edit({"final": value}):
        pass
    with sim.edit({"layers.0.residual": torch.zeros_like}), sim.capture("final") as seen:
        run(sim, IDS)
        with pytest.raises(InputError, match="must run whole"):
            run(sim, IDS, max_batch=1)
    assert set(seen) == {"pass0.final", "pass1.final"}
    with (
        sim.edit({"pass1.final": lambda x: x[:, 1:]}),
        pytest.raises(InputError, match=r"pass1.final returned \[2, 10"),
    ):
        run(sim, IDS)
    assert not sim.edits and point_of(sim.program, "logits").value is sim.program.outputs["logits"]


def test_names_are_pinned(golden: Callable[[str, str], None]) -> None:
    """docs/modules.md names them; whoever captures builds on them."""
    sim = simulator(*gpt_like(layers=1), max_length=12, n_steps=1)
    golden("points_gpt", "".join(f"{p.name} {list(p.shape)}: {p.what}\n" for p in sim.capture_points()))


def test_points_are_of_whole_passes() -> None:
    """With a cache there are no whole values, which is said; a capture beside it does not get less in silence."""
    sim = compiled("gpt2")
    with sim.capture("final"), pytest.raises(OptionError, match="use_cache=False"):
        run(sim, IDS, use_cache=True)
    with pytest.raises(OptionError, match="whole passes"):
        run(sim, IDS, use_cache=True, output_attentions=True)
