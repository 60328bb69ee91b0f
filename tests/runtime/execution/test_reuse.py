"""`--reuse`: what modules share, in the tree, in the file and in the counts; and the tiles of one layer (Appendix I).

fp64, 1e-9 of the update.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
from command import Command
from fused_cases import check_fused, family, relative_to_update, run, token_ids
from programs import gpt_like, simulator

from tintc import load
from tintc.analysis.parameter_counts import (
    block_count,
    module_counts,
    table_count,
    tensors_of,
    transformer_block,
    unique_count,
    unrolled_count,
)
from tintc.errors import IRError, OptionError
from tintc.ir import simulator as sim
from tintc.ir.text import parse_program, print_program
from tintc.lowering.emission.sharing import placement
from tintc.lowering.whole_program import check_complete
from tintc.option_facts import REUSE
from tintc.options import Options
from tintc.runtime.load import write_artefact
from tintc.runtime.model.causal_lm import TintForCausalLM

IDS = token_ids(2, 9, 11)
LAYERS, STEPS, UPDATED = 3, 2, 2


@cache
def compiled(reuse: str, name: str = "gpt2") -> TintForCausalLM:
    return family(name).compile(reuse=reuse, n_steps=STEPS, n_update_layers=UPDATED, inner_lr=0.02)


def fresh(reuse: str) -> TintForCausalLM:
    """Of two layers by hand, of which one is updated, in two steps."""
    made = simulator(*gpt_like(), reuse=reuse, n_steps=STEPS, n_update_layers=1, inner_lr=0.02)
    made.executor = "literal"
    return made


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_sharing_does_not_change_the_result(name: str) -> None:
    """Literal and fused execution are the interpreter's, and one sharing's are another's."""
    made = compiled("none", name)
    check_fused(made, IDS, literal=name == "gpt2")
    other = run(compiled("layer", name), IDS, "literal", return_before=True)
    found = run(made, IDS, "auto")
    assert made.last_executor == "fused"
    assert relative_to_update(found.logits, other.logits, other.logits_before) < 1e-9


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_counts_follow(name: str) -> None:
    """Unique is the tensors' size, to the value; modules that share nothing store what is unrolled."""
    unique = {}
    for reuse in REUSE:
        made = compiled(reuse, name)
        state = made.state_dict()
        unique[reuse] = sum(tensor.numel() for tensor in state.values())
        rows = module_counts(made.program)
        assert unique_count(made.program) == sum(row.unique for row in rows) == unique[reuse]
        assert unrolled_count(made.program) == sum(row.unrolled for row in rows)
        assert unrolled_count(made.program) == unrolled_count(compiled("none", name).program)
        table = table_count(made.program)
        assert table.total == sum(row.table for row in rows)
        shared = sum(row.unique for row in rows if row.layer is None)
        scores = sum(tensor.numel() for key, tensor in state.items() if key.startswith("score_vectors."))
        assert shared > scores if reuse == "layer" else shared == scores, "no structural tensor is of several layers"
    assert unique["none"] == unrolled_count(compiled("none", name).program)
    assert unique["layer"] < unique["none"]


def test_the_budget_of_the_table_by_hand() -> None:
    """All layers once, with backward and descent, as in the paper; unless steps share nothing: then every pass of the
    updated layers counts. GPT-2: three layers of which two are updated, in two steps."""
    block = transformer_block(compiled("none").layout)
    found = table_count(compiled("layer").program)
    wanted = [LAYERS * count for count in (block.forward, block.backward, block.descent)]
    assert [found.forward, found.backward, found.descent] == wanted
    found = table_count(compiled("none").program)
    assert found.forward == (LAYERS + STEPS * UPDATED) * block.forward
    assert found.backward == (LAYERS + (STEPS - 1) * UPDATED) * block.backward
    assert found.descent == (LAYERS + (STEPS - 1) * UPDATED) * block.descent


def test_the_tree_follows() -> None:
    """The same module of GPT-2 under its two names; each is a hook's and a state dict's."""
    places = {
        "layer": "structure.linear_forward_bias",
        "none": "structure.forward_1.VALUE.linear_forward_bias",
    }
    for reuse, place in places.items():
        made = compiled(reuse)
        op = module(made, "forward", 1, 2)
        name = f"structure.{placement(made.program)[op]['linear_forward_bias'].name}"
        assert name == place.replace("VALUE", op.origin)
        assert made.get_submodule(name) is made.block(name.removeprefix("structure."))[0]
        own = {key.removeprefix(f"{name}.") for key in made.state_dict() if key.startswith(f"{name}.")}
        assert ({"p_k", "p_v"} <= own) == (reuse != "layer") and "w_o.2.weight" in own


def module(made: TintForCausalLM, phase: str, step: int, layer: int) -> sim.LinearForward:
    """The value layer's forward module."""
    found = [op for op in made.program.ops if isinstance(op, sim.LinearForward) and op.role == "value"]
    (op,) = [op for op in found if (op.phase, op.step, op.layer) == (phase, step, layer)]
    return op


@pytest.mark.parametrize("reuse", REUSE)
def test_an_edit_reaches_the_modules_that_share(reuse: str) -> None:
    """One tensor of the value layer's module in step 1, layer 1, is changed."""
    made = fresh(reuse)
    right = run(made, IDS, "literal", return_before=True)
    op = module(made, "forward", 1, 1)
    place = placement(made.program)
    name = f"structure.{place[op]['linear_forward_bias'].name}.w_q.0.weight"
    users = {user for user, blocks in place.items() if any(name in tensors_of(one) for one in blocks.values())}
    steps, layers = {user.step for user in users}, {user.layer for user in users}
    assert (len(users), steps, layers) == {
        "none": (1, {1}, {1}),
        "layer": (len(users), {0, 1, 2}, {-1, 0, 1}),
    }[reuse]
    with torch.no_grad():
        made.get_parameter(name).mul_(1.5)
    found = run(made, IDS, "literal", return_before=True)
    assert torch.equal(found.logits_before, right.logits_before) == (reuse == "none")
    assert relative_to_update(found.logits, right.logits, right.logits_before) > 1e-3
    with pytest.raises(OptionError, match="not those the compiler emitted"):
        run(made, IDS, "fused")


def test_a_file_holds_what_is_its_own(tmp_path: Path, command: Command) -> None:
    made = family("gpt2").compile(reuse="none", n_update_layers=1, inner_lr=0.02)
    right = run(made, IDS, "literal", return_before=True)
    folder = write_artefact(made, tmp_path / "sim")
    loaded = load(folder)
    assert loaded.config.reuse == "none"
    assert relative_to_update(run(loaded, IDS, "fused").logits, right.logits, right.logits_before) < 1e-9
    state = loaded.state_dict()
    assert state.keys() == made.state_dict().keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in made.state_dict().items())
    literal = run(loaded, IDS, "literal").logits
    assert relative_to_update(literal, right.logits, right.logits_before) < 1e-9
    printed = command("inspect", folder, "--params", "--json").json["parameters"]
    assert printed["unique"] == printed["unrolled"] == sum(tensor.numel() for tensor in state.values())


def test_tiles_of_one_layer_share_its_module() -> None:
    """The feed-forward is wider than a tile, the output projection is one tile. Whatever modules share, both are one
    module, of equal size, which is applied once for every tile, each time with other prefixes (Appendix I)."""
    made = simulator(*gpt_like(layers=1), reuse="none", stack=1, shards=1)
    pitch, place = made.layout.pitch, placement(made.program)
    calls: Counter[str] = Counter()
    prefixes: dict[str, list[torch.Tensor]] = {}
    top = [op for op in place if op.layer == 0 and op.phase in ("forward", "backward", "descent")]
    linear = [op for op in top if isinstance(op, sim.LinearForward | sim.LinearBackward | sim.LinearDescent)]
    for op in linear:
        site = made.site(op)
        assert site is not None

        def note(_: object, given: tuple[torch.Tensor, ...], key: str = op.results[0].name) -> None:
            calls[key] += 1
            prefixes.setdefault(key, []).append(given[0][0, : made.layout.n_prefixes].clone())

        site.register_forward_pre_hook(note)
    run(made, IDS, "literal", return_before=True)
    tiled = 0
    for op in linear:
        dout, din = op.operands[0].type.dims
        tiles, key = -(-dout // pitch) * -(-din // pitch), op.results[0].name
        assert op.tiles == (-(-dout // pitch), -(-din // pitch)) and calls[key] == tiles
        tiled += tiles > 1
        given = prefixes[key]
        assert all(not torch.equal(a, b) for i, a in enumerate(given) for b in given[:i])
        variants = 2 if op.tiles[1] > 1 and not isinstance(op, sim.LinearBackward) else 1
        assert len(place[op]) == variants, "a variant without bias heads for later column tiles, where there are any"
    assert tiled == 8, "up (by row) and down (by column): forward before and after, backward, descent"
    up, out = (first(linear, role) for role in ("ffn", "output"))
    sizes = [sum(block_count(b.block, made.layout) for b in place[op].values()) for op in (up, out)]
    assert up.tiles[0] > 1 and out.tiles == (1, 1) and sizes[0] == sizes[1]


def first(ops: list[sim.LinearForward | sim.LinearBackward | sim.LinearDescent], role: str) -> sim.LinearForward:
    return next(op for op in ops if op.role == role and isinstance(op, sim.LinearForward))


def test_reuse_in_the_program_s_text() -> None:
    assert "reuse=" not in print_program(compiled("layer").program)
    text = print_program(compiled("none").program)
    assert 'reuse="none"' in text
    program = check_complete(parse_program(text))
    assert print_program(program) == text
    with pytest.raises(IRError, match="'reuse' is 'some'; it must be one of none, layer"):
        check_complete(parse_program(text.replace('reuse="none"', 'reuse="some"')))


@pytest.mark.parametrize("reuse", ["block", "step"])
def test_an_unknown_reuse_is_refused(reuse: str) -> None:
    with pytest.raises(OptionError, match=f"The reuse '{reuse}' is unknown; choose one of none, layer"):
        Options(reuse=reuse)
