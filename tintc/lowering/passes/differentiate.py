"""Auxiliary program -> simulator program: forward, and one descent step as a `sim.repeat`.

    forward with the stored weights                    -> logits_before
    repeat N { forward; loss gradient; backward and descent }
    forward with the updated weights                   -> logits

Reverse mode on the DAG: values are visited from the logits down, a value used twice receives the sum of its users'
gradients, and only values that some updated weight lies below receive any. Backward and descent read the weights from
before the update, which SSA form gives for free. Forward ops that no update touches are written in each copy;
`eliminate_common` merges them after unrolling. What an op becomes is its rule's business (`tintc.lowering.rules`).
"""

from __future__ import annotations

from tintc.errors import OptionError, Reason, UnsupportedModelError
from tintc.ir import auxiliary as aux
from tintc.ir import simulator as sim
from tintc.ir.auxiliary.interpreter import descending
from tintc.ir.core import Block, Parameter, Program, Value
from tintc.ir.names import Names
from tintc.lowering.builder import Builder
from tintc.lowering.optimiser import PARTS, Optimiser, Source
from tintc.lowering.rules import Sweep, WeightGroup, rule_of
from tintc.option_facts import GROUPS
from tintc.options import Options

Values = dict[Value, Value]
WeightValues = dict[str, Value]


def differentiate(program: Program, options: Options) -> Program:
    """Return the simulator program of an auxiliary program whose roles are assigned.

    Raises `UnsupportedModelError` for layers that share some of their parameters with other layers and not all, and
    `OptionError` if nothing would descend.
    """
    program.verify()
    return _Differentiation(program, options).run().verify()


class _Differentiation:
    def __init__(self, program: Program, options: Options):
        self.program = program
        self.options = options
        self.names = Names()
        self.n_layers = program.attributes["n_layers"]
        self.update_layers = options.update_layers(self.n_layers)
        self.ops = [op for op in program.ops if isinstance(op, aux.AuxOp)]
        self.layers: dict[aux.AuxOp, WeightGroup] = {}
        for op in self.ops:
            layer = rule_of(op).layer(program, op, options)
            if layer is not None:
                self.layers[op] = layer
        self._refuse_unlike()
        reached = self.reached()
        self.updated = {op for op in self.layers if self.updates(op) and op.result in reached}

    def _refuse_unlike(self) -> None:
        """Raise `UnsupportedModelError` for layers of one name with unlike parts.

        A layer may be used many times, but is stored and updated once.
        """
        first: dict[str, WeightGroup] = {}
        reasons: list[Reason] = []
        for op, layer in self.layers.items():
            if first.setdefault(layer.name, layer) != layer:
                why = f"{layer.name} is used elsewhere with another bias, or with other parameters that descend"
                reasons.append(
                    Reason(op.opname, op.result.name, why, "layers that share some of their parameters only")
                )
        if reasons:
            raise UnsupportedModelError("This model", reasons)

    def updates(self, op: aux.AuxOp) -> bool:
        """Return True if any parameter of the op descends."""
        return bool(descending(op, self.n_layers, self.update_layers, self.options.groups))

    def run(self) -> Program:
        start = Builder(self.names, "forward", "w")
        stored: WeightValues = {}
        for op, layer in self.layers.items():
            if layer.name not in stored:
                weights = start.emit(sim.StoredWeights, (), (layer.type,), origin=layer.name, name=layer.name)
                stored[layer.name] = weights.result
                weights.layer = op.layer
                weights.role = op.role
        if not self.updated:
            raise OptionError(
                f"Nothing would descend: this model has no parameters of {self.options.descend} in the layers that are "
                f"updated. Choose other groups among {', '.join(GROUPS)}."
            )
        # A layer that is used many times is carried from step to step once.
        carried = list(dict.fromkeys(layer.name for op, layer in self.layers.items() if op in self.updated))
        self.optimiser = Optimiser(self.options, self.sources(carried))
        self.optimiser.start(start)
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
        if self.options.gradient != Options.gradient:
            attributes["gradient"] = self.options.gradient
        if self.options.reuse != Options.reuse:
            attributes["reuse"] = self.options.reuse
        ops = [*start.ops, *before.ops, repeat, *after.ops]
        outputs = {"logits_before": logits_before, "logits": logits}
        return Program("sim", attributes, self.parameters(), ops, outputs)

    def parameters(self) -> dict[str, Parameter]:
        """Return the sources of the simulator's tensors: tables by their own names, weights as ``<layer>.<part>``."""
        layered = {f"{layer.name}.{part}": name for layer in self.layers.values() for part, name in layer.parts.items()}
        others = [name for op in self.ops if op not in self.layers for name in op.parameters().values()]
        named = {name: name for name in others} | layered
        return {name: self.program.parameters[source] for name, source in named.items()}

    def repeat(self, stored: WeightValues, carried: list[str]) -> tuple[sim.Repeat, WeightValues]:
        """Return (one descent step as a `sim.repeat`, the updated weights by name). carried: names of the weights it
        updates."""
        arguments = {name: Value(self.names.fresh(f"{name}.arg"), stored[name].type) for name in carried}
        running = self.optimiser.carried()
        inside = {name: Value(self.names.fresh(f"{name}.sum.arg"), value.type) for name, value in running.items()}
        body = Builder(self.names, "forward", "inside")
        weights = stored | arguments
        values: Values = {}
        self.forward(body, weights, values)
        updated, sums = self.backward(body, weights, values, inside)
        results = {name: Value(self.names.fresh(f"{name}.out"), stored[name].type) for name in carried}
        after = {name: Value(self.names.fresh(f"{name}.sum.out"), value.type) for name, value in running.items()}
        yields = (*((arguments | updated)[name] for name in carried), *(sums[name] for name in running))
        block = Block((*arguments.values(), *inside.values()), body.ops, yields)
        repeat = sim.Repeat(
            operands=(*(stored[name] for name in carried), *running.values()),
            results=(*results.values(), *after.values()),
            count=self.options.n_steps,
            body=block,
            phase="descent",
        )
        return repeat, results

    def sources(self, carried: list[str]) -> dict[str, Source]:
        """Return what an optimiser asks of the layers that are updated: their types, the parts that descend, and where
        they stand."""
        sources: dict[str, Source] = {}
        for op, layer in self.layers.items():
            if layer.name in carried and op in self.updated:
                stepped = descending(op, self.n_layers, self.update_layers, self.options.groups)
                parts = tuple(part for part, key in PARTS if key in stepped and part in layer.parts)
                sources.setdefault(layer.name, Source(layer.type, parts, op.layer, op.role))
        return {name: sources[name] for name in carried}

    def forward(self, builder: Builder, weights: WeightValues, values: Values | None = None) -> Value:
        """Emit the decoder with the given weights; return the logits and fill `values` (auxiliary -> simulator)."""
        if values is None:
            values = {}
        for op in self.ops:
            operands = tuple(values[operand] for operand in op.operands)
            if op in self.layers:
                operands = (weights[self.layers[op].name], *operands)
            cls, attributes = rule_of(op).forward(op)
            emitted = builder.emit(
                cls, operands, (op.result.type,), origin=op.result.name, layer=op.layer, role=op.role, **attributes
            )
            values[op.result] = emitted.result
        return values[self.program.outputs["logits"]]

    def backward(
        self, builder: Builder, weights: WeightValues, values: Values, running: WeightValues
    ) -> tuple[WeightValues, WeightValues]:
        """Emit loss gradient, backward and descent; return the updated weights and the sums of gradients, by name.

        running: the sums of earlier steps, where an optimiser keeps them.
        """
        sums = self.optimiser.opened(builder, running)
        sweep = Sweep(builder, self.options, values, weights, self.layers, self.updated, self.wanted(), sums)
        for op in reversed(self.ops):
            rule_of(op).visit(sweep, op)
        if sums is None:
            return sweep.stepped, {}
        return self.optimiser.steps(builder, weights, sums), sums

    def wanted(self) -> set[Value]:
        """Return the auxiliary values whose gradient some descent needs."""
        wanted: set[Value] = set()
        for op in self.ops:
            if op in self.updated or wanted.intersection(rule_of(op).carriers(op, self.options)):
                wanted.add(op.result)
        return wanted

    def reached(self) -> set[Value]:
        """Return the auxiliary values to which a gradient can flow from the logits."""
        reached = {self.program.outputs["logits"]}
        for op in reversed(self.ops):
            if op.result in reached:
                reached.update(rule_of(op).carriers(op, self.options))
        return reached
