"""Auxiliary programs written by hand, with random fp64 tensors, and simulators made from them without a frontend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tintc import stages
from tintc.frontend.source.load import AuxiliarySource, load_auxiliary
from tintc.ir import auxiliary as aux
from tintc.ir.auxiliary.interpreter import Descent, simulate
from tintc.ir.auxiliary.interpreter import load as load_parameters
from tintc.ir.core import Parameter, Program, Type, Value, logits, tokens
from tintc.ir.inputs import resolve_inputs
from tintc.ir.routed import routed
from tintc.ir.simulator.interface.interpreter import interpret
from tintc.ir.text import print_program
from tintc.lowering.emission.emit import emit
from tintc.options import Options
from tintc.runtime.artefact.config import TintConfig
from tintc.runtime.model.causal_lm import TintForCausalLM


@dataclass
class Sketch:
    """Builds an auxiliary program op by op; `layer` marks what is built until it changes. Same seed, same tensors."""

    width: int
    seed: int = 0
    bias: bool = True
    norm_kind: str = "layer"
    layer: int = -1
    parameters: dict[str, Parameter] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    ops: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def parameter(self, name: str, *shape: int, scale: float = 0.4) -> str:
        self.parameters[name] = Parameter(name, shape)
        self.tensors[name] = torch.randn(*shape, dtype=torch.float64, generator=self.generator) * scale
        return name

    def add(self, cls: type[aux.AuxOp], name: str, width: int, *operands: Value, **attributes: Any) -> Value:
        result = Value(name, tokens(width))
        self.ops.append(cls(operands=operands, results=(result,), layer=self.layer, **attributes))
        return result

    def embedding(self, name: str, vocab: int) -> Value:
        return self.add(
            aux.Embedding, name, self.width, table=self.parameter(f"{name}.weight", vocab, self.width, scale=1.0)
        )

    def positions(self, name: str, rows: int) -> Value:
        table = self.parameter(f"{name}.weight", rows, self.width)
        return self.add(aux.PositionEmbedding, name, self.width, table=table, offset=2)

    def linear(self, name: str, x: Value, dout: int, role: str) -> Value:
        weight = self.parameter(f"{name}.weight", dout, x.type.width)
        bias = self.parameter(f"{name}.bias", dout) if self.bias else ""
        return self.add(aux.Linear, name, dout, x, weight=weight, bias=bias, role=role)

    def norm(self, name: str, x: Value, role: str = "layer") -> Value:
        weight = self.parameter(f"{name}.weight", self.width, scale=1.0)
        bias = self.parameter(f"{name}.bias", self.width) if self.bias else ""
        attributes = {"kind": self.norm_kind, "eps": 1e-5, "weight": weight, "bias": bias, "role": role}
        return self.add(aux.Norm, name, self.width, x, **attributes)

    def attention(self, name: str, x: Value, heads: int, kv_heads: int, rotary: str = "") -> Value:
        d = self.width // heads
        q = self.linear(f"{name}.q", x, heads * d, "query")
        k = self.linear(f"{name}.k", x, kv_heads * d, "key")
        v = self.linear(f"{name}.v", x, kv_heads * d, "value")
        turn = {"inv_freq": rotary, "rotary_style": "half"} if rotary else {}
        shape = {"n_heads": heads, "n_kv_heads": kv_heads, "head_dim": d, "scale": d**-0.5}
        y = self.add(aux.Attention, f"{name}.mix", heads * d, q, k, v, **shape, **turn)
        return self.linear(f"{name}.o", y, self.width, "output")

    def feed_forward(self, name: str, x: Value, width: int, gated: bool) -> Value:
        up = self.linear(f"{name}.up", x, width, "ffn")
        if gated:
            act = self.add(aux.Gate, f"{name}.act", width, up, self.linear(f"{name}.gate", x, width, "ffn"), fn="silu")
        else:
            act = self.add(aux.Activation, f"{name}.act", width, up, fn="gelu_tanh")
        return self.linear(f"{name}.down", act, self.width, "ffn")

    def routed(self, cls: type[aux.AuxOp], name: str, kind: Type, *operands: Value, **attributes: Any) -> Value:
        result = Value(name, kind)
        self.ops.append(cls(operands=operands, results=(result,), layer=self.layer, **attributes))
        return result

    def experts(self, name: str, r: Value, x: Value, dout: int) -> Value:
        count, chosen, din = x.type.dims
        weight = self.stacked(f"{name}.weight", count, dout, din)
        bias = ""
        if self.bias:
            bias = self.stacked(f"{name}.bias", count, dout)
        kind = routed(count, chosen, dout)
        return self.routed(aux.Experts, name, kind, r, x, weight=weight, bias=bias, role="ffn")

    def stacked(self, name: str, *shape: int) -> str:
        self.parameter(name, *shape)
        self.parameters[name] = replace(self.parameters[name], stacked=True)
        return name

    def mixture(
        self, name: str, x: Value, width: int, experts: int, scaled_input: bool = False, **router: Any
    ) -> Value:
        """Experts of `width`, gated by SiLU; scaled_input: their input is weighed and not their output."""
        weight = self.parameter(f"{name}.router.weight", experts, x.type.width)
        z = self.add(aux.Linear, f"{name}.logits", experts, x, weight=weight, role="router")
        vectors = {key: self.parameter(f"{name}.{key}", experts) for key in ("bias", "gains") if router.pop(key, False)}
        r = self.add(aux.Route, f"{name}.r", experts, z, **router, **vectors)
        kind = routed(experts, router["chosen"], self.width)
        spread = self.routed(aux.Spread, f"{name}.spread", kind, r, x, weighted=scaled_input)
        up = self.experts(f"{name}.up", r, spread, width)
        gate = self.experts(f"{name}.gate", r, spread, width)
        act = self.routed(aux.Gate, f"{name}.act", up.type, up, gate, fn="silu")
        down = self.experts(f"{name}.down", r, act, self.width)
        return self.add(aux.Combine, name, self.width, r, down, weighted=not scaled_input)

    def recurrence(
        self, name: str, x: Value, heads: int, key_heads: int, convolved: bool = True, **options: Any
    ) -> Value:
        """A recurrence whose queries, keys and values go through one convolution, with its gates and its output."""
        d = self.width // heads
        keys = key_heads * 3
        writes = options.get("writes", 1)
        mixed = self.linear(f"{name}.v", x, heads * d * writes, "value")
        queries = self.linear(f"{name}.qk", x, keys * (1 + writes), "key")
        if convolved:
            mixed, queries = (self.convolved(value) for value in (mixed, queries))
        runs = ((0, keys), (keys, keys * (1 + writes)))
        q, k = (self.add(aux.Select, f"{name}.{i}", b - a, queries, columns=((a, b),)) for i, (a, b) in enumerate(runs))
        decays = heads * 3 if options.get("by_coordinate") else heads
        raw = self.linear(f"{name}.a", x, decays, "gate")
        shift = self.parameter(f"{name}.dt_bias", decays)
        gain = self.parameter(f"{name}.decay", decays)
        self.tensors[gain] = -self.tensors[gain].abs()
        g = self.add(aux.Pointwise, f"{name}.g", decays, raw, fn="softplus", shift=shift, gain=gain)
        strength = self.linear(f"{name}.b", x, heads * writes, "gate")
        beta = self.add(aux.Pointwise, f"{name}.beta", heads * writes, strength, fn="sigmoid")
        shape = {"n_heads": heads, "n_key_heads": key_heads, "key_dim": 3, "value_dim": d}
        if options.pop("skip", False):
            options["skip"] = self.parameter(f"{name}.D", heads)
        y = self.add(aux.Recurrence, f"{name}.mix", heads * d, q, k, mixed, g, beta, **shape, **options)
        return self.linear(f"{name}.o", y, self.width, "output")

    def convolved(self, x: Value) -> Value:
        weight = self.parameter(f"{x.name}.conv", x.type.width, 4)
        bias = self.parameter(f"{x.name}.conv_bias", x.type.width) if self.bias else ""
        y = self.add(aux.Convolution, f"{x.name}.conv", x.type.width, x, weight=weight, bias=bias)
        return self.add(aux.Activation, f"{x.name}.act", x.type.width, y, fn="silu")

    def sum(self, name: str, a: Value, b: Value) -> Value:
        return self.add(aux.Add, name, self.width, a, b)

    def finish(
        self, x: Value, vocab: int, n_layers: int, head: str = "wte.weight"
    ) -> tuple[Program, dict[str, Tensor]]:
        z = Value("logits", logits(vocab))
        self.ops.append(aux.Logits(operands=(x,), results=(z,), weight=head))
        attributes = {"width": self.width, "vocab_size": vocab, "n_layers": n_layers}
        return Program("aux", attributes, self.parameters, self.ops, {"logits": z}).verify(), self.tensors


def gpt_like(
    width: int = 12, heads: int = 3, layers: int = 2, vocab: int = 11, d_ff: int = 20, seed: int = 0
) -> tuple[Program, dict[str, Tensor]]:
    """Learned positions, LayerNorm with gain and bias, biases, GELU, tied head."""
    make = Sketch(width, seed)
    x = make.sum("embed", make.embedding("wte", vocab), make.positions("wpe", 40))
    for make.layer in range(layers):
        stem = f"h.{make.layer}"
        mid = make.sum(f"{stem}.mid", x, make.attention(f"{stem}.attn", make.norm(f"{stem}.ln1", x), heads, heads))
        x = make.sum(f"{stem}.out", mid, make.feed_forward(f"{stem}.ffn", make.norm(f"{stem}.ln2", mid), d_ff, False))
    make.layer = -1
    return make.finish(make.norm("lnf", x, "final"), vocab, layers)


def llama_like(
    width: int = 12,
    heads: int = 3,
    layers: int = 2,
    vocab: int = 11,
    d_ff: int = 20,
    seed: int = 0,
    parallel: bool = False,
) -> tuple[Program, dict[str, Tensor]]:
    """RMSNorm, rotary, one key/value head, no biases, gated SiLU; parallel: both branches read one norm and add up."""
    make = Sketch(width, seed, bias=False, norm_kind="rms")
    rotary = make.parameter("inv_freq", width // heads // 2, scale=1.0)
    x = make.embedding("wte", vocab)
    for make.layer in range(layers):
        stem = f"h.{make.layer}"
        normed = make.norm(f"{stem}.ln1", x)
        mixed = make.attention(f"{stem}.attn", normed, heads, 1, rotary)
        mid = make.sum(f"{stem}.mid", x, mixed)
        source = normed if parallel else make.norm(f"{stem}.ln2", mid)
        x = make.sum(f"{stem}.out", mid, make.feed_forward(f"{stem}.ffn", source, d_ff, True))
    make.layer = -1
    return make.finish(make.norm("lnf", x, "final"), vocab, layers)


def mixture_like(
    width: int = 12,
    heads: int = 3,
    layers: int = 2,
    vocab: int = 11,
    d_ff: int = 7,
    experts: int = 5,
    biases: bool = False,
    seed: int = 0,
    **router: Any,
) -> tuple[Program, dict[str, Tensor]]:
    """`llama_like` with a mixture of experts in place of every feed-forward part; router: options of `aux.route`."""
    make = Sketch(width, seed, bias=biases, norm_kind="rms")
    rotary = make.parameter("inv_freq", width // heads // 2, scale=1.0)
    x = make.embedding("wte", vocab)
    for make.layer in range(layers):
        stem = f"h.{make.layer}"
        mid = make.sum(f"{stem}.mid", x, make.attention(f"{stem}.attn", make.norm(f"{stem}.ln1", x), heads, 1, rotary))
        mixed = make.mixture(f"{stem}.experts", make.norm(f"{stem}.ln2", mid), d_ff, experts, **router)
        x = make.sum(f"{stem}.out", mid, mixed)
    make.layer = -1
    return make.finish(make.norm("lnf", x, "final"), vocab, layers)


def hybrid_like(
    width: int = 12, heads: int = 4, vocab: int = 11, d_ff: int = 20, bias: bool = False, seed: int = 0, **options: Any
) -> tuple[Program, dict[str, Tensor]]:
    """Two layers, one of a recurrence and one of attention; options: of `aux.recurrence`."""
    make = Sketch(width, seed, bias=bias, norm_kind="rms")
    x = make.embedding("wte", vocab)
    for make.layer in range(2):
        stem = f"h.{make.layer}"
        normed = make.norm(f"{stem}.ln1", x)
        if make.layer:
            mixed = make.attention(f"{stem}.attn", normed, heads, 1)
        else:
            mixed = make.recurrence(f"{stem}.mixer", normed, heads, **options)
        mid = make.sum(f"{stem}.mid", x, mixed)
        x = make.sum(f"{stem}.out", mid, make.feed_forward(f"{stem}.ffn", make.norm(f"{stem}.ln2", mid), d_ff, True))
    make.layer = -1
    return make.finish(make.norm("lnf", x, "final"), vocab, 2)


def build(
    program: Program, tensors: Mapping[str, Tensor], lr: float = 0.0, dtype: torch.dtype = torch.float64
) -> TintForCausalLM:
    """The model of an unrolled, planned simulator program."""
    attributes = program.attributes
    config = TintConfig(
        vocab_size=attributes["vocab_size"], semantics=attributes["semantics"], program=print_program(program)
    )
    with torch.device("meta"):
        sim = TintForCausalLM(config)
    sim.load_state_dict(dict(emit(program, tensors, lr, dtype)), strict=True, assign=True)
    sim.zero_absent_terms()
    sim.executor = "literal"
    return sim.eval()


def simulator(program: Program, tensors: Mapping[str, Tensor], max_length: int = 24, **options: Any) -> TintForCausalLM:
    """The simulator of an auxiliary program."""
    chosen = Options(**options)
    return build(stages.lower(program, chosen, max_length), tensors, chosen.inner_lr)


@dataclass(frozen=True)
class Imported:
    """A Hugging Face model after the frontend: many simulators can be lowered from one capture."""

    source: AuxiliarySource
    auxiliary: stages.Auxiliary

    @property
    def tensors(self) -> dict[str, Tensor]:
        return load_parameters(self.auxiliary.program, self.auxiliary.tensors)

    def compile(self, max_length: int = 32, dtype: torch.dtype = torch.float64, **options: Any) -> TintForCausalLM:
        chosen = Options(**options)
        auxiliary = self.auxiliary
        if chosen.gradient == "full":
            auxiliary = stages.import_auxiliary(self.source, chosen)
        program = stages.lower(auxiliary.program, chosen, max_length)
        sim = stages.assemble(program, auxiliary, self.source, chosen, dtype)
        sim.executor = "literal"
        return sim


def import_model(model: Any) -> Imported:
    source = load_auxiliary(model)
    return Imported(source, stages.import_auxiliary(source))


@cache
def imported(path: str) -> Imported:
    """A local folder, captured once in a test run."""
    return import_model(path)


def relative_to_update(found: Tensor, right: Tensor, before: Tensor) -> float:
    """How far `found` is from `right`, as a part of the update from `before`."""
    return float((found - right).norm() / (right - before).norm())


def three_ways(
    sim: TintForCausalLM,
    program: Program,
    tensors: Mapping[str, Tensor],
    ids: Tensor,
    descent: Descent,
    inner_lr: Tensor | None = None,
    **masks: Any,
) -> dict[str, tuple[Tensor, Tensor]]:
    """(logits before, after) of the auxiliary interpreter, the simulator interpreter and literal execution."""
    inputs = resolve_inputs(ids, semantics=descent.semantics, **masks)
    before, after, _ = simulate(program, tensors, inputs, descent)
    found = interpret(sim.program, sim.state_dict(), inputs, ("logits_before", "logits"), inner_lr)
    with torch.no_grad():
        out = sim(ids, return_before=True, inner_lr=inner_lr, **masks)
    return {
        "auxiliary": (before, after),
        "interpreter": (found["logits_before"], found["logits"]),
        "literal": (out.logits_before, out.logits),
    }


def check_agreement(ways: Mapping[str, tuple[Tensor, Tensor]], tolerance: float = 1e-9) -> None:
    """All agree with the auxiliary interpreter, to `tolerance` of the size of the update."""
    before, after = ways["auxiliary"]
    assert float((after - before).norm()) > 0
    for name, (found_before, found_after) in ways.items():
        assert relative_to_update(found_after, after, before) < tolerance, name
        assert float((found_before - before).norm() / (after - before).norm()) < tolerance, name
