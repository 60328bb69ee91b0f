"""Auxiliary program -> simulator program: forward, and one descent step as a `sim.repeat`.

    forward with the stored weights                    -> logits_before
    repeat N { forward; loss gradient; backward and descent }
    forward with the updated weights                   -> logits

Reverse mode on the DAG: values are visited from the logits down, a value used twice receives the sum of its users'
gradients, and only values that some updated weight lies below receive any. Backward and descent read the weights from
before the update, which SSA form gives for free. Forward ops that no update touches are written in each copy;
`eliminate_common` merges them after unrolling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tintc.ir import auxiliary as aux
from tintc.ir import simulator as sim
from tintc.ir.auxiliary.interpreter import descends
from tintc.ir.core import Block, Op, Parameter, Program, Value
from tintc.lowering.builder import Builder, Names
from tintc.lowering.options import Options
from tintc.lowering.weights import Layer, layer_of

Values = dict[Value, Value]
WeightValues = dict[str, Value]


def differentiate(program: Program, options: Options) -> Program:
    """The simulator program of an auxiliary program whose roles are assigned."""
    program.verify()
    return _Differentiation(program, options).run().verify()


class _Differentiation:
    def __init__(self, program: Program, options: Options):
        self.program, self.options, self.names = program, options, Names()
        self.n_layers = program.attributes["n_layers"]
        self.update_layers = options.update_layers(self.n_layers)
        self.layers: dict[aux.AuxOp, Layer] = {}
        for op in self.aux_ops():
            layer = layer_of(program, op, self.bias_copies(op))
            if layer is not None:
                self.layers[op] = layer

    def aux_ops(self) -> list[aux.AuxOp]:
        return [op for op in self.program.ops if isinstance(op, aux.AuxOp)]

    def bias_copies(self, op: Op) -> int:
        """The authors' code cuts a layer that is m widths wide into m tiles, each with its own bias (section 10)."""
        if self.options.semantics == "exact" or not isinstance(op, aux.Linear):
            return 1
        return -(-op.operands[0].type.width // self.program.attributes["width"])

    def updates(self, op: aux.AuxOp) -> bool:
        trainable = not isinstance(op, aux.Norm) or bool(op.bias)
        return trainable and descends(op, self.n_layers, self.update_layers)

    def run(self) -> Program:
        start = Builder(self.names, "forward", "w")
        stored: WeightValues = {}
        for op, layer in self.layers.items():
            if layer.name not in stored:
                made = start.emit(sim.StoredWeights, (), (layer.type,), origin=layer.name, name=layer.name)
                stored[layer.name] = made.result
                made.layer, made.role = op.layer, op.role
        carried = list(dict.fromkeys(layer.name for op, layer in self.layers.items() if self.updates(op)))
        before = Builder(self.names, "forward", "before")
        logits_before = self.forward(before, stored)
        repeat, final = self.repeat(stored, carried)
        after = Builder(self.names, "forward", "after")
        logits = self.forward(after, stored | final)
        attributes = {
            "width": self.program.attributes["width"],
            "vocab_size": self.program.attributes["vocab_size"],
            "n_layers": self.n_layers,
            "n_update_layers": self.update_layers,
            "n_steps": self.options.n_steps,
            "semantics": self.options.semantics,
        }
        ops = [*start.ops, *before.ops, *([repeat] if carried else []), *after.ops]
        outputs = {"logits_before": logits_before, "logits": logits}
        return Program("sim", attributes, self.parameters(), ops, outputs)

    def parameters(self) -> dict[str, Parameter]:
        """Where the simulator's tensors come from: tables by their own names, weights as ``<layer>.<part>``."""
        layered = {f"{layer.name}.{part}": name for layer in self.layers.values() for part, name in layer.parts.items()}
        weights = set(layered.values())
        others = [name for op in self.aux_ops() for name in op.parameters().values() if name not in weights]
        heads = [name for op in self.aux_ops() if isinstance(op, aux.Logits) for name in op.parameters().values()]
        named = {name: name for name in (*others, *heads)} | layered
        return {name: self.program.parameters[source] for name, source in named.items()}

    def repeat(self, stored: WeightValues, carried: list[str]) -> tuple[sim.Repeat, WeightValues]:
        arguments = {name: Value(self.names.fresh(f"{name}.arg"), stored[name].type) for name in carried}
        body = Builder(self.names, "forward", "inside")
        weights = stored | arguments
        values: Values = {}
        self.forward(body, weights, values)
        updated = self.backward(body, weights, values)
        results = {name: Value(self.names.fresh(f"{name}.out"), stored[name].type) for name in carried}
        block = Block(tuple(arguments.values()), body.ops, tuple((arguments | updated)[name] for name in carried))
        operands = tuple(stored[name] for name in carried)
        repeat = sim.Repeat(
            operands=operands, results=tuple(results.values()), count=self.options.n_steps, body=block, phase="descent"
        )
        return repeat, results

    def forward(self, builder: Builder, weights: WeightValues, values: Values | None = None) -> Value:
        """Emit the decoder with the given weights; returns the logits and fills `values` (auxiliary -> simulator)."""
        values = {} if values is None else values
        for op in self.aux_ops():
            operands = tuple(values[operand] for operand in op.operands)
            if op in self.layers:
                operands = (weights[self.layers[op].name], *operands)
            cls, attributes = _forward_op(op)
            made = builder.emit(
                cls, operands, (op.result.type,), origin=op.result.name, layer=op.layer, role=op.role, **attributes
            )
            values[op.result] = made.result
        return values[self.program.outputs["logits"]]

    def backward(self, builder: Builder, weights: WeightValues, values: Values) -> WeightValues:
        """Emit loss gradient, backward and descent; returns the updated weights by name."""
        pass_ = _Backward(self, builder, weights, values)
        for op in reversed(self.aux_ops()):
            pass_.visit(op)
        return pass_.updated

    def wanted(self) -> set[Value]:
        """Auxiliary values whose gradient some descent needs."""
        wanted: set[Value] = set()
        for op in self.aux_ops():
            carriers = op.operands[2:] if isinstance(op, aux.Attention) else op.operands
            if self.updates(op) or any(operand in wanted for operand in carriers):
                wanted.add(op.result)
        return wanted


def _forward_op(op: aux.AuxOp) -> tuple[type[sim.SimOp], dict[str, Any]]:
    """The simulator op that runs an auxiliary op forward, with its attributes."""
    match op:
        case aux.PositionEmbedding():
            return sim.PositionEmbedding, {"table": op.table, "offset": op.offset}
        case aux.Embedding():
            return sim.Embedding, {"table": op.table}
        case aux.Linear():
            return sim.LinearForward, {}
        case aux.Norm():
            return sim.NormForward, {"kind": op.kind, "eps": op.eps}
        case aux.Attention():
            return sim.AttentionForward, _heads(op)
        case aux.Activation():
            return sim.ActivationForward, {"fn": op.fn}
        case aux.Gate():
            return sim.GateForward, {"fn": op.fn}
        case aux.Add():
            return sim.Add, {}
        case aux.Logits():
            return sim.Logits, {"head": op.weight, "bias": op.bias}
    raise NotImplementedError(f"{op.opname} has no simulator module; canonicalise first.")


def _heads(op: aux.Attention) -> dict[str, Any]:
    names = ("n_heads", "n_kv_heads", "head_dim", "scale", "inv_freq", "rotary_style")
    return {name: getattr(op, name) for name in names}


class _Backward:
    """One reverse sweep: the gradients met so far, and the weights updated so far."""

    def __init__(self, whole: _Differentiation, builder: Builder, weights: WeightValues, values: Values):
        self.whole, self.builder, self.weights, self.values = whole, builder, weights, values
        self.wanted = whole.wanted()
        self.gradients: Values = {}
        self.updated: WeightValues = {}
        difference = whole.options.difference
        self.scheme = {"scheme": difference.scheme, "fd_step": difference.eps}
        self.rules: dict[type[aux.AuxOp], Callable[[Any, Value], None]] = {
            aux.Add: self.add,
            aux.Linear: self.linear,
            aux.Norm: self.norm,
            aux.Activation: self.activation,
            aux.Gate: self.gate,
            aux.Attention: self.attention,
        }

    def visit(self, op: aux.AuxOp) -> None:
        if isinstance(op, aux.Logits):
            (x,) = op.operands
            if x in self.wanted:
                loss = {"loss": self.whole.options.loss, "head": op.weight, "bias": op.bias}
                self.receive(x, self.emit(sim.LossGradient, op, (self.values[x],), "loss", **loss))
        elif op.result in self.gradients:
            self.rules[type(op)](op, self.gradients[op.result])

    def emit(self, cls: type[sim.SimOp], op: aux.AuxOp, operands: tuple[Value, ...], phase: str, **more: Any) -> Value:
        return self.emit_many(cls, op, operands, 1, phase, **more)[0]

    def emit_many(
        self, cls: type[sim.SimOp], op: aux.AuxOp, operands: tuple[Value, ...], n: int, phase: str, **more: Any
    ) -> tuple[Value, ...]:
        """Emit an op whose results have the type of its last operand, or the type given as `kind`."""
        kind = more.pop("kind_of_result", operands[-1].type)
        self.builder.phase, self.builder.suffix = phase, {"descent": "updated"}.get(phase, "grad")
        origin = op.result.name
        made = self.builder.emit(cls, operands, (kind,) * n, origin=origin, layer=op.layer, role=op.role, **more)
        return made.results

    def receive(self, value: Value, gradient: Value) -> None:
        """Add `gradient` to what `value` has received."""
        if value not in self.wanted:
            return
        if value in self.gradients:
            self.builder.phase, self.builder.suffix = "backward", "grad"
            both = (self.gradients[value], gradient)
            gradient = self.builder.emit(sim.Add, both, (gradient.type,), origin=value.name).result
        self.gradients[value] = gradient

    def add(self, op: aux.Add, dy: Value) -> None:
        for operand in op.operands:
            self.receive(operand, dy)

    def linear(self, op: aux.Linear, dy: Value) -> None:
        (x,) = op.operands
        weight = self.weights[self.whole.layers[op].name]
        if x in self.wanted:
            kind = x.type
            self.receive(x, self.emit(sim.LinearBackward, op, (weight, dy), "backward", kind_of_result=kind))
        self.descend(sim.LinearDescent, op, (dy, self.values[x]))

    def norm(self, op: aux.Norm, dy: Value) -> None:
        (x,) = op.operands
        layer = self.whole.layers.get(op)
        weights = (self.weights[layer.name],) if layer is not None else ()
        if x in self.wanted:
            step = {"kind": op.kind, "eps": op.eps, **self.scheme}
            self.receive(x, self.emit(sim.NormBackward, op, (*weights, dy, self.values[x]), "backward", **step))
        self.descend(sim.NormDescent, op, (dy,))

    def descend(self, cls: type[sim.SimOp], op: aux.AuxOp, operands: tuple[Value, ...]) -> None:
        if not self.whole.updates(op):
            return
        name = self.whole.layers[op].name
        current = self.updated.get(name, self.weights[name])
        more = {"target": name, "kind_of_result": current.type}
        self.updated[name] = self.emit(cls, op, (current, *operands), "descent", **more)

    def activation(self, op: aux.Activation, dy: Value) -> None:
        (x,) = op.operands
        operands = (dy, self.values[x])
        self.receive(x, self.emit(sim.ActivationBackward, op, operands, "backward", fn=op.fn, **self.scheme))

    def gate(self, op: aux.Gate, dy: Value) -> None:
        operands = (dy, *(self.values[operand] for operand in op.operands))
        made = self.emit_many(sim.GateBackward, op, operands, 2, "backward", fn=op.fn, **self.scheme)
        for operand, gradient in zip(op.operands, made, strict=True):
            self.receive(operand, gradient)

    def attention(self, op: aux.Attention, dy: Value) -> None:
        """The scores count as constants (Def. E.3): only the values receive a gradient."""
        q, k, v = op.operands
        operands = (dy, self.values[q], self.values[k])
        kind = {"kind_of_result": v.type}
        self.receive(v, self.emit(sim.AttentionBackward, op, operands, "backward", **_heads(op), **kind))
