"""Rows of `sim.roles()`: what they say of known modules, that nothing is left out, and how they are written down."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from math import prod

import pytest
import torch
from fused_cases import compiled
from programs import gpt_like, simulator

from tintc import stages
from tintc.analysis.head_roles import Roles
from tintc.analysis.role import Place, Role
from tintc.errors import OptionError
from tintc.lowering.passes.calibrate_softmax_heads import calibrate_softmax_heads
from tintc.options import Options
from tintc.runtime.model.causal_lm import TintForCausalLM


@pytest.fixture(scope="module")
def sim() -> TintForCausalLM:
    return compiled("gpt2", n_steps=2)


def test_a_row_of_every_phase(sim: TintForCausalLM) -> None:
    """One layer of the stored one, S = 1 or more: head (s, j) has row s, s + S, ... and shard j (linear_common)."""
    layer, layout = "transformer.h.1.attn.c_proj", sim.layout
    s, j = layout.stack - 1, layout.shards - 1
    head = s * layout.shards + j
    rows = ((s, layout.pitch - layout.stack + s + 1, layout.stack),)
    columns = ((j * layout.d_h, layout.pitch, 1),)
    one = {"head": head, "parameter": f"{layer}.weight", "layer": 1}
    (forward,) = sim.roles().rows(site=f"forward_0.{layer}", **one)
    assert (forward.rows, forward.columns, forward.tile) == (rows, columns, (0, 0))
    assert forward.reads == (
        Place("query", "tokens", 0, "transformer.h.1.attn.attention.f0", columns),
        Place("key", "prefixes", s, f"{layer}.weight", rows),
    )
    assert forward.writes == (Place("result", "tokens", 0, f"{layer}.f0", rows),)
    (backward,) = sim.roles().rows(site=f"backward_1.{layer}", **one)
    assert (backward.phase, backward.step, backward.rows, backward.columns) == ("backward", 1, rows, columns)
    assert backward.writes == (Place("result", "tokens", 0, f"{layer}.g1", columns),)
    (descent,) = sim.roles().rows(site=f"descent_1.{layer}", **one)
    assert [(place.as_, place.at) for place in descent.reads] == [("key", "train tokens"), ("value", "train tokens")]
    assert descent.writes == (Place("result", "prefixes", s, f"{layer}.weight", rows),)
    (gate,) = sim.roles().rows(site=f"descent_1.{layer}", phase="gate")
    assert gate.block == "gates.update" and gate.head == -1 and gate.writes[0].at == "prefixes"


@pytest.mark.parametrize("name", ["gpt2", pytest.param("opt", marks=pytest.mark.slow), "llama"])
def test_the_heads_of_a_step_write_every_entry_once(name: str) -> None:
    """Weights, biases and gains: what the rows of the descent say they write is the whole parameter."""
    sim = compiled(name, descend="values,out,ffn,norm-bias,norm-gain")
    shapes = {p.name.removeprefix("step0.updates."): p.shape[1:] for p in sim.capture_points() if "updates" in p.name}
    written: Counter[str] = Counter()
    for role in sim.roles().rows(phase="descent"):
        if role.parameter:
            sizes = [sum(len(range(*run)) for run in runs) for runs in (role.rows, role.columns) if runs]
            written[role.parameter] += prod(sizes)
    assert {name: prod(int(size) for size in shape) for name, shape in shapes.items()} == written


def test_sums_and_steps_of_an_optimiser() -> None:
    """Descents write every entry of the sums once, and name them; the norm's heads read what stands in prefixes."""
    program, tensors = gpt_like(layers=1)
    roles = simulator(program, tensors, optimizer="normalized", normalize="all", decay=0.3).roles()
    written: Counter[str] = Counter()
    for role in roles.rows(phase="descent"):
        if role.parameter:
            written[role.parameter] += prod(
                sum(len(range(*run)) for run in runs) for runs in (role.rows, role.columns) if runs
            )
    descending = ("h.0.attn.v", "h.0.attn.o", "h.0.ffn.up", "h.0.ffn.down")
    wanted = {
        f"sums.{layer}.{part}": tensors[f"{layer}.{part}"].numel()
        for layer in descending
        for part in ("weight", "bias")
    }
    assert written == wanted | {f"sums.{norm}.bias": 12 for norm in ("h.0.ln1", "h.0.ln2", "lnf")}
    gathers = [role for role in roles if role.block == "norm_gather" and role.head >= 0]
    assert gathers and all(place.at == "prefixes" for role in gathers for place in role.reads)
    steps = [role for role in roles.rows(site="descent_0.h.0.attn.v*") if role.block == "times_1p0"]
    assert "sums.h.0.attn.v.weight" in {place.of for role in steps for place in role.reads}


def test_softmax_heads_come_in_pairs() -> None:
    """The first does what the linear head did; its partner has the same values, and scores that read no parameter."""
    program, tensors = gpt_like(layers=1)
    ids = torch.randint(0, 11, (20,), generator=torch.Generator().manual_seed(0))
    made = stages.lower(program, Options(), 24)
    linear, soft = Roles(made), Roles(calibrate_softmax_heads(made, tensors, 1e-4, torch.float64, ids))
    site = "forward_0.h.0.attn.o"
    heads = [role for role in linear.rows(site=site) if role.head >= 0]
    pairs = [role for role in soft.rows(site=site) if role.head >= 0]
    values = [role.parameter if role.parameter.endswith("bias") else "" for role in heads]
    assert [role.parameter for role in pairs] == [role.parameter for role in heads] + values and "" in values
    assert [role.writes for role in pairs] == 2 * [role.writes for role in heads]
    assert len(list(soft)) > len(list(linear))


def test_the_authors_layout_has_a_bias_in_every_tile() -> None:
    roles = compiled("gpt2", semantics="paper-code").roles()
    layer = "transformer.h.0.mlp.c_proj"
    tiles = {role.tile for role in roles.rows(site=f"forward_0.{layer}", parameter=f"{layer}.bias")}
    assert tiles == {role.tile for role in roles.rows(site=f"forward_0.{layer}", parameter=f"{layer}.weight")}
    assert len(tiles) > 1


def test_what_no_role_has_is_refused(sim: TintForCausalLM) -> None:
    with pytest.raises(OptionError, match="no field 'nosuch'; choose of site, block"):
        sim.roles().rows(nosuch=1)
    with pytest.raises(OptionError, match="No role has the phase 'foo'"):
        list(sim.roles().rows(phase="foo", layer=0))
    assert not list(sim.roles().rows(phase="descent", site="forward_0.*"))


def test_modules_of_their_own_have_the_same_roles() -> None:
    """Sharing changes where tensors stand, and never what they do."""
    program = gpt_like(layers=1)
    shared, apart = (list(simulator(*program, max_length=12, reuse=reuse).roles()) for reuse in ("layer", "none"))
    assert {role.block.split(".")[0] for role in apart if role.phase != "gate"} == {
        f"{role.phase}_{role.step}" for role in apart if role.phase != "gate"
    }
    assert [replace(role, block="") for role in shared] == [replace(role, block="") for role in apart]


def test_json_is_compact_and_the_same_every_time(sim: TintForCausalLM) -> None:
    text = sim.roles().to_json()
    assert text == Roles(sim.program).to_json()
    found = json.loads(text)
    assert {"version", "layout", "weights", "heads", "modules"} == found.keys() and found["version"] == 1
    assert [module["site"] for module in found["modules"]] == list(dict.fromkeys(role.site for role in sim.roles()))
    rows = sum(len(found["heads"][one["heads"]]) for module in found["modules"] for one in module["applies"])
    heads = [role for role in sim.roles() if role.phase != "gate"]
    assert len(heads) <= rows < 1.3 * len(heads), "rows without an entry of a parameter are padding"


def test_blocks_are_where_the_tensors_are(sim: TintForCausalLM) -> None:
    names = dict(sim.named_modules())
    for role in sim.roles():
        assert f"sites.{role.site}" in names and f"structure.{role.block}" in names
        assert role.head < getattr(names[f"structure.{role.block}"], "n_heads", 1)
    assert isinstance(next(iter(sim.roles())), Role) and torch.is_tensor(names["structure.gates.update"].v_new)
