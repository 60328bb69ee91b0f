"""Explicit fine-tuning on the exported graph: with all approximations it is the simulator's interpreter, with none
plain autograd on the eager model. fp64; 1e-9 of the update where nothing else is said."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fused_cases import FAMILIES, compiled, run
from programs import relative_to_update
from safetensors.torch import load_file
from tiny_models import gpt2, llama, opt, relative, token_ids
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from tintc.errors import InputError, ModelError, OptionError, UnsupportedModelError
from tintc.frontend.graph.captured import CapturedGraph
from tintc.frontend.graph.trace_model import capture
from tintc.frontend.source.load import load_auxiliary
from tintc.ir.auxiliary.interpreter import view
from tintc.ir.inputs import resolve_inputs
from tintc.ir.simulator.interface.interpreter import interpret
from tintc.ir.simulator.interface.semantics import Weights
from tintc.option_facts import LOSSES
from tintc.reference import Approximations, Difference, Tuned, tune
from tintc.reference.approximations import DESCENDS, GROUPS
from tintc.reference.simulated_gradients import first_step, simulated_gradients
from tools.sweep.tiny import tiny_model

LENGTH, LR = 11, 0.02
IDS = token_ids(2, LENGTH)
PREFIX = (torch.arange(LENGTH) < 6).expand(2, LENGTH)
MIDDLE = ((torch.arange(LENGTH) > 2) & (torch.arange(LENGTH) < 9)).expand(2, LENGTH)
NONE = Approximations()


@cache
def graph(name: str) -> CapturedGraph:
    return capture(FAMILIES[name]())


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)])


def interpreted(sim: Any, mask: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Logits of the simulator's interpreter, and the gradients that its first step descends by."""
    inputs = resolve_inputs(IDS, mask, semantics=sim.config.semantics)
    made = first_step(sim.program)
    kept, outputs = sim.program.outputs, ("logits_before", "logits")
    sim.program.outputs = kept | made
    try:
        found: dict[str, Any] = interpret(sim.program, sim.state_dict(), inputs, (*outputs, *made))
    finally:
        sim.program.outputs = kept
    gradients = {}
    for name, value in made.items():
        weights = found[name]
        assert isinstance(weights, Weights)
        for part, new in (("weight", weights.weight), ("bias", weights.bias)):
            parameter = sim.program.parameters.get(f"{name}.{part}")
            if parameter is not None and new is not None and (part == "bias" or value.type.kind == "linear"):
                old = dict(sim.prefix(name).named_parameters())[part].detach()
                old = old.flatten(0, 1)[: new.shape[1]] if part == "weight" else old
                gradients[f"{name}.{part}"] = (old - new) / LR
    return {label: found[label] for label in outputs}, gradients


def every_pair() -> Iterator[tuple[str, str, str, Tensor]]:
    """Yield families, losses, semantics and masks, every two of them together at least once."""
    masks = (PREFIX, MIDDLE)
    for row, name in enumerate(FAMILIES):
        for column, loss in enumerate(LOSSES):
            yield name, loss, ("exact", "paper-code")[(row + column) % 2], masks[(row + column // 2) % 2]


@pytest.mark.parametrize(("name", "loss", "semantics", "mask"), list(every_pair()))
def test_with_all_approximations_it_is_the_simulator(name: str, loss: str, semantics: str, mask: Tensor) -> None:
    """Two steps on the top two of three layers; train tokens that are a prefix of the text, and such that are not."""
    options: dict[str, Any] = {"n_steps": 2, "n_update_layers": 2, "inner_lr": LR, "loss": loss, "semantics": semantics}
    sim = compiled(name, **options)
    logits, gradients = interpreted(sim, mask)
    tuned = tune(graph(name), IDS, mask, **options)
    before, after = logits["logits_before"], logits["logits"]
    assert float((after - before).norm()) > 0 and len(gradients) > 10
    assert relative_to_update(tuned.logits, after, before) < 1e-9
    assert float((tuned.logits_before - before).norm() / (after - before).norm()) < 1e-9
    seen = {source: torch.zeros_like(tensor) for source, tensor in tuned.gradients[0].items()}
    for name, right in gradients.items():
        parameter = sim.program.parameters[name]
        for row, gradient in enumerate(right):
            found = view(parameter, tuned.gradients[0][parameter.source][row])
            assert float((found - gradient).norm()) < 1e-9 * float(gradient.norm()), name
            seen[parameter.source][row] += tuned.gradients[0][parameter.source][row].abs()
    assert all(torch.equal(seen[name] > 0, g != 0) for name, g in tuned.gradients[0].items()), "nothing else descends"


RULES: list[dict[str, Any]] = [
    {"optimizer": "momentum", "decay": 0.5},
    {"optimizer": "normalized", "inner_lr": 0.3},
    {"optimizer": "normalized", "normalize": "all", "momentum": 0.5, "decay": 0.3, "inner_lr": 0.5},
]


@pytest.mark.parametrize(
    ("name", "rule"),
    [("gpt2", RULES[1]), ("gpt2", RULES[2]), ("llama", RULES[0]), ("llama", RULES[1])],
    ids=["gpt2-normalized", "gpt2-all", "llama-momentum", "llama-normalized"],
)
def test_it_takes_the_simulators_steps(name: str, rule: dict[str, Any]) -> None:
    """GPT-2 has query, key and value in one tensor, of which rows descend; LLaMA a norm of gains alone."""
    options: dict[str, Any] = {"n_steps": 2, "n_update_layers": 2, "inner_lr": LR} | rule
    sim = compiled(name, **options)
    before, after = (run(sim, IDS, return_before=True)[key] for key in ("logits_before", "logits"))
    tuned = tune(graph(name), IDS, **options)
    assert relative_to_update(tuned.logits, after, before) < 1e-9
    gradients = simulated_gradients(sim, resolve_inputs(IDS[:1]))
    for name, gradient in gradients.items():
        parameter = sim.program.parameters[name]
        found = view(parameter, tuned.gradients[0][parameter.source][0])
        assert float((found - gradient).norm()) < 1e-8 * float(gradient.norm()), name


def test_steps_of_every_parameter_are_torchs() -> None:
    """Momentum without approximations is `torch.optim.SGD`'s, two steps, on the eager model."""
    model, ids = gpt2(n_layers=1).double(), IDS[:1]
    rule: dict[str, Any] = {"optimizer": "momentum", "momentum": 0.7, "n_steps": 2, "inner_lr": LR}
    tuned = tune(model, ids, torch.ones_like(ids), approximations=NONE, **rule)
    optimiser = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.7)
    for _ in range(2):
        optimiser.zero_grad()
        F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum").backward()
        optimiser.step()
    with torch.no_grad():
        assert relative_to_update(tuned.logits, model(ids).logits, tuned.logits_before) < 1e-9


def test_normalised_steps_of_every_parameter() -> None:
    """Without approximations each tensor moves by the rate, or all together do."""
    model, ids = gpt2(n_layers=1).double(), IDS[:1]
    for norm_of in ("weight", "all"):
        rule: dict[str, Any] = {"optimizer": "normalized", "normalize": norm_of, "inner_lr": 0.1}
        tuned = tune(model, ids, torch.ones_like(ids), approximations=NONE, **rule)
        lengths = {name: float(g.norm()) for name, g in tuned.gradients[0].items()}
        size = math.hypot(*lengths.values())
        moved = {
            name: p - 0.1 * tuned.gradients[0][name][0] / (size if norm_of == "all" else lengths[name])
            for name, p in model.named_parameters()
            if lengths[name]
        }
        with torch.no_grad():
            right = torch.func.functional_call(model, moved, (ids,)).logits
        assert relative_to_update(tuned.logits, right, tuned.logits_before) < 1e-9


def stepped(model: PreTrainedModel, ids: Tensor, lr: float) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Logits before and after one step of torch's SGD on a whole text, and the gradients."""
    before = model(ids).logits
    loss = F.cross_entropy(before[0, :-1], ids[0, 1:], reduction="sum")
    model.zero_grad()
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    torch.optim.SGD(model.parameters(), lr=lr).step()
    with torch.no_grad():
        return before.detach(), model(ids).logits, gradients


@pytest.mark.parametrize(("make", "tolerance"), [(gpt2, 1e-9), (opt, 1e-9), (llama, 1e-5)])
def test_with_none_it_is_autograd(make: Callable[..., PreTrainedModel], tolerance: float) -> None:
    """Every parameter of the eager model, tied embeddings included. LLaMA's norms compute in fp32 in any dtype."""
    model, ids = make(n_layers=1).double(), IDS[:1]
    tuned = tune(model, ids, torch.ones_like(ids), inner_lr=LR, approximations=NONE)
    before, after, gradients = stepped(model, ids, LR)
    assert relative_to_update(tuned.logits, after, before) < tolerance
    assert float((tuned.logits_before - before).norm() / (after - before).norm()) < tolerance
    assert set(tuned.gradients[0]) == set(gradients)
    size = flat(gradients).norm()
    for name, gradient in gradients.items():
        assert float((tuned.gradients[0][name][0] - gradient).norm() / size) < tolerance, name
    assert float(tuned.losses[0, 0]) == pytest.approx(float(F.cross_entropy(before[0, :-1], ids[0, 1:])) * (LENGTH - 1))


def test_each_switch_is_its_own() -> None:
    """Starting from none, every approximation changes gradients that it concerns, and the logits before stay."""
    token = Difference("token", 1e-3)
    exact = tune(graph("gpt2"), IDS, MIDDLE, approximations=NONE)
    switches = {"scores": True, "norms": token, "activations": token, "groups": DESCENDS, "train_tokens": True}
    for name, value in switches.items():
        found = tune(graph("gpt2"), IDS, MIDDLE, approximations=Approximations(**{name: value}))
        assert relative(found.logits_before, exact.logits_before) < 1e-12
        shared = set(found.gradients[0]) & set(exact.gradients[0])
        assert not all(torch.equal(found.gradients[0][key], exact.gradients[0][key]) for key in shared), name
        if name in ("norms", "activations"):
            assert relative(flat(found.gradients[0]), flat(exact.gradients[0])) < 1e-2, "to first order it is right"
    assert set(tune(graph("gpt2"), IDS, MIDDLE).gradients[0]) < set(exact.gradients[0])


def test_detached_scores_leave_queries_and_keys_without_gradient() -> None:
    everything = Approximations(groups=GROUPS)
    for approximations, zero in ((everything, False), (Approximations(scores=True, groups=GROUPS), True)):
        gradient = tune(graph("gpt2"), IDS, PREFIX, approximations=approximations).gradients[0]
        q, k, v = gradient["transformer.h.0.attn.c_attn.weight"].chunk(3, 2)
        assert bool((q == 0).all()) == bool((k == 0).all()) == zero and float(v.abs().max()) > 0


@pytest.mark.parametrize("kind", ["norms", "activations"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_differences_are_of_first_order(name: str, kind: str) -> None:
    """A tenth of the step is a tenth of the error (Thms. F.4, G.4), within 15 %."""
    exact = flat(tune(graph(name), IDS, PREFIX, approximations=NONE).gradients[0])
    errors = []
    for step in (1e-4, 1e-5):
        switch: dict[str, Any] = {kind: Difference("token", step)}
        chosen = Approximations(**switch)
        errors.append(float((flat(tune(graph(name), IDS, PREFIX, approximations=chosen).gradients[0]) - exact).norm()))
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.15)


def test_groups_and_layers() -> None:
    """Only the rows named descend: of GPT-2's fused projection the values', of norms the biases."""
    found = tune(graph("gpt2"), IDS, PREFIX, n_update_layers=1).gradients[0]
    assert all(".h.2." in name or "ln_f" in name for name in found) and "transformer.ln_f.weight" not in found
    q, k, v = found["transformer.h.2.attn.c_attn.weight"].chunk(3, 2)
    assert not q.any() and not k.any() and v.any()
    gains = tune(graph("gpt2"), IDS, PREFIX, approximations=Approximations(groups=frozenset({"norm-gain"})))
    assert {name.rsplit(".", 2)[1] for name in gains.gradients[0]} == {"ln_1", "ln_2", "ln_f"}
    with pytest.raises(OptionError, match="has 3"):
        tune(graph("gpt2"), IDS, PREFIX, n_update_layers=4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3_text", "phi", pytest.param("qwen3", marks=pytest.mark.slow)])
def test_the_exact_gradient_of_the_same_layers(name: str) -> None:
    """All parameters of the top layer and of the final norm, query norms and computed gains among them; their gradients
    are those of the whole model's."""
    whole = graph(name) if name in FAMILIES else capture(tiny_model(name, intermediate_size=75))
    everything = tune(whole, IDS, PREFIX, approximations=NONE).gradients[0]
    found = tune(whole, IDS, PREFIX, n_update_layers=1, approximations=NONE).gradients[0]
    places = [re.search(r"(?:layers|h)\.(\d+)\.", key) for key in everything]
    last = max(int(place[1]) for place in places if place)
    of_layer = {key for key, place in zip(everything, places, strict=True) if place and int(place[1]) == last}
    assert len(of_layer) > 5 and of_layer < found.keys()
    others = found.keys() - of_layer
    assert others and all("norm" in key or "ln_f" in key for key in others), others
    assert all(torch.equal(gradient, everything[key]) for key, gradient in found.items())
    with pytest.raises(OptionError, match=f"choose 1 to {last + 1}"):
        tune(whole, IDS, PREFIX, n_update_layers=last + 2, approximations=NONE)


def test_the_three_lines_of_the_guide() -> None:
    """The exact gradient of the top layers, as the guide has it."""
    text = (Path(__file__).parents[2] / "docs" / "guide.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(from tintc\.reference import .*?)^```", text, re.MULTILINE | re.DOTALL)
    seen: dict[str, Any] = {"model": gpt2(n_layers=4), "ids": IDS}
    exec(block.replace('"path/to/model"', "model"), seen)
    assert len(re.findall(r"^(from|exact)", block, re.MULTILINE)) == 3
    names = seen["exact"].gradients[0]
    assert any(".h.1.attn.c_attn" in name for name in names) and not any(".h.0." in name for name in names)
    assert seen["exact"].logits.shape == (*IDS.shape, 53)


@pytest.mark.parametrize(
    "groups", ["ffn,norm-gain", ["ffn", "norm-gain"], ("ffn", "norm-gain"), (one for one in ("norm-gain", "ffn"))]
)
def test_groups_are_named_in_any_way(groups: Any) -> None:
    given = Approximations(groups=groups)
    assert given == Approximations(groups=frozenset({"ffn", "norm-gain"})) and hash(given)
    found = tune(graph("gpt2"), IDS, PREFIX, approximations=given).gradients[0]
    assert all("mlp" in key or "ln" in key for key in found)


def test_groups_that_do_not_exist() -> None:
    for groups in ("ffn,gates", ["gates"], "ffn, values"):
        with pytest.raises(OptionError, match=r"is unknown; choose among .*values"):
            Approximations(groups=groups)


def test_fields_are_those_of_a_simulators_output() -> None:
    """The old names still work, and say so. Without a mask the first half of each text is trained on, as there."""
    found, padding = tune(graph("gpt2"), IDS), (torch.arange(LENGTH) > 2).expand(2, -1)
    assert torch.equal(found.logits, tune(graph("gpt2"), IDS, torch.arange(LENGTH).expand(2, -1) < 5).logits)
    padded = tune(graph("gpt2"), IDS, attention_mask=padding)
    right = resolve_inputs(IDS, None, None, padding).train
    assert torch.equal(padded.logits, tune(graph("gpt2"), IDS, right, attention_mask=padding).logits)
    with pytest.warns(DeprecationWarning, match="called logits_before now"):
        assert found.before is found.logits_before
    with pytest.warns(DeprecationWarning, match="called logits now"):
        assert found.after is found.logits


def test_the_authors_bias_rule_counts_a_bias_once_per_tile() -> None:
    """Width 16, feed-forward 45: three tiles."""
    with_rule, without = (
        tune(graph("opt"), IDS, PREFIX, approximations=Approximations(groups=DESCENDS, tiled_bias=on)).gradients[0]
        for on in (True, False)
    )
    ratios = {name: with_rule[name].norm() / without[name].norm() for name in without if without[name].any()}
    assert all(float(r) == pytest.approx(3 if name.endswith("fc2.bias") else 1) for name, r in ratios.items())


def test_mse_pulls_the_last_hidden_state_to_the_next_embedding() -> None:
    model = opt(n_layers=1).double()
    found = tune(model, IDS[:1], torch.ones_like(IDS[:1]), loss="mse", approximations=NONE)
    hidden = model.model(IDS[:1]).last_hidden_state
    head = model.lm_head.weight.detach()
    (0.5 * (hidden[0, :-1] - head[IDS[0, 1:]]).square().sum()).backward()
    for name, parameter in model.named_parameters():
        right = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert float((found.gradients[0][name][0] - right).norm()) < 1e-9 * max(1, float(right.norm())), name


def test_losses_and_masks_of_every_step() -> None:
    """Different data in each step; `loss_mask` drops targets; nothing is trained on fewer than two tokens."""
    masks = torch.stack([PREFIX, MIDDLE])
    both = tune(graph("opt"), IDS, masks, n_steps=2, inner_lr=LR)
    assert torch.equal(
        both.gradients[0]["model.decoder.layers.0.fc1.weight"],
        tune(graph("opt"), IDS, PREFIX, inner_lr=LR).gradients[0]["model.decoder.layers.0.fc1.weight"],
    )
    logits = both.logits_before[0]
    targets = F.cross_entropy(logits[:-1], IDS[0, 1:], reduction="none")
    assert float(both.losses[0, 0]) == pytest.approx(float(targets[:5].sum()))
    label = torch.zeros(2, LENGTH)
    label[:, 4] = 1
    assert float(tune(graph("opt"), IDS, PREFIX, loss_mask=label).losses[0, 0]) == pytest.approx(float(targets[3]))
    still = tune(graph("opt"), IDS, torch.arange(LENGTH).expand(2, -1) < 1, inner_lr=LR)
    assert torch.equal(still.logits_before, still.logits)
    with pytest.raises(InputError, match="do not fit"):
        tune(graph("opt"), IDS, PREFIX[:, :4])


def test_a_folder_is_tuned_as_its_model(tmp_path: Path) -> None:
    """To the last bit: the same graph with the same weights."""
    model = gpt2(n_layers=1)
    model.save_pretrained(tmp_path / "model")
    ids = torch.arange(8)[None]
    found = [tune(given, ids, inner_lr=LR).logits for given in (model, tmp_path / "model", str(tmp_path / "model"))]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"inner_lr": [1e-4, 1e-3]}, OptionError, "tune takes one number, for every step and text"),
        ({"inner_lr": torch.tensor([1e-4, 1e-3])}, OptionError, "tune takes one number"),
        ({"n_steps": 1.5}, OptionError, "n_steps is 1.5; it must be a whole number"),
        ({"n_step": 2}, OptionError, "tune has no argument 'n_step'; 'n_steps' is the nearest"),
        ({"model": "no/such/folder/here"}, ModelError, "There is no folder"),
        ({"model": 3}, ModelError, "A int is no model"),
        ({"input_ids": [[1, 2, 3]]}, InputError, "input_ids must be"),
    ],
)
def test_mistakes_are_sentences(given: dict[str, Any], error: type[Exception], says: str) -> None:
    right: dict[str, Any] = {"model": graph("gpt2"), "input_ids": IDS}
    with pytest.raises(error, match=says):
        tune(**(right | given))


def test_what_needs_no_recognition_runs_on_any_graph() -> None:
    """A mask computed from the tokens is refused by the importer, and is no obstacle to autograd or to detached
    scores."""
    first = capture(tiny_model("doge", num_hidden_layers=1))
    assert tune(first, IDS, PREFIX, approximations=Approximations(scores=True)).logits.isfinite().all()
    with pytest.raises(UnsupportedModelError):
        tune(first, IDS, PREFIX)


@pytest.mark.parametrize("case", [0, 1, *(pytest.param(case, marks=pytest.mark.slow) for case in (2, 3, 4))])
@pytest.mark.parametrize("folder", ["gpt2-0", "gpt2-1", "opt-0", "opt-1"])
def test_paper_code_is_the_authors(shared: Path, folder: str, case: int) -> None:
    place = shared / "golden" / folder
    stored = load_file(place / "golden.safetensors")
    options = json.loads((place / "golden.json").read_text())["cases"][case]
    ids, mask, before, after = (
        stored[f"{case}.{name}"] for name in ("input_ids", "train_mask", "logits_before", "logits_after")
    )
    found = golden(place, ids, mask, options)
    assert relative_to_update(found.logits, after, before) < 1e-9
    assert float((found.logits_before - before).norm() / (after - before).norm()) < 1e-9


@cache
def stored_graph(place: Path) -> CapturedGraph:
    return capture(load_auxiliary(place).model)


def golden(place: Path, ids: Tensor, mask: Tensor, options: dict[str, Any]) -> Tuned:
    return tune(
        stored_graph(place),
        ids,
        mask,
        inner_lr=options["lr"],
        n_steps=options["steps"],
        n_update_layers=options["layers"],
        loss=options.get("loss", "ce"),
        semantics="paper-code",
    )
