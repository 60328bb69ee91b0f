"""States: kept, saved, loaded, used for several texts. fp64, 1e-9 of the largest logit."""

from __future__ import annotations

import copy
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from continuations import PADDED, PROMPT, WHOLE, compiled, continued, one_by_one, whole, worst
from fused_cases import FAMILIES, family, run, token_ids
from programs import Imported, import_model, mixture_like, simulator
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_models import gpt2, llama
from torch import Tensor

import tintc
from tintc.errors import ArtefactError, InputError, OptionError
from tintc.runtime.adaptation.cache import TintCache
from tintc.runtime.model.adapted_state import AdaptedState
from tintc.runtime.model.causal_lm import TintForCausalLM


@cache
def two_layers() -> Imported:
    """For simulators that a test changes: one layer is updated, and one is not."""
    return import_model(llama(head_dim=4, d_ff=20))


@pytest.mark.parametrize(("name", "steps"), [("gpt2", 2), ("opt", 1), ("llama", 2)])
def test_a_state_is_what_a_forward_pass_predicts_with(name: str, steps: int) -> None:
    """Whole texts, padded ones, each example's own weights, and new tokens with a cache."""
    sim, ids = compiled(name, n_steps=steps), token_ids(2, WHOLE)
    for mask in (None, PADDED):
        state = sim.adapt(ids[:, :PROMPT], attention_mask=mask)
        seen = None if mask is None else torch.nn.functional.pad(mask, (0, WHOLE - PROMPT), value=1)
        found = continued(sim, ids, state, attention_mask=seen)
        assert worst(found[:, PROMPT - 1 :], whole(sim, ids, mask)) < 1e-9
        assert worst(one_by_one(sim, ids, mask, state=state), whole(sim, ids, mask)) < 1e-9
    sim = compiled(name, n_steps=steps, n_update_layers=1)
    literal = run(sim, ids, "literal", train_mask=torch.arange(WHOLE)[None].expand(2, -1) < PROMPT // 2).logits
    sim.executor = "literal"
    try:
        state = sim.adapt(ids, train_mask=torch.arange(WHOLE)[None].expand(2, -1) < PROMPT // 2)
    finally:
        sim.executor = "fused"
    assert worst(continued(sim, ids, state), literal) < 1e-9


@pytest.mark.parametrize("update", ["lazy", "materialised"])
def test_one_state_for_many_texts(update: str) -> None:
    """One example's weights for any batch; several examples' for as many texts each; beams of those."""
    sim, texts = compiled("llama", inner_lr=0.1), token_ids(4, 6, seed=5)
    sim.update = update
    try:
        one, two = sim.adapt(token_ids(1, 12)), sim.adapt(token_ids(2, 12))
    finally:
        sim.update = "auto"
    every = continued(sim, texts, one)
    assert worst(torch.cat([continued(sim, text[None], one) for text in texts]), every) < 1e-9
    apart = torch.cat([continued(sim, texts[i : i + 1], two.example(i // 2)) for i in range(4)])
    assert worst(continued(sim, texts, two), apart) < 1e-9
    given: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2}
    rows = [sim.generate(texts[i : i + 1], state=two.example(i // 2), **given)[0] for i in range(4)]
    assert torch.equal(sim.generate(texts, state=two, **given), torch.stack(rows))
    assert sim.generate(texts[:1, :1], state=one, max_new_tokens=3).shape == (1, 4)


@pytest.mark.parametrize("examples", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_saved_and_loaded(name: str, examples: int, tmp_path: Path) -> None:
    sim, ids = compiled(name), token_ids(examples, 9)
    state = sim.adapt(ids)
    assert any(w.pending for w in state.weights.values()) == (examples > 1)
    state.save(tmp_path / "a.safetensors")
    again = AdaptedState.load(tmp_path / "a.safetensors", sim)
    assert again.examples == examples
    assert repr(again).startswith(f"AdaptedState(examples={examples}, weight_groups={len(state.weights)}, nbytes=")
    assert 0 < again.nbytes <= (tmp_path / "a.safetensors").stat().st_size < again.nbytes + 20_000  # of header
    assert worst(continued(sim, ids, again), continued(sim, ids, state)) < 1e-12
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_files_that_are_no_state_of_this_simulator(tmp_path: Path) -> None:
    sim, other, file = compiled("gpt2"), compiled("gpt2", n_update_layers=1), tmp_path / "a.safetensors"
    sim.adapt(token_ids(1, 8)).save(file)
    with pytest.raises(ArtefactError, match="belongs to another simulator"):
        AdaptedState.load(file, other)
    same = family("gpt2").compile(inner_lr=0.02)
    assert AdaptedState.load(file, same).examples == 1
    with torch.no_grad():
        next(same.prefixes.parameters()).add_(0.01)
    with pytest.raises(ArtefactError, match="belongs to another simulator"):
        AdaptedState.load(file, same)
    with pytest.raises(ArtefactError, match="There is no state at"):
        AdaptedState.load(tmp_path / "b.safetensors", sim)
    (tmp_path / "c.safetensors").write_text("no")
    with pytest.raises(ArtefactError, match=r"cannot be read as a state: .*\. Pass a file that sim\.adapt"):
        AdaptedState.load(tmp_path / "c.safetensors", sim)
    with pytest.raises(ArtefactError, match=r"is a folder; pass a file that sim\.adapt"):
        AdaptedState.load(tmp_path, sim)
    save_file({"a": torch.zeros(1)}, tmp_path / "d.safetensors")
    with pytest.raises(ArtefactError, match="is not the state of a simulator"):
        AdaptedState.load(tmp_path / "d.safetensors", sim)
    with safe_open(file, framework="pt") as opened:
        kept = {name: opened.get_tensor(name) for name in list(opened.keys())[1:]}
        save_file(kept, tmp_path / "e.safetensors", opened.metadata())
    with pytest.raises(ArtefactError, match="is damaged: it has no"):
        AdaptedState.load(tmp_path / "e.safetensors", sim)
    with pytest.raises(ArtefactError, match="cannot be written to"):
        sim.adapt(token_ids(1, 8)).save(tmp_path / "no" / "such" / "folder")


METADATA: dict[str, tuple[dict[str, str | None], str]] = {
    "nothing pending": ({"pending": None}, "pending updates cannot be read"),
    "half a text": ({"pending": "{"}, "pending updates cannot be read"),
    "a list": ({"pending": "[1]"}, "pending updates cannot be read"),
    "no such input": ({"pending": '{"layers.0.ffn": [["nothing", 1]]}'}, "pending updates cannot be read"),
    "no such layer": ({"pending": '{"nothing": []}'}, "does not update"),
    "version": ({"version": "a"}, "its version is 'a', no number"),
    "examples": ({"examples": None}, "its examples is '', no number"),
    "no examples": ({"examples": "0"}, "it has 0 examples"),
    "more examples": ({"examples": "7"}, "(has shape|it has the weights of one example, not of 7)"),
}


@pytest.mark.parametrize("examples", [1, 3])
def test_damaged_files(examples: int, tmp_path: Path) -> None:
    sim, file = compiled("gpt2", n_update_layers=1), tmp_path / "a.safetensors"
    sim.adapt(token_ids(examples, 8)).save(file)
    with safe_open(file, framework="pt") as opened:
        metadata, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118

    def refused(tensors: dict[str, Tensor], changes: dict[str, str | None], reason: str) -> None:
        found = {name: text for name, text in (metadata | changes).items() if text is not None}
        save_file(tensors, file, found)
        with pytest.raises(ArtefactError, match=rf"is damaged: .*{reason}.*\. Adapt again"):
            AdaptedState.load(file, sim)

    for changes, reason in METADATA.values():
        refused(tensors, changes, reason)
    for name in tensors:
        refused(tensors | {name: tensors[name][..., :-1].contiguous()}, {}, "has shape")
        refused({other: tensor for other, tensor in tensors.items() if other != name}, {}, f"it has no {name}")


def test_a_state_of_another_dtype(tmp_path: Path) -> None:
    """Rounded weights give another fingerprint; those of a longer type do not."""
    model = gpt2(n_layers=1, n_heads=3, head_dim=6, d_ff=31)
    tintc.compile(model, inner_lr=0.02).save_pretrained(tmp_path / "sim")
    sims = {dtype: tintc.load(tmp_path / "sim", dtype=dtype) for dtype in ("float32", "bfloat16", "float64")}
    assert isinstance(sims["float32"], TintForCausalLM)
    old, ids = os.umask(0o027), token_ids(1, 8)
    try:
        sims["float32"].adapt(ids).save(tmp_path / "a.safetensors")
    finally:
        os.umask(old)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o640
    with pytest.raises(ArtefactError, match=r"saved in float32 .* in bfloat16; load the .* dtype='float32'"):
        tintc.AdaptedState.load(tmp_path / "a.safetensors", sims["bfloat16"])
    assert tintc.AdaptedState.load(tmp_path / "a.safetensors", sims["float64"]).examples == 1


def test_what_a_state_cannot_be_used_for(monkeypatch: pytest.MonkeyPatch) -> None:
    sim, other, ids = compiled("gpt2"), compiled("gpt2", n_steps=2), token_ids(3, 8)
    state = sim.adapt(ids[:2])
    with pytest.raises(OptionError, match="belongs to another simulator"):
        other(ids[:2], state=state)
    with pytest.raises(OptionError, match="weights of 2 examples and the batch 3 rows"):
        sim(ids, state=state)
    with pytest.raises(OptionError, match="adapted already"):
        sim.generate(ids[:2], state=state, train_mask=torch.ones(2, 8))
    with pytest.raises(OptionError, match="choose one from 0 to 1"):
        state.example(2)
    with pytest.raises(InputError, match="A prompt has 1 token;"):
        sim.adapt(ids[:, :1])
    with monkeypatch.context() as patch:
        patch.setattr(sim, "executor", "literal")
        with pytest.raises(OptionError, match=r"neither a cache nor a state .* choose the executor auto or fused"):
            sim(ids[:2], state=sim.adapt(ids[:2]))
    with pytest.raises(OptionError, match="return_before"):
        sim(ids[:2], state=state, return_before=True)
    wrong: Any = "story.state"
    for call in (sim, sim.generate):
        with pytest.raises(OptionError, match=r"is of type str; pass what sim\.adapt\(\.\.\.\) has returned"):
            call(ids[:2], state=wrong)


def test_a_state_in_another_object_of_its_simulator() -> None:
    sim, same, ids = compiled("gpt2"), family("gpt2").compile(inner_lr=0.02), token_ids(3, 8)
    same.executor = "fused"
    for text in (ids[:1], ids):
        state = sim.adapt(text)
        assert worst(continued(same, text, state), continued(sim, text, state)) < 1e-12
        made = [one.generate(text, state=state, max_new_tokens=3, do_sample=False) for one in (sim, same)]
        assert torch.equal(*made)
    with torch.no_grad():
        next(same.prefixes.parameters()).mul_(1.05)
    for kept in (state, sim.adapt(ids)):
        with pytest.raises(OptionError, match=r"trained, edited|belongs to another simulator, of .* other weights"):
            same(ids, state=kept)


def test_a_state_keeps_no_stored_weights_of_other_times() -> None:
    """Neither those that autograd did not record, nor those that the parameters have left."""
    sim, ids = two_layers().compile(inner_lr=0.02, n_update_layers=1), token_ids(2, 8)
    sim.executor = "fused"
    sim.trainable("prefixes", "rates")

    def trained(state: AdaptedState) -> set[str]:
        sim.zero_grad(set_to_none=True)
        sim(ids, state=state, labels=ids).loss.backward()
        return {name for name, parameter in sim.named_parameters() if parameter.grad is not None}

    wanted, state = trained(sim.adapt(ids)), sim.adapt(ids)
    continued(sim, ids, state)
    assert trained(state) == wanted and len(wanted) > 8


@pytest.mark.parametrize("through", ["parameter", "data"])
def test_a_state_ends_with_the_weights_it_was_made_of(through: str, tmp_path: Path) -> None:
    """In memory too, where the layers that no step updates are the simulator's; learning rates do not matter."""
    sim, ids = two_layers().compile(inner_lr=0.02, n_update_layers=1), token_ids(1, 8)
    sim.executor, given = "fused", {"max_new_tokens": 2, "do_sample": False}
    state, past = sim.adapt(ids), sim(ids, use_cache=True).past_key_values
    with torch.no_grad():
        next(sim.rates.parameters()).mul_(2)
        before = sim.generate(ids, state=state, **given)
        parameter = next(sim.prefixes.parameters())
        (parameter.data if through == "data" else parameter).mul_(1.05)
    uses = [
        lambda: sim.generate(ids, state=state, **given),
        lambda: state.save(tmp_path / "state"),
        lambda: state.export(tmp_path / "model", model=two_layers().source.model),
    ]
    if through == "parameter":  # others, which are for every token, look at no number
        uses += [lambda: sim(ids, state=state), lambda: sim(ids, past_key_values=past)]
    for use in uses:
        with pytest.raises(OptionError, match="after the state was made; adapt again"):
            use()
    assert not list(tmp_path.iterdir())
    assert sim.generate(ids, state=sim.adapt(ids), **given).shape == before.shape


@torch.no_grad()
@pytest.mark.parametrize("update", ["lazy", "materialised"])
@pytest.mark.parametrize("name", ["gpt2", "experts"])
def test_moving_weights_does_not_end_a_state(name: str, update: str, tmp_path: Path) -> None:
    """To other memory, as a first run on a GPU does; what is read of them is read where they lie then (fp64)."""
    if name == "experts":
        sim = simulator(*mixture_like(chosen=2), inner_lr=0.02)
    else:
        sim = import_model(gpt2(n_layers=1, n_heads=3, head_dim=6, d_ff=31)).compile(inner_lr=0.02)
    sim.executor, sim.update, ids = "fused", update, token_ids(2, 8) % 11
    state, past = sim.adapt(ids), sim(ids, use_cache=True).past_key_values
    state.save(tmp_path / "state")
    states = [state, copy.deepcopy(state), AdaptedState.load(tmp_path / "state", sim)]
    wanted, following = continued(sim, ids, state), sim(ids[:, :1], past_key_values=copy.deepcopy(past)).logits
    left = [parameter.data for parameter in sim.parameters()]
    for parameter in sim.parameters():
        parameter.data = parameter.data.clone()
    for tensor in left:
        tensor.fill_(torch.nan)
    for one in states:
        assert worst(continued(sim, ids, one), wanted) < 1e-12
        one.check_current()
    assert worst(sim(ids[:, :1], past_key_values=past).logits, following) < 1e-12
    sim.to(torch.float32)
    with pytest.raises(OptionError, match="trained, edited or cast after"):
        continued(sim, ids, state)


@pytest.mark.parametrize("how", ["other numbers", "another parameter", "cast and back"])
def test_other_weights_in_their_place_end_a_state(how: str) -> None:
    sim, ids = two_layers().compile(inner_lr=0.02, n_update_layers=1), token_ids(1, 8)
    sim.executor = "fused"
    state = sim.adapt(ids)
    prefix: Any = sim.prefixes.get_submodule("model.layers.0.mlp.up_proj")
    if how == "other numbers":
        prefix.weight.data = prefix.weight.data * 1.05
    elif how == "another parameter":
        prefix.weight = torch.nn.Parameter(prefix.weight.detach().clone())
    else:
        sim.to(torch.bfloat16).to(torch.float64)
    with pytest.raises(OptionError, match="adapt again"):
        continued(sim, ids, state)


@pytest.mark.parametrize("examples", [1, 2])
def test_inference_mode(examples: int) -> None:
    sim, ids = two_layers().compile(inner_lr=0.02, n_update_layers=1), token_ids(examples, 8)
    sim.executor = "fused"
    with torch.inference_mode():
        state = sim.adapt(ids)
        past = sim(ids, use_cache=True).past_key_values
    for given in ({"state": state}, {"past_key_values": past}):
        with pytest.raises(OptionError, match=r"adapted in torch\.inference_mode"):
            sim(ids, **given)
    assert worst(continued(sim, ids, state), continued(sim, ids, sim.adapt(ids))) < 1e-12


def test_captures_and_edits_around_adapt() -> None:
    sim, ids = compiled("gpt2"), token_ids(1, 8)
    with sim.capture("layers.0.residual"), pytest.raises(OptionError, match="adapt runs only the part"):
        sim.adapt(ids)
    with (
        sim.edit({"layers.0.residual": torch.zeros_like}),
        pytest.raises(OptionError, match="adapt runs only the part"),
    ):
        sim.adapt(ids)
    assert sim.adapt(ids).examples == 1


def test_a_copied_cache_shares_the_weights_alone() -> None:
    """transformers' way of using a prompt several times."""
    sim, ids = compiled("llama", inner_lr=0.1), token_ids(2, WHOLE)
    with torch.no_grad():
        past = sim(ids[:, :PROMPT], use_cache=True).past_key_values
        copied = copy.deepcopy(past)
        wanted = sim(ids[:, PROMPT:], past_key_values=past).logits
        assert copied.state.sim is sim and copied.get_seq_length() == PROMPT
        assert torch.equal(sim(ids[:, PROMPT:], past_key_values=copied).logits, wanted)


def test_a_call_that_fails_leaves_the_cache_as_it_was() -> None:
    sim, ids = compiled("gpt2"), token_ids(2, 8)
    cache = TintCache(sim.continuation.carrying)
    for text in (ids + 1000, token_ids(2, 40), ids[0]):
        with pytest.raises(InputError):
            sim(text, past_key_values=cache, state=sim.adapt(ids))
        assert cache.state is None and not cache.get_seq_length()
    state = sim.adapt(ids[:1])
    with torch.no_grad():
        assert torch.equal(sim(ids, past_key_values=cache, state=state).logits, sim(ids, state=state).logits)
    assert cache.state is state
