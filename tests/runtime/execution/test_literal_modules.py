"""Each module of the simulator, run literally, is its interpreter op; pads stay zero.

One op at a time on random values: widths, S, S' and tiles that do not divide, with and without bias, batches. fp64,
1e-9 relative to the largest entry.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from programs import build
from torch import Tensor

from tintc.errors import OptionError
from tintc.ir import simulator as sim
from tintc.ir.core import Op, Parameter, Program, Type, Value, tokens
from tintc.ir.inputs import resolve_inputs
from tintc.ir.layout import Layout
from tintc.ir.simulator.interface.base import SimOp
from tintc.ir.simulator.interface.literal_base import PrefixTiles
from tintc.ir.simulator.interface.semantics import Interpretation, Weights
from tintc.lowering.passes.allocate_slots import allocate_slots
from tintc.lowering.passes.plan_layout import plan_layout
from tintc.option_facts import LOSSES
from tintc.options import Options
from tintc.runtime.execution.literal.executor import LiteralExecutor

LENGTH, VOCAB = 6, 9
FEW = settings(max_examples=15, deadline=None, derandomize=True)
WIDTHS, STACKS = st.integers(1, 23), st.none() | st.integers(1, 4)
OUTER = st.integers(1, 50)
SCHEMES = st.sampled_from(["token", "fixed"])
SEEDS = st.integers(0, 999)


class Bench:
    """A simulator of one op, its token operands (random ``[B, T, width]``) and its weights (random)."""

    def __init__(self, width: int, seed: int, semantics: str = "exact"):
        self.ops: list[Op] = []
        self.parameters: dict[str, Parameter] = {}
        self.attributes = {"width": width, "vocab_size": VOCAB, "n_layers": 1, "n_steps": 1, "semantics": semantics}
        self.generator = torch.Generator().manual_seed(seed)
        self.tensors: dict[str, Tensor] = {}

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=self.generator)

    def parameter(self, name: str, *shape: int) -> str:
        self.parameters[name], self.tensors[name] = Parameter(name, shape), self.randn(*shape)
        return name

    def value(self, name: str, width: int) -> Value:
        op = sim.Embedding(results=(Value(name, tokens(width)),), table=self.parameter(name, 1, width))
        self.ops.append(op)
        return op.result

    def weights(self, kind: Type) -> Value:
        if kind.kind == "linear":
            self.parameter("w.weight", *kind.dims)
        for part in kind.parts:
            part = "bias" if part.startswith("bias") else "gain" if part == "vector" else part
            self.parameter(f"w.{part}", kind.dims[0])
        op = sim.StoredWeights(results=(Value("w", kind),), name="w")
        self.ops.append(op)
        return op.result

    def check(self, op: SimOp, stack: int | None, shards: int | None) -> None:
        """Plan, build, run both ways, compare."""
        program = Program("sim", self.attributes, self.parameters, [*self.ops, op], {"y": op.results[-1]})
        try:
            program = plan_layout(program, Options(stack=stack, shards=shards), LENGTH + 1)
        except OptionError:
            assume(False)
        model = build(allocate_slots(program), self.tensors, lr=0.3)
        planned = model.program.ops[-1]
        assert isinstance(planned, SimOp)
        ids = torch.randint(0, VOCAB, (2, LENGTH), generator=self.generator)
        mask = torch.tensor([[1] * 4 + [0] * 2, [1] * 3 + [0] * 3])
        inputs = resolve_inputs(
            ids, train_mask=mask, position_ids=torch.tensor([[0, 1, 2, 3, 4, 5], [7, 9, 2, 3, 3, 1]])
        )
        run, machine = Interpretation(model.state_dict(), inputs), LiteralExecutor(model, inputs, None)
        machine.site = model.site(planned)
        plain, literal = [], []
        for operand in planned.operands:
            if operand.type.kind == "tokens":
                plain.append(self.randn(2, LENGTH, operand.type.width))
                literal.append(cut(plain[-1], model.layout))
            else:
                stored = next(o for o in model.program.ops if o.results == (operand,))
                assert isinstance(stored, sim.StoredWeights)
                plain.append(stored.interpret(run))
                literal.append(stored.literal(machine))
        with torch.no_grad():
            wanted, found = planned.interpret(run, *plain), planned.literal(machine, *literal)
        several = len(planned.results) > 1
        for result, right, made in zip(
            planned.results, wanted if several else (wanted,), found if several else (found,), strict=True
        ):
            compare(model.layout, result.type, right, made)


def cut(value: Tensor, layout: Layout) -> list[Tensor]:
    """``[B, T, width]`` as slots."""
    count = layout.tiles(value.shape[-1])
    padded = torch.nn.functional.pad(value, (0, count * layout.pitch - value.shape[-1]))
    return list(padded.split(layout.pitch, -1))


def compare(layout: Layout, kind: Type, right: Any, made: Any) -> None:
    if kind.kind == "tokens":
        found = torch.cat(made, -1)
        close(found[..., : kind.width], right)
        assert float(found[..., kind.width :].abs().sum()) == 0, "pads must stay zero"
        return
    assert isinstance(right, Weights) and isinstance(made, PrefixTiles)
    weight, bias = read_prefixes(layout, kind, made)
    if right.weight is not None:
        full = right.weight
        if "vector" in kind.parts:
            full = torch.nn.functional.pad(full[..., None, :], (0, 0, 0, weight.shape[1] - 1))
        elif kind.kind == "norm":
            full = torch.diag_embed(full)
        close(weight, full.expand(weight.shape))
    if right.bias is not None:
        close(bias, right.bias.expand(bias.shape))


def read_prefixes(layout: Layout, kind: Type, made: PrefixTiles) -> tuple[Tensor, Tensor]:
    """Section 3's layout read back: ``weight [B, dout, din]``, ``bias [B, dout]`` added over the column tiles."""
    dout, din = kind.dims[0], kind.dims[-1]
    weight = torch.zeros(2, len(made.rows) * layout.pitch, len(made.rows[0]) * layout.pitch, dtype=torch.float64)
    bias = torch.zeros(2, len(made.rows) * layout.pitch, dtype=torch.float64)
    for r, row in enumerate(made.rows):
        for c, tile in enumerate(row):
            assert isinstance(tile, Tensor) and tile.shape == (2, layout.n_prefixes, layout.d_sim)
            for k in range(layout.n_prefixes):
                for s in range(layout.stack):
                    at, to = r * layout.pitch + k * layout.stack + s, c * layout.pitch
                    weight[:, at, to : to + layout.pitch] = tile[:, k, s * layout.pitch : (s + 1) * layout.pitch]
            start = layout.stack * layout.pitch
            if any(part.startswith("bias") for part in kind.parts):
                bias[:, r * layout.pitch : (r + 1) * layout.pitch] += tile[:, 0, start : start + layout.pitch]
            assert float(tile[:, 1:, start:].abs().sum()) == 0, "the bias stands in prefix 0 only"
    assert float(weight[:, dout:].abs().sum()) == float(weight[:, :, din:].abs().sum()) == 0, "pads must stay zero"
    return weight[:, :dout, :din], bias[:, :dout]


def close(found: Tensor, right: Tensor) -> None:
    size = float(right.abs().max()) if right.numel() else 0.0
    torch.testing.assert_close(found, right, rtol=0, atol=1e-9 * max(size, 1e-6))


BIASES = st.sampled_from(["", "bias"])


def linear(dout: int, din: int, bias: str) -> Type:
    return Type("linear", (dout, din), (bias,) if bias else ())


@FEW
@given(WIDTHS, OUTER, OUTER, BIASES, STACKS, STACKS, SEEDS)
def test_linear_forward(
    width: int, dout: int, din: int, bias: str, stack: int | None, shards: int | None, seed: int
) -> None:
    bench = Bench(width, seed)
    operands = (bench.weights(linear(dout, din, bias)), bench.value("x", din))
    bench.check(sim.LinearForward(operands=operands, results=(Value("y", tokens(dout)),)), stack, shards)


@FEW
@given(WIDTHS, OUTER, OUTER, BIASES, STACKS, STACKS, SEEDS)
def test_linear_backward(
    width: int, dout: int, din: int, bias: str, stack: int | None, shards: int | None, seed: int
) -> None:
    bench = Bench(width, seed)
    operands = (bench.weights(linear(dout, din, bias)), bench.value("dy", dout))
    bench.check(sim.LinearBackward(operands=operands, results=(Value("dx", tokens(din)),)), stack, shards)


@FEW
@given(WIDTHS, OUTER, OUTER, BIASES, st.floats(0.5, 2), STACKS, STACKS, SEEDS)
def test_linear_descent(
    width: int, dout: int, din: int, bias: str, scale: float, stack: int | None, shards: int | None, seed: int
) -> None:
    bench = Bench(width, seed)
    kind = linear(dout, din, bias)
    operands = (bench.weights(kind), bench.value("dy", dout), bench.value("x", din))
    op = sim.LinearDescent(operands=operands, results=(Value("u", kind),), target="w", rate_scale=scale)
    bench.check(op, stack, shards)


@pytest.mark.parametrize("cls", [sim.LinearForward, sim.LinearBackward, sim.LinearDescent])
def test_authors_layout_with_a_bias_in_every_column_tile(cls: type[SimOp]) -> None:
    """``paper-code``: bias/m in each of m tiles; each gets the full step, so the bias moves m times as far."""
    bench, kind = Bench(8, 3, "paper-code"), linear(8, 24, "bias3")
    weights, x, dy = bench.weights(kind), bench.value("x", 24), bench.value("dy", 8)
    if cls is sim.LinearDescent:
        op: SimOp = sim.LinearDescent(operands=(weights, dy, x), results=(Value("u", kind),), target="w")
    elif cls is sim.LinearForward:
        op = sim.LinearForward(operands=(weights, x), results=(Value("y", tokens(8)),))
    else:
        op = sim.LinearBackward(operands=(weights, dy), results=(Value("dx", tokens(24)),))
    bench.check(op, None, None)


NORMS = st.sampled_from(["layer", "rms"])
PARTS = st.sampled_from([(), ("gain",), ("bias",), ("gain", "bias"), ("vector",), ("vector", "bias")])
EPS = st.sampled_from([1e-12, 1e-5, 0.1])


@FEW
@given(WIDTHS, NORMS, EPS, PARTS, STACKS, STACKS, SEEDS)
def test_norm_forward(
    width: int, kind: str, eps: float, parts: tuple[str, ...], stack: int | None, shards: int | None, seed: int
) -> None:
    bench = Bench(width, seed)
    weights = (bench.weights(Type("norm", (width,), parts)),) if parts else ()
    operands = (*weights, bench.value("x", width))
    bench.check(
        sim.NormForward(operands=operands, results=(Value("y", tokens(width)),), kind=kind, eps=eps), stack, shards
    )


@FEW
@given(st.integers(2, 23), NORMS, st.sampled_from([1e-5, 0.1]), PARTS, SCHEMES, STACKS, STACKS, SEEDS)
def test_norm_backward(
    width: int,
    kind: str,
    eps: float,
    parts: tuple[str, ...],
    scheme: str,
    stack: int | None,
    shards: int | None,
    seed: int,
) -> None:
    bench = Bench(width, seed)
    weights = (bench.weights(Type("norm", (width,), parts)),) if parts else ()
    operands = (*weights, bench.value("dy", width), bench.value("x", width))
    step = {"kind": kind, "eps": eps, "scheme": scheme, "fd_step": 1e-2}
    bench.check(sim.NormBackward(operands=operands, results=(Value("dx", tokens(width)),), **step), stack, shards)


@FEW
@given(WIDTHS, st.sampled_from([("bias",), ("gain", "bias")]), STACKS, STACKS, SEEDS)
def test_norm_descent(width: int, parts: tuple[str, ...], stack: int | None, shards: int | None, seed: int) -> None:
    bench, kind = Bench(width, seed), Type("norm", (width,), parts)
    operands = (bench.weights(kind), bench.value("dy", width))
    bench.check(sim.NormDescent(operands=operands, results=(Value("u", kind),), target="w"), stack, shards)


@FEW
@given(WIDTHS, st.sampled_from([("vector",), ("vector", "bias")]), st.booleans(), STACKS, STACKS, SEEDS)
def test_gain_descent(
    width: int, held: tuple[str, ...], both: bool, stack: int | None, shards: int | None, seed: int
) -> None:
    bench, kind = Bench(width, seed), Type("norm", (width,), held)
    parts = ("gain", "bias") if both and "bias" in held else ("gain",)
    operands = (bench.weights(kind), bench.value("dy", width), bench.value("f", width))
    op = sim.NormDescent(operands=operands, results=(Value("u", kind),), target="w", parts=parts)
    bench.check(op, stack, shards)


HEADS = st.sampled_from([(1, 1, 4), (3, 1, 4), (4, 2, 3), (3, 3, 5), (6, 2, 1), (2, 2, 6)])
TURNS = st.sampled_from(["", "half", "interleaved"])


@FEW
@given(HEADS, TURNS, st.floats(0.3, 1.2), st.booleans(), STACKS, st.sampled_from([0, 3, 16]), SEEDS)
def test_attention(
    heads: tuple[int, int, int], turn: str, scale: float, backward: bool, stack: int | None, extra: int, seed: int
) -> None:
    """The residual stream may be narrower or wider than the heads together: their values are cut into tiles."""
    n_heads, n_kv, d = heads
    assume(not turn or d >= 2)
    bench = Bench(max(d, n_heads * d - 5) + extra, seed)
    shape: dict[str, Any] = {"n_heads": n_heads, "n_kv_heads": n_kv, "head_dim": d, "scale": scale}
    if turn:
        shape |= {"inv_freq": bench.parameter("inv", d // 2), "rotary_style": turn}
    q, k = bench.value("q", n_heads * d), bench.value("k", n_kv * d)
    if backward:
        operands, result = (bench.value("dy", n_heads * d), q, k), Value("dv", tokens(n_kv * d))
        bench.check(sim.AttentionBackward(operands=operands, results=(result,), **shape), stack, stack)
    else:
        operands, result = (q, k, bench.value("v", n_kv * d)), Value("y", tokens(n_heads * d))
        bench.check(sim.AttentionForward(operands=operands, results=(result,), **shape), stack, stack)


FUNCTIONS = st.sampled_from(["relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "tanh", "relu2"])


@FEW
@given(WIDTHS, OUTER, FUNCTIONS, SCHEMES, st.booleans(), STACKS, SEEDS)
def test_activation(width: int, size: int, fn: str, scheme: str, backward: bool, stack: int | None, seed: int) -> None:
    bench, y = Bench(width, seed), Value("y", tokens(size))
    if backward:
        operands = (bench.value("dy", size), bench.value("x", size))
        bench.check(
            sim.ActivationBackward(operands=operands, results=(y,), fn=fn, scheme=scheme, fd_step=1e-2), stack, stack
        )
    else:
        bench.check(sim.ActivationForward(operands=(bench.value("x", size),), results=(y,), fn=fn), stack, stack)


@FEW
@given(WIDTHS, OUTER, FUNCTIONS, SCHEMES, st.booleans(), STACKS, SEEDS)
def test_gate(width: int, size: int, fn: str, scheme: str, backward: bool, stack: int | None, seed: int) -> None:
    bench, g, u = Bench(width, seed), *(Value(name, tokens(size)) for name in ("dg", "du"))
    operands = (bench.value("g", size), bench.value("u", size))
    if backward:
        step = {"fn": fn, "scheme": scheme, "fd_step": 1e-2}
        bench.check(
            sim.GateBackward(operands=(bench.value("dy", size), *operands), results=(g, u), **step), stack, stack
        )
    else:
        bench.check(sim.GateForward(operands=operands, results=(g,), fn=fn), stack, stack)


@FEW
@given(WIDTHS, st.sampled_from(LOSSES), st.booleans(), st.sampled_from([0.0, 0.9]), STACKS, SEEDS)
def test_loss_gradient(width: int, loss: str, bias: bool, softcap: float, stack: int | None, seed: int) -> None:
    bench = Bench(width, seed)
    head: dict[str, Any] = {"head": bench.parameter("head", VOCAB, width), "scale": 0.7, "softcap": softcap}
    head["bias"] = bench.parameter("b", VOCAB) if bias else ""
    x = bench.value("x", width)
    logits = sim.Logits(operands=(x,), results=(Value("z", Type("logits", (VOCAB,))),), **head)
    bench.ops.append(logits)
    bench.check(sim.LossGradient(operands=(x,), results=(Value("dx", tokens(width)),), loss=loss, **head), stack, stack)


def test_a_zero_gradient_gives_zero() -> None:
    """Rescaling by rms(g) must not divide by zero, in any of the three ops that rescale."""
    bench = Bench(6, 0)
    bench.randn = lambda *shape: torch.zeros(*shape, dtype=torch.float64)
    operands, y = (bench.value("dy", 6), bench.value("x", 6)), Value("y", tokens(6))
    step = {"scheme": "token", "fd_step": 1e-3}
    bench.check(sim.NormBackward(operands=operands, results=(y,), kind="layer", eps=1e-5, **step), None, None)
    bench.check(sim.ActivationBackward(operands=operands, results=(replace_name(y),), fn="gelu", **step), None, None)


def replace_name(value: Value) -> Value:
    return Value(f"{value.name}.again", value.type)
