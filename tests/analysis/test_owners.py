"""Every element of every stored tensor has an owner, which is what the tensors themselves show, and the way back holds.

Programs by hand of five kinds; numbers are compared exactly.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from programs import gpt_like, hybrid_like, llama_like, mixture_like, simulator
from torch import Tensor

from tintc.analysis.head_roles import Roles
from tintc.analysis.owner import Owner
from tintc.analysis.role import Role
from tintc.errors import OptionError
from tintc.ir.auxiliary.interpreter import view
from tintc.ir.block_specs import AttentionSpec, TensorSpec
from tintc.ir.simulator.interface.weights import own_entry
from tintc.lowering.emission.emit import blocks_of
from tintc.runtime.model.causal_lm import TintForCausalLM

GAINS = {"descend": "values,out,ffn,norm-bias,norm-gain"}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "gpt": (lambda: gpt_like(layers=1), GAINS | {"n_steps": 2}),
    "the authors' layout": (lambda: gpt_like(width=8, heads=2, layers=1, d_ff=11), {"semantics": "paper-code"}),
    "llama, nothing shared": (lambda: llama_like(width=6, heads=3, layers=1, d_ff=7), {"reuse": "none"}),
    "experts": (lambda: mixture_like(width=8, heads=2, layers=1, d_ff=5, experts=3, biases=True, chosen=2), {}),
    "a recurrence": (lambda: hybrid_like(width=6, heads=2, d_ff=7, key_heads=1), {}),
}


@cache
def simulated(case: str) -> tuple[TintForCausalLM, Roles, dict[str, Tensor]]:
    """A simulator, its roles, and the auxiliary's parameters with all their numbers counted through."""
    make, options = CASES[case]
    program, tensors = make()
    counted: dict[str, Tensor] = {}
    first = 1
    for name, tensor in tensors.items():
        counted[name] = torch.arange(first, first + tensor.numel(), dtype=torch.float64).view(tensor.shape)
        first += tensor.numel()
    sim = simulator(program, counted, max_length=9, **options)
    named = {name: view(parameter, counted[parameter.source]) for name, parameter in sim.program.parameters.items()}
    return sim, sim.roles(), named


@cache
def owners(case: str) -> dict[str, dict[tuple[int, ...], Owner]]:
    """The owner of every element, by tensor and index."""
    sim, roles, _ = simulated(case)
    return {
        name: {index: roles.owner(name, index) for index in product(*map(range, tensor.shape))}
        for name, tensor in sim.state_dict().items()
    }


def below(case: str, *beginnings: str) -> list[tuple[str, dict[tuple[int, ...], Owner], Tensor]]:
    """(name, owners, numbers) of the tensors whose names begin so."""
    state = simulated(case)[0].state_dict()
    return [(name, of, state[name]) for name, of in owners(case).items() if name.startswith(beginnings)]


@pytest.mark.parametrize("case", CASES)
def test_a_number_of_the_auxiliary_is_the_one_that_its_owner_names(case: str) -> None:
    """Weights, tables, score vectors; what has no entry is a zero. All numbers differ, so none is taken for another."""
    _, roles, counted = simulated(case)
    for name, of, numbers in below(case, "prefixes.", "tables.", "score_vectors."):
        for index, owner in of.items():
            value = float(numbers[index])
            assert owner.tensor == name and owner.index == index
            if owner.entry is None:
                assert owner.part == "padding" and value == 0 and not owner.places
                continue
            assert float(counted[owner.parameter][owner.entry]) == value, owner
            assert (name, index) in roles.stored(owner.parameter, owner.entry)
    stored = {(owner.parameter, owner.entry) for _, of, _ in below(case, "prefixes.") for owner in of.values()}
    weights = [name for name in counted if f"prefixes.{name}" in owners(case)]
    assert sum(counted[name].numel() for name in weights) == len([entry for _, entry in stored if entry is not None])


@pytest.mark.parametrize("case", CASES)
def test_a_number_stands_in_prefixes_where_its_owner_says(case: str) -> None:
    """In the embeddings that `Prefix` makes: at every place the number over its copies, and zeros elsewhere."""
    sim, _, _ = simulated(case)
    layout = sim.layout
    e = torch.zeros(1, layout.n_prefixes, layout.d_sim, dtype=torch.float64)
    groups = {name.removeprefix("prefixes.").rpartition(".")[0] for name, _, _ in below(case, "prefixes.")}
    for group in sorted(groups):
        prefix: Any = sim.prefix(group)
        rows, columns = prefix.tiles
        experts = [-1]
        if prefix.holds.kind == "experts":
            experts = list(range(prefix.holds.dims[0]))
        shown = {
            (x, r, c): prefix(e, r, c, None if x < 0 else x)[0].detach()
            for x, r, c in product(experts, range(rows), range(columns))
        }
        for _, of, numbers in below(case, f"prefixes.{group}."):
            for index, owner in of.items():
                for place in owner.places:
                    tile = shown[(owner.expert, *place.tile)]
                    assert float(tile[place.prefix, place.number]) == float(numbers[index]) / len(owner.places)
                    tile[place.prefix, place.number] = 0
                    assert divmod(place.number, layout.pitch)[0] == owner.slot
                    assert place.number // layout.d_h == owner.head
        ones = prefix.holds.kind == "norm" and "gain" not in dict(prefix.named_parameters())
        assert ones or not any(tile.any() for tile in shown.values()), group


@pytest.mark.parametrize("case", CASES)
def test_split_operations_read_and_write_what_owners_say(case: str) -> None:
    """An operation is the matrix that its owners' ends make of its weight; heads are those that the chain's product
    reaches."""
    sim, _, _ = simulated(case)
    modules = dict(sim.named_modules())
    for block, placed in blocks_of(sim.program).items():
        if not isinstance(placed.block.spec, AttentionSpec):
            continue
        count, width = placed.block.spec.n_heads, placed.block.spec.width
        head = torch.arange(count).repeat_interleave(width)[None] == torch.arange(count)[:, None]
        for letter in "qkvo":
            names = [f"structure.{block}.w_{letter}.{number}" for number in range(4)]
            stages: list[Any] = [modules[name] for name in names if name in modules]
            matrices = [matrix_of(stage) for stage in stages]
            for number, stage in enumerate(stages):
                after, before = head, head.T
                for matrix in reversed(matrices[number + 1 :]):
                    after = (after.double() @ matrix.abs()) > 0
                for matrix in matrices[:number]:
                    before = (matrix.abs() @ before.double()) > 0
                made = torch.zeros_like(matrices[number])
                for index, owner in owners(case)[f"structure.{block}.w_{letter}.{number}.weight"].items():
                    assert owner.reads is not None and owner.writes is not None
                    source = owner.reads[0] * stage.width + owner.reads[1]
                    given = owner.writes[0] * stage.width + owner.writes[1]
                    made[given, source] += stage.weight[index].detach()
                    own = before[source] if letter == "o" else after[:, given]
                    assert owner.heads == tuple(own.nonzero()[:, 0].tolist()), owner
                assert torch.equal(made, matrices[number])


def matrix_of(stage: Any) -> Tensor:
    """A split operation without its bias, as a matrix."""
    with torch.no_grad():
        return stage(torch.eye(stage.n_heads * stage.width, dtype=torch.float64)).T  # biases start at zero


@pytest.mark.parametrize("case", CASES)
def test_from_roles_to_elements_and_back(case: str) -> None:
    """An element is among those of a role exactly if the role is among those of its owner."""
    _, roles, _ = simulated(case)
    forth: dict[tuple[str, tuple[int, ...]], set[Role]] = {}
    for role in set(roles):
        for name, at in roles.elements(role).items():
            for index in at.tolist()[:: 1 + len(at) // 40]:
                forth.setdefault((name, tuple(index)), set()).add(role)
    assert {"prefixes", "structure"} <= {name.partition(".")[0] for name, _ in forth}
    for (name, index), expected in forth.items():
        assert expected <= set(roles.of(owners(case)[name][index])), (name, index)


def test_elements_of_a_head_are_all_that_are_its_own() -> None:
    """Of one block with heads, a gate and a block without heads."""
    _, roles, _ = simulated("gpt")
    of = owners("gpt")
    heads = {role.head: role for role in roles.rows(block="linear_descent_bias") if role.head >= 0}
    assert len(heads) == 3
    for head, role in heads.items():
        listed = {(name, tuple(index)) for name, at in roles.elements(role).items() for index in at.tolist()}
        blocks = [one for one in listed if one[0].startswith("structure.")]
        own = {
            (name, index)
            for name, by_index in of.items()
            for index, owner in by_index.items()
            if owner.block == role.block and head in owner.heads
        }
        assert set(blocks) == own
        assert {of[name][index].part for name, index in own} >= {"w_k", "w_v", "w_o", "lam_q"}
        assert {owner.slot for name, index in own for owner in [of[name][index]] if owner.heads == (head,)} == {
            role.writes[0].slot
        }
    gate = next(iter(roles.rows(phase="gate", block="gates.update")))
    assert {name: len(at) for name, at in roles.elements(gate).items()} == {
        f"structure.gates.update.{part}": simulated("gpt")[0].layout.sim_seq_len for part in ("v_old", "v_new")
    }
    bare = next(role for role in roles if role.block.startswith("fd_mean"))
    assert sum(map(len, roles.elements(bare).values())) == sum(
        len(by_index) for name, by_index in of.items() if name.startswith(f"structure.{bare.block}.")
    )


def test_what_else_an_owner_says() -> None:
    """The layer, the step of a rate, the position of gates and position matrices; who shares a block."""
    sim, roles, _ = simulated("gpt")
    rate = roles.owner("rates.h.0.ffn.up", 1)
    assert (rate.part, rate.parameter, rate.step, rate.layer) == ("rate", "h.0.ffn.up", 1, 0)
    assert rate.rules == ("sim.linear_descent",) and "descent_1.h.0.ffn.up" in rate.sites
    assert roles.owner("rates.h.0.ffn.up", [-1]) == rate
    gate = roles.owner("structure.gates.replace.v_new", sim.layout.n_prefixes)
    assert (gate.part, gate.position, gate.head) == ("gate", sim.layout.n_prefixes, -1)
    place = roles.owner("structure.positions.prefix", (2, 1))
    assert (place.part, place.column, place.position, place.layer) == ("position", 2, 1, None)
    table = roles.owner("tables.wte.weight", (3, 4))
    assert (table.part, table.parameter, table.entry, table.layer) == ("table", "wte.weight", (3, 4), -1)
    shared = simulated("the authors' layout")[1].owner("structure.linear_forward_bias.lam_q", 0)
    assert set(shared.rules) == {"sim.linear_forward", "sim.norm_forward"} and shared.heads == (0,)
    apart = simulated("llama, nothing shared")[1].owner("structure.descent_0.h.0.ffn.up.linear_descent.lam_q", 0)
    assert (apart.layer, apart.sites, apart.block) == (
        0,
        ("descent_0.h.0.ffn.up",),
        "descent_0.h.0.ffn.up.linear_descent",
    )


def test_a_gain_that_heads_share_is_stored_once_for_each() -> None:
    gain = TensorSpec((3,), lambda: torch.zeros(3))
    assert [own_entry(gain, row) for row in range(6)] == [(0,), (1,), (2,)] * 2
    groups = TensorSpec((2, 3), lambda: torch.zeros(2, 3))
    assert [own_entry(groups, row) for row in range(6)] == list(product(range(2), range(3)))


@pytest.mark.parametrize(
    ("tensor", "index", "says"),
    [
        ("structure.nosuch", 0, "stores no tensor 'structure.nosuch'"),
        ("rates.h.0.ffn.up", 2, r"has the shape \[2\], and no number at \[2\]"),
        ("rates.h.0.ffn.up", (0, 0), r"no number at \[0, 0\]"),
        ("prefixes.h.0.ffn.up.bias", -21, "no number at"),
    ],
)
def test_what_is_not_stored_is_refused(tensor: str, index: Any, says: str) -> None:
    _, roles, _ = simulated("gpt")
    with pytest.raises(OptionError, match=says):
        roles.owner(tensor, index)


def test_a_parameter_that_is_not_stored_is_refused() -> None:
    _, roles, _ = simulated("gpt")
    wrong = [("nosuch", (0,), "no parameter 'nosuch'")]
    wrong += [("h.0.ffn.up.weight", entry, r"has shape \[\d+, \d+\], and so no") for entry in ((0,), (99, 0), (0, -1))]
    for parameter, entry, says in wrong:
        with pytest.raises(OptionError, match=says):
            roles.stored(parameter, entry)
