"""Which executor runs: fused only while the structural tensors are the compiler's own and nobody looks inside.

fp64 unless said otherwise; fused and literal agree to 1e-9 of the update.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fused_cases import family, relative_to_update, run, token_ids
from safetensors.torch import load_file, save_file
from torch import nn

import tintc
from tintc.errors import ArtefactError, OptionError
from tintc.lowering.emit import structure_specs
from tintc.runtime import structural as structural_module
from tintc.runtime.artefact import load, write_artefact
from tintc.runtime.fused.executor import FusedExecutor
from tintc.runtime.literal.machine import Machine
from tintc.runtime.model import TintForCausalLM

IDS = token_ids(2, 10)
MATTERS = "structure.linear_forward_bias.w_"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The executors of all runs, in order."""
    calls: list[str] = []
    for cls, name in ((FusedExecutor, "fused"), (Machine, "literal")):
        original: Callable[..., Any] = cls.run

        def record(self: Any, *args: Any, original: Any = original, name: str = name) -> Any:
            calls.append(name)
            return original(self, *args)

        monkeypatch.setattr(cls, "run", record)
    return calls


@pytest.fixture
def sim() -> TintForCausalLM:
    made = family("gpt2").compile(inner_lr=0.02)
    made.executor = "auto"
    return made


@pytest.fixture
def folder(sim: TintForCausalLM, tmp_path: Path) -> Path:
    return write_artefact(sim, tmp_path / "sim")


def structural(sim: TintForCausalLM) -> nn.Parameter:
    """A structural tensor whose value matters; asking for it brings all of them back."""
    return next(p for name, p in sim.named_parameters() if name.startswith(MATTERS))


def held(sim: TintForCausalLM) -> bool:
    return sim.__dict__["_held"]


def update_error(sim: TintForCausalLM) -> float:
    """How far the runs of auto and literal lie apart."""
    literal, auto = run(sim, IDS, "literal", return_before=True), run(sim, IDS, "auto")
    return relative_to_update(auto.logits, literal.logits, literal.logits_before)


def test_compiled_simulators_run_fused(sim: TintForCausalLM, ran: list[str]) -> None:
    assert update_error(sim) < 1e-9
    assert ran == ["literal", "fused"]


def test_loading_releases_structure_and_looking_brings_it_back(folder: Path, ran: list[str]) -> None:
    sim = load(folder)
    assert not held(sim)
    run(sim, IDS, "auto")
    run(sim, IDS, "fused")
    assert not held(sim) and ran == ["fused", "fused"]
    structural(sim)
    assert held(sim)
    assert update_error(sim) < 1e-9
    assert load(folder, executor="literal").__dict__["_held"]


@pytest.mark.parametrize(
    "look",
    [
        lambda sim: sim.structure,
        lambda sim: list(sim.parameters()),
        lambda sim: list(sim.named_buffers()),
        lambda sim: sim.state_dict(),
        lambda sim: list(sim.modules()),
        lambda sim: sim.get_submodule("structure.linear_forward"),
        lambda sim: sim.get_parameter("structure.gates.replace.v_old"),
        lambda sim: sim.apply(lambda module: None),
        lambda sim: list(sim.children()),
        lambda sim: dict(sim.named_children())["structure"],
    ],
)
def test_every_way_of_looking(folder: Path, look: Callable[[TintForCausalLM], object]) -> None:
    sim = load(folder)
    look(sim)
    assert held(sim)


def test_modes_moves_and_casts_do_not_look(folder: Path) -> None:
    sim = load(folder)
    assert not sim.train().eval().to("cpu").float().training
    assert all(not module.training for module in sim._every_module)
    assert not held(sim)


def test_edited_tensors_are_never_released(sim: TintForCausalLM) -> None:
    sim.release()
    assert not held(sim)
    with torch.no_grad():
        structural(sim).add_(0.01)
    with pytest.raises(OptionError, match="so they are kept"):
        sim.release()
    assert held(sim)


def test_the_state_dict_after_release_is_complete(folder: Path, sim: TintForCausalLM) -> None:
    before, after = sim.state_dict(), load(folder).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_released_simulator_writes_the_same_file(folder: Path, tmp_path: Path) -> None:
    again = write_artefact(load(folder), tmp_path / "again")
    for file in sorted(folder.iterdir()):
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name


def test_edits_in_memory_never_run_fused(folder: Path, ran: list[str], caplog: pytest.LogCaptureFixture) -> None:
    sim = load(folder)
    plain = run(sim, IDS, "fused")
    tensor = structural(sim)
    with torch.no_grad():
        tensor.add_(0.01)
    with caplog.at_level(logging.WARNING, "tintc"):
        changed, _ = run(sim, IDS, "auto"), run(sim, IDS, "auto")
    assert ran == ["fused", "literal", "literal"]
    assert len(caplog.records) == 1 and "structural tensors" in caplog.text
    handle = sim.register_forward_hook(lambda *_: None)
    with caplog.at_level(logging.WARNING, "tintc"):
        run(sim, IDS, "auto")
    handle.remove()
    assert len(caplog.records) == 2 and "carries a hook" in caplog.text, "each reason is said once"
    assert not torch.allclose(changed.logits, plain.logits)
    with pytest.raises(OptionError, match="cannot be used: the structural tensors"):
        run(sim, IDS, "fused")
    with torch.no_grad():
        tensor.sub_(0.01)
    if torch.equal(run(sim, IDS, "literal").logits, plain.logits):
        assert run(sim, IDS, "fused") is not None


def test_a_replaced_structural_parameter_never_runs_fused(folder: Path, ran: list[str]) -> None:
    """`load_state_dict`, with and without assigning, and a parameter put in another's place."""
    for assign in (False, True):
        sim = load(folder)
        state = {name: tensor.clone() for name, tensor in sim.state_dict().items()}
        name = next(name for name in state if name.startswith(MATTERS))
        state[name] = state[name] + 1
        sim.load_state_dict(state, assign=assign)
        run(sim, IDS, "auto")
    sim = load(folder)
    gate = sim.get_submodule("structure.gates.replace")
    assert isinstance(gate.v_old, nn.Parameter)
    gate.v_old = nn.Parameter(torch.zeros_like(gate.v_old))
    run(sim, IDS, "auto")
    assert ran == ["literal"] * 3


def test_edits_in_the_file_never_run_fused(folder: Path, ran: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """The compiler's digest in config.json is of the tensors it wrote, whatever stands in the file now."""
    plain = run(load(folder), IDS, "auto")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if name.startswith(MATTERS))
    tensors[name] = tensors[name] + 0.01
    save_file(tensors, file, {"format": "pt"})
    with caplog.at_level(logging.WARNING, "tintc"):
        sim = load(folder)
        found, again = run(sim, IDS, "auto"), run(sim, IDS, "literal")
    assert ran == ["fused", "literal", "literal"]
    assert len(caplog.records) == 1
    assert torch.equal(found.logits, again.logits)
    assert not torch.allclose(found.logits, plain.logits)
    with pytest.raises(OptionError):
        run(sim, IDS, "fused")


def test_saving_an_edited_simulator_does_not_launder_it(folder: Path, tmp_path: Path, ran: list[str]) -> None:
    sim = load(folder)
    with torch.no_grad():
        structural(sim).add_(0.01)
    changed = run(sim, IDS, "literal")
    other = load(write_artefact(sim, tmp_path / "edited"))
    assert torch.equal(run(other, IDS, "auto").logits, changed.logits)
    assert ran == ["literal", "literal"]


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"])
@pytest.mark.parametrize("where", ["", "sites", "structure.linear_forward", "prefixes.transformer.h.0.attn.c_proj"])
def test_hooks_run_literally_while_they_are_there(
    folder: Path, ran: list[str], caplog: pytest.LogCaptureFixture, kind: str, where: str
) -> None:
    sim = load(folder)
    module = sim.get_submodule(where)
    module = (
        next(iter(module.modules()))
        if where != "sites"
        else next(m for m in module.modules() if not list(m.children()))
    )
    handle = getattr(module, kind)(lambda *_: None)
    name = next(name for name, found in sim.named_modules() if found is module)
    with caplog.at_level(logging.WARNING, "tintc"):
        run(sim, IDS, "auto")
        run(sim, IDS, "auto")
    assert len(caplog.records) == 1
    assert f"{name or 'the simulator itself'} carries a hook" in caplog.text
    assert (sim.why_literal() or "no reason") in caplog.text
    with pytest.raises(OptionError, match="hook"):
        run(sim, IDS, "fused")
    handle.remove()
    run(sim, IDS, "auto")
    assert ran == ["literal", "literal", "fused"]


def test_trained_weights_and_rates_run_fused(folder: Path, ran: list[str]) -> None:
    """Prefixes, tables and rates are not structural: an outer step changes them, and fused reads the new ones."""
    sim = load(folder)
    plain = run(sim, IDS, "auto")
    chosen = list(sim.trainable("prefixes", "tables", "rates").parameters())
    loss = sim(IDS, labels=IDS).loss
    assert loss is not None
    for parameter, gradient in zip(chosen, torch.autograd.grad(loss, chosen), strict=True):
        parameter.data.sub_(0.1 * gradient)
    assert update_error(sim) < 1e-9
    assert not torch.allclose(run(sim, IDS, "auto").logits, plain.logits)
    assert ran == ["fused", "fused", "literal", "fused", "fused"]


def test_deep_copies(folder: Path, ran: list[str]) -> None:
    """Of a released simulator and of one that holds its structure; an edit of the copy is the copy's alone."""
    sim = load(folder)
    plain = run(sim, IDS, "auto")
    for look in (False, True):
        if look:
            structural(sim)
        other = copy.deepcopy(sim)
        assert torch.allclose(run(other, IDS, "auto").logits, plain.logits, rtol=1e-12)
        with torch.no_grad():
            structural(other).add_(0.01)
        run(other, IDS, "auto")
        assert torch.allclose(run(sim, IDS, "auto").logits, plain.logits, rtol=1e-12)
    assert ran == ["fused", *["fused", "literal", "fused"] * 2]


@pytest.mark.parametrize("look", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_casts_stay_the_compiler_s_own(folder: Path, ran: list[str], dtype: torch.dtype, look: bool) -> None:
    """In another dtype the tensors are still the compiler's; an edit before or after the cast still shows."""
    sim = load(folder)
    if look:
        structural(sim)
    sim.to(dtype)
    assert run(sim, IDS, "auto").logits.dtype == dtype
    assert all(p.dtype == dtype for name, p in sim.named_parameters() if name.startswith("structure."))
    assert run(sim, IDS, "auto").logits.dtype == dtype
    assert run(load(folder, dtype=dtype), IDS, "auto").logits.dtype == dtype
    with torch.no_grad():
        structural(sim).add_(0.5)
    run(sim, IDS, "auto")
    sim.to(torch.float64)
    run(sim, IDS, "auto")
    assert ran == ["fused", "fused", "fused", "literal", "literal"]


def test_an_executor_that_is_unknown(sim: TintForCausalLM, folder: Path) -> None:
    for attempt in (lambda: run(sim, IDS, "quick"), lambda: load(folder, executor="quick")):
        with pytest.raises(OptionError, match=r"unknown; choose one of auto, fused, literal\."):
            attempt()


def test_load_and_from_pretrained_pass_the_executor_on(folder: Path, ran: list[str]) -> None:
    for executor in ("auto", "fused", "literal"):
        sim = tintc.load(folder, executor=executor)
        assert sim.executor == executor
        with torch.no_grad():
            sim(IDS)
    assert ran == ["fused", "fused", "literal"]


def test_what_is_compiled_in_memory_is_released_unless_somebody_looked(sim: TintForCausalLM) -> None:
    complete = sorted(structure_specs(sim.program))
    fresh = family("gpt2").compile(inner_lr=0.02)
    fresh.executor = "auto"
    plain = run(fresh, IDS, "auto")
    assert not held(fresh)
    assert sorted(name for name in fresh.state_dict() if name.startswith("structure.")) == complete
    structural(sim)
    assert torch.equal(run(sim, IDS, "auto").logits, plain.logits) and held(sim)


def test_coming_back_from_a_file_that_has_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tensors that come back are the ones that were released, or none do."""
    sims, right = [load(folder) for _ in range(2)], load(folder).state_dict()
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if name.startswith(MATTERS))
    tensors[name] = tensors[name] + 0.01
    file.unlink()
    save_file(tensors, file, {"format": "pt"})
    assert torch.equal(sims[0].state_dict()[name], right[name])
    emitted = structure_specs(sims[1].program)
    changed = {key: replace(spec, build=lambda spec=spec: spec.build() + 1) for key, spec in emitted.items()}
    monkeypatch.setattr(structural_module, "structure_specs", lambda program: changed)
    with pytest.raises(ArtefactError, match="load the simulator again"):
        sims[1].state_dict()
    assert run(sims[1], IDS, "auto").logits.shape == (2, 10, 53)


def test_a_cast_simulator_that_was_saved_brings_its_tensors_back(folder: Path, tmp_path: Path) -> None:
    sim = load(folder).to(torch.bfloat16)
    other = load(write_artefact(sim, tmp_path / "short"))
    assert not held(other)
    sim.release()
    again = sim.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in other.state_dict().items())


def test_shards_of_a_file(folder: Path, tmp_path: Path, ran: list[str]) -> None:
    """Structural tensors in several files are found, checked and brought back."""
    sim = load(folder)
    sim.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    other = load(tmp_path / "shards")
    assert torch.allclose(run(other, IDS, "auto").logits, run(sim, IDS, "auto").logits, rtol=0, atol=1e-12)
    assert not held(other) and ran == ["fused", "fused"]
    assert all(torch.equal(tensor, sim.state_dict()[name]) for name, tensor in other.state_dict().items())
