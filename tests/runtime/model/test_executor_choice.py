"""Which executor runs: fused only while the structural tensors are the compiler's own and nobody looks inside.

fp64 unless said otherwise; fused and literal agree to 1e-9 of the update.
"""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from command import contents, finished, forked
from fused_cases import relative_to_update, run, token_ids
from programs import Imported, import_model
from safetensors.torch import load_file, save_file
from tiny_models import gpt2
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

import tintc
from tintc.errors import OptionError
from tintc.lowering.emission.emit import structure_specs
from tintc.runtime.execution.fused.executor import FusedExecutor
from tintc.runtime.execution.literal.executor import LiteralExecutor
from tintc.runtime.load import load, write_artefact
from tintc.runtime.model.causal_lm import TintForCausalLM

IDS = token_ids(2, 10)
MATTERS = "structure.linear_forward_bias.w_"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The executors of all runs, in order."""
    calls: list[str] = []
    for cls, name in ((FusedExecutor, "fused"), (LiteralExecutor, "literal")):
        original: Callable[..., Any] = cls.run

        def record(self: Any, *args: Any, original: Any = original, name: str = name) -> Any:
            calls.append(name)
            return original(self, *args)

        monkeypatch.setattr(cls, "run", record)
    return calls


@pytest.fixture(scope="module")
def imported() -> Imported:
    """A model of one layer: which executor runs is not a matter of layers."""
    return import_model(gpt2(n_layers=1, n_heads=3, head_dim=6, d_ff=31))


@pytest.fixture
def sim(imported: Imported) -> TintForCausalLM:
    made = imported.compile(inner_lr=0.02)
    made.executor = "auto"
    return made


@pytest.fixture(scope="module")
def folder(imported: Imported, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What many tests load and none may change."""
    made = write_artefact(imported.compile(inner_lr=0.02), tmp_path_factory.mktemp("choice") / "sim")
    before = contents(made)
    yield made
    assert contents(made) == before, "a test has changed what all load"


@pytest.fixture(scope="module")
def one_for_all(folder: Path) -> TintForCausalLM:
    return load(folder)


@pytest.fixture
def loaded(one_for_all: TintForCausalLM, monkeypatch: pytest.MonkeyPatch) -> TintForCausalLM:
    """For tests that leave it as it was: a simulator that has said nothing yet."""
    monkeypatch.setattr(one_for_all, "_warnings_given", set())
    return one_for_all


def structural(sim: TintForCausalLM) -> nn.Parameter:
    """A structural tensor whose value matters."""
    return next(p for name, p in sim.named_parameters() if name.startswith(MATTERS))


def update_error(sim: TintForCausalLM) -> float:
    """How far the runs of auto and literal lie apart."""
    literal, auto = run(sim, IDS, "literal", return_before=True), run(sim, IDS, "auto")
    return relative_to_update(auto.logits, literal.logits, literal.logits_before)


def test_compiled_simulators_run_fused(sim: TintForCausalLM, ran: list[str]) -> None:
    assert update_error(sim) < 1e-9
    assert ran == ["literal", "fused"]


LOOKS: dict[str, Callable[[TintForCausalLM], object]] = {
    "attribute": lambda sim: sim.structure,
    "parameters": lambda sim: list(sim.parameters()),
    "state dict": lambda sim: sim.state_dict(),
    "submodule": lambda sim: sim.get_submodule("structure.linear_forward"),
    "apply": lambda sim: sim.apply(lambda module: None),
    "modes": lambda sim: sim.train().eval(),
    "moves": lambda sim: sim.to("cpu").double(),
    "its own state": lambda sim: sim.load_state_dict(sim.state_dict()),
    "its own state, assigned": lambda sim: sim.load_state_dict(sim.state_dict(), assign=True),
}


def test_looking_changes_nothing(folder: Path, ran: list[str]) -> None:
    """Parameters, state dicts, modes and moves are PyTorch's own: everything is there, and runs stay fused."""
    sim = load(folder)
    for name, look in LOOKS.items():
        before = {key: tensor.data_ptr() for key, tensor in sim.state_dict().items()}
        look(sim)
        run(sim, IDS, "auto")
        after = {key: tensor.data_ptr() for key, tensor in sim.state_dict().items()}
        assert after == before, name
    assert ran == ["fused"] * len(LOOKS)


def test_threads_see_all_parameters(folder: Path) -> None:
    sim = load(folder)
    complete = len(structure_specs(sim.program))
    with ThreadPoolExecutor(4) as pool:
        counts = list(
            pool.map(lambda _: sum(1 for n, _ in sim.named_parameters() if n.startswith("structure.")), "x" * 40)
        )
    assert counts == [complete] * 40


def test_wrapped_simulators_load_their_state(folder: Path, ran: list[str]) -> None:
    """A state dict goes through any module around the simulator, as DDP and Lightning put one there."""
    wrapper, other = nn.Sequential(load(folder)), nn.Sequential(load(folder))
    state = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    name = next(name for name in state if "prefixes." in name)
    state[name] += 1
    assert not any(wrapper.load_state_dict(state))
    assert torch.equal(wrapper.state_dict()[name], state[name])
    run(cast(TintForCausalLM, wrapper[0]), IDS, "auto")
    assert ran == ["fused"]


def test_a_run_leaves_the_number_of_threads(folder: Path) -> None:
    """A thread that first uses torch while a simulator runs has as many threads as the process."""
    sim, counts = load(folder), list[int]()

    def on_two_threads() -> None:  # in a fork: what forks later must not have had a second thread
        torch.set_num_threads(2)
        with sim.edit({"layers.0.residual": lambda x: (counts.append(torch.get_num_threads()), x)[1]}):
            run(sim, IDS, "fused")
        assert counts and set(counts) == {2}

    result = finished(forked(on_two_threads))
    assert result.code == 0, result.err


def test_saving_again_writes_the_same_file(folder: Path, tmp_path: Path) -> None:
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


def test_edits_in_the_file_never_run_fused(
    folder: Path, tmp_path: Path, ran: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The compiler's digest in config.json is of the tensors it wrote, whatever stands in the file now."""
    plain = run(load(folder), IDS, "auto")
    folder = Path(shutil.copytree(folder, tmp_path / "sim"))
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if name.startswith(MATTERS))
    tensors[name] = tensors[name] + 0.01
    save_file(tensors, file, {"format": "pt"})
    with caplog.at_level(logging.WARNING, "tintc"):
        sim = load(folder)
        found, again = run(sim, IDS, "auto"), run(sim, IDS, "literal")
    assert ran == ["fused", "literal", "literal"]
    edited, literally = [record.getMessage() for record in caplog.records]
    assert "was edited, or damaged, after it was compiled: model.safetensors" in edited
    assert literally.startswith("running literally, ")
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
    loaded: TintForCausalLM, ran: list[str], caplog: pytest.LogCaptureFixture, kind: str, where: str
) -> None:
    sim = loaded
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
    chosen = [p for p in sim.trainable("prefixes", "tables", "rates").parameters() if p.requires_grad]
    loss = sim(IDS, labels=IDS).loss
    assert loss is not None
    for parameter, gradient in zip(chosen, torch.autograd.grad(loss, chosen), strict=True):
        parameter.data.sub_(0.1 * gradient)
    assert update_error(sim) < 1e-9
    assert not torch.allclose(run(sim, IDS, "auto").logits, plain.logits)
    assert ran == ["fused", "fused", "literal", "fused", "fused"]


def test_deep_copies(folder: Path, ran: list[str]) -> None:
    """An edit of the copy is the copy's alone."""
    sim = load(folder)
    plain = run(sim, IDS, "auto")
    other = copy.deepcopy(sim)
    assert torch.allclose(run(other, IDS, "auto").logits, plain.logits, rtol=1e-12)
    with torch.no_grad():
        structural(other).add_(0.01)
    run(other, IDS, "auto")
    assert torch.allclose(run(sim, IDS, "auto").logits, plain.logits, rtol=1e-12)
    assert ran == ["fused", "fused", "literal", "fused"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_casts_stay_the_compiler_s_own(folder: Path, ran: list[str], dtype: torch.dtype) -> None:
    """In another dtype the tensors are still the compiler's; an edit before or after the cast still shows."""
    sim = load(folder)
    sim.to(dtype)
    assert run(sim, IDS, "auto").logits.dtype == dtype
    sim.to(torch.float64).to(dtype)
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
    """Whoever sets it is told at once, and what was set before stays."""
    for attempt in (lambda: setattr(sim, "executor", "quick"), lambda: load(folder, executor="quick")):
        with pytest.raises(OptionError, match=r"unknown; choose one of auto, fused, literal\."):
            attempt()
    assert sim.executor == "auto" and run(sim, IDS, "auto").logits.isfinite().all()


def test_load_and_from_pretrained_pass_the_executor_on(folder: Path, ran: list[str]) -> None:
    for executor in ("auto", "fused", "literal"):
        sim = tintc.load(folder, executor=executor)
        assert sim.executor == executor
        with torch.no_grad():
            sim(IDS)
    assert ran == ["fused", "fused", "literal"]


def test_float16_is_refused(folder: Path, tmp_path: Path) -> None:
    """Before anything is cast, and where it was cast by other means, before a run and before anything is written."""
    sim = load(folder)
    with pytest.raises(OptionError, match="does not compute in float16"):
        sim.half()
    assert {tensor.dtype for tensor in sim.state_dict().values()} == {torch.float64}
    sim.to(torch.float16)
    for attempt in (lambda: run(sim, IDS, "auto"), lambda: sim.save_pretrained(tmp_path / "half")):
        with pytest.raises(OptionError, match="does not compute in float16"):
            attempt()
    assert not (tmp_path / "half").exists()
    with pytest.raises(OptionError, match="dtype 'float16' is not supported"):
        TintForCausalLM.from_pretrained(folder, dtype=torch.float16)


def test_rates_and_frequencies_keep_their_precision(folder: Path) -> None:
    sim = load(folder, dtype="float32")
    rate = next(name for name in sim.state_dict() if "rates." in name)
    stored = sim.state_dict()[rate].clone()
    sim.to(torch.bfloat16)
    kinds = {name.partition(".")[0]: tensor.dtype for name, tensor in sim.state_dict().items()}
    assert kinds == dict.fromkeys(("tables", "prefixes", "structure"), torch.bfloat16) | {"rates": torch.float32}
    assert torch.equal(sim.state_dict()[rate], stored)


def test_a_value_written_behind_torch_s_back(folder: Path, ran: list[str]) -> None:
    """``.data`` escapes torch's count of writes, and is caught by the sample of numbers."""
    sim = load(folder)
    run(sim, IDS, "auto")
    structural(sim).data.add_(0.01)
    run(sim, IDS, "auto")
    assert ran == ["fused", "literal"]


def test_hooks_for_every_module_are_heard(loaded: TintForCausalLM, ran: list[str]) -> None:
    sim, heard = loaded, set[str]()
    handle = register_module_forward_hook(lambda module, *_: heard.add(type(module).__name__))
    try:
        run(sim, IDS, "auto")
        assert "every module" in (sim.why_literal() or "")
    finally:
        handle.remove()
    run(sim, IDS, "auto")
    assert ran == ["literal", "fused"] and "SimModule" in heard


def test_hooks_that_never_fire_are_said(
    loaded: TintForCausalLM, ran: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    sim = loaded
    name = "sites.forward_0.transformer"
    handle = sim.get_submodule(name).register_forward_hook(lambda *_: None)
    with caplog.at_level(logging.WARNING, "tintc"):
        run(sim, IDS, "auto")
        run(sim, IDS, "auto")
    handle.remove()
    assert ran == ["literal"] * 2
    assert [record.getMessage() for record in caplog.records if "never fires" in record.getMessage()] == [
        f"the hook on {name} never fires, because it only groups modules; hook those below it"
    ]


def test_added_modules_run_literally(folder: Path, ran: list[str]) -> None:
    sim = load(folder)
    sim.sites.add_module("adapter", nn.Identity())
    run(sim, IDS, "auto")
    assert ran == ["literal"] and "added" in (sim.why_literal() or "")


def test_shards_of_a_file(folder: Path, tmp_path: Path, ran: list[str]) -> None:
    """Structural tensors in several files are found, checked and brought back."""
    sim = load(folder)
    sim.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    other = load(tmp_path / "shards")
    assert torch.allclose(run(other, IDS, "auto").logits, run(sim, IDS, "auto").logits, rtol=0, atol=1e-12)
    assert ran == ["fused", "fused"]
    assert all(torch.equal(tensor, sim.state_dict()[name]) for name, tensor in other.state_dict().items())
