"""`differentiate`: reverse mode on the graph, checked against the auxiliary interpreter."""

from __future__ import annotations

import pytest
import torch
from programs import Sketch, check_agreement, gpt_like, llama_like, simulator, three_ways

from tintc.errors import OptionError, UnsupportedModelError
from tintc.ir import auxiliary as aux
from tintc.ir import simulator as sim
from tintc.ir.auxiliary.interpreter import Descent, forward, simulate
from tintc.ir.core import Program
from tintc.ir.functions import FiniteDifference
from tintc.ir.inputs import resolve_inputs
from tintc.lowering.passes.differentiate import differentiate
from tintc.options import Options

IDS = torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(0))


def parallel() -> tuple[Program, dict[str, torch.Tensor]]:
    return llama_like(layers=1, parallel=True)


def inside(program: Program) -> list[sim.SimOp]:
    (repeat,) = [op for op in program.ops if isinstance(op, sim.Repeat)]
    return [op for op in repeat.body.ops if isinstance(op, sim.SimOp)]


def targets(program: Program) -> set[str]:
    return {op.target for op in inside(program) if isinstance(op, sim.LinearDescent | sim.NormDescent)}


def test_what_descends() -> None:
    """Section 10: value, output, feed-forward, norm biases of the top layers, the final norm's bias; nothing else."""
    program, _ = gpt_like(layers=2)
    layer = {f"h.1.{part}" for part in ("attn.v", "attn.o", "ffn.up", "ffn.down", "ln1", "ln2")}
    assert targets(differentiate(program, Options(n_update_layers=1))) == layer | {"lnf"}
    lower = {name.replace("h.1", "h.0") for name in layer}
    assert targets(differentiate(program, Options())) == layer | lower | {"lnf"}


GROUPS = {
    "values": {"attn.v"},
    "out": {"attn.o"},
    "ffn": {"ffn.up", "ffn.down"},
    "norm-bias": {"ln1", "ln2"},
    "norm-gain": {"ln1", "ln2"},
}


@pytest.mark.parametrize("descend", [*GROUPS, "values,norm-gain", "out,ffn,norm-bias,norm-gain"])
def test_groups(descend: str) -> None:
    """What each group holds, and the dead code that goes when nothing below descends."""
    program, _ = gpt_like(layers=2)
    found = differentiate(program, Options(n_update_layers=1, descend=descend))
    groups = descend.split(",")
    wanted = {f"h.1.{name}" for group in groups for name in GROUPS[group]}
    assert targets(found) == wanted | ({"lnf"} if "norm" in descend else set())
    ops = inside(found)
    below = {"h.1.attn.v", "h.1.ln1"}
    assert bool([op for op in ops if isinstance(op, sim.AttentionBackward)]) == bool(targets(found) & below)
    norms = [op for op in ops if isinstance(op, sim.NormDescent)]
    parts = tuple(part for part in ("gain", "bias") if f"norm-{part}" in groups)
    assert all(op.parts == parts for op in norms)
    stored = {op.name: op.result.type.parts for op in found.ops if isinstance(op, sim.StoredWeights)}
    vectors = {name for name, held in stored.items() if "vector" in held}
    assert vectors == ({"h.1.ln1", "h.1.ln2", "lnf"} if "gain" in parts else set())


def test_groups_that_are_unknown_or_empty() -> None:
    for text in ("heads", "values,", ""):
        with pytest.raises(OptionError, match="unknown; choose among values, out, ffn, norm-bias, norm-gain"):
            Options(descend=text)
    program, _ = parallel()
    with pytest.raises(OptionError, match="no parameters of norm-bias"):
        differentiate(program, Options(descend="norm-bias"))


def test_norms_without_bias_do_not_descend() -> None:
    program, _ = parallel()
    assert targets(differentiate(program, Options())) == {
        f"h.0.{part}" for part in ("attn.v", "attn.o", "ffn.up", "ffn.gate", "ffn.down")
    }


def test_no_gradient_goes_where_no_update_lies_below() -> None:
    """Nothing flows into the lowest updated layer's input, nor into queries and keys."""
    program, _ = gpt_like(layers=2)
    ops = inside(differentiate(program, Options(n_update_layers=1)))
    assert {op.layer for op in ops if op.phase == "backward"} <= {-1, 1}
    assert not [op for op in ops if isinstance(op, sim.LinearBackward) and op.role in ("query", "key")]
    assert not [op for op in ops if isinstance(op, sim.NormBackward) and op.origin == "h.1.ln1"]


def test_descent_and_backward_read_the_weights_from_before_the_update() -> None:
    program, _ = gpt_like(layers=2)
    ops = inside(differentiate(program, Options()))
    updated = {op.result for op in ops if isinstance(op, sim.LinearDescent | sim.NormDescent)}
    assert not [op for op in ops if updated.intersection(op.operands)]


def several_uses() -> tuple[Program, dict[str, torch.Tensor]]:
    """A value used three times, twice by one op; a layer applied twice."""
    make = Sketch(8, seed=4)
    x = make.embedding("wte", 11)
    make.layer = 0
    value = make.linear("v", make.norm("ln", x), 8, "value")
    doubled = make.sum("doubled", value, value)
    mixed = make.linear("mix", make.sum("thrice", doubled, value), 8, "ffn")
    again = make.linear("mix", mixed, 8, "ffn")
    again.name = "mix.again"
    out = make.sum("out", make.sum("skip", x, again), mixed)
    make.layer = -1
    return make.finish(make.norm("lnf", out, "final"), 11, 1)


def test_a_value_used_three_times_receives_the_sum() -> None:
    """fp64, 1e-9 of the update; the second of two layers that share weights adds to the first one's update."""
    program, tensors = several_uses()
    sums = [
        op for op in inside(differentiate(program, Options())) if isinstance(op, sim.Add) and op.phase == "backward"
    ]
    assert [op.origin for op in sums].count("v") == 2
    model = simulator(program, tensors, n_steps=2, inner_lr=0.01)
    check_agreement(three_ways(model, program, tensors, IDS, Descent(0.01, 2)))


@pytest.mark.parametrize("bias", ["", "other.bias"])
def test_a_layer_used_again_has_the_same_bias(bias: str) -> None:
    make = Sketch(8)
    x = make.embedding("wte", 11)
    make.layer = 0
    x = make.linear("mix", make.attention("attn", x, 2, 2), 8, "ffn")
    if bias:
        make.parameter(bias, 8)
    x = make.add(aux.Linear, "again", 8, x, weight="mix.weight", bias=bias, role="ffn")
    make.layer = -1
    program, _ = make.finish(x, 11, 1)
    with pytest.raises(UnsupportedModelError, match=r"aux.linear in again: mix is used elsewhere with another bias"):
        differentiate(program, Options())


def test_gradients_of_a_dag_are_those_of_autograd() -> None:
    """The interpreter of the auxiliary sums too: at step 1e-6 its gradients are autograd's, to 1e-4 (fp64)."""
    program, tensors = several_uses()
    inputs = resolve_inputs(IDS[:1], train_mask=torch.tensor([[1] * 6 + [0] * 3]))
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    z = forward(program, leaves, inputs)
    loss = (z.logsumexp(-1) - z.gather(-1, inputs.next_ids[..., None])[..., 0]) * inputs.loss_positions
    loss.sum().backward()
    _, _, updated = simulate(program, tensors, inputs, Descent(1.0, difference=FiniteDifference("token", 1e-6)))
    for name in ("v.weight", "mix.weight", "mix.bias", "ln.bias", "lnf.bias"):
        wanted, found = leaves[name].grad, (tensors[name] - updated[name])[0]
        assert wanted is not None and float((found - wanted).norm() / wanted.norm()) < 1e-4, name
