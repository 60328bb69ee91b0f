"""Generation: with a cache and the updated weights, token by token what the whole text gives, run again.

fp64, 1e-9 of the largest logit; fp32, 1e-4. The train mask is the prompt's throughout.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attention_programs import VOCAB, decoder
from command import tokenizer
from continuations import PADDED, PROMPT, WHOLE, compiled, one_by_one, whole, worst
from fused_cases import token_ids
from programs import simulator
from tiny_models import gpt2
from torch import Tensor
from transformers import DynamicCache, pipeline
from transformers.generation.streamers import BaseStreamer

import tintc
from tintc.errors import InputError, OptionError
from tintc.ir.inputs import resolve_inputs
from tintc.ir.simulator import Logits
from tintc.runtime.adaptation import prefill
from tintc.runtime.execution.run import execute_program
from tintc.runtime.model.causal_lm import TintForCausalLM
from tools.sweep.tiny import tiny_model


def check(sim: TintForCausalLM, ids: Tensor, tolerance: float = 1e-9) -> None:
    for mask in (None, PADDED):
        assert worst(one_by_one(sim, ids, mask), whole(sim, ids, mask)) < tolerance


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gpt2", {"n_steps": 2}),
        ("opt", {"n_steps": 1}),
        ("llama", {"n_steps": 2}),
        ("gpt2", {"n_steps": 1, "n_update_layers": 1}),
        ("opt", {"n_steps": 2, "n_update_layers": 1}),
    ],
)
def test_families_token_by_token(name: str, options: dict[str, Any]) -> None:
    check(compiled(name, **options), token_ids(2, WHOLE))


@pytest.mark.parametrize(
    ("name", "options"),
    [("gpt2", {"n_steps": 2}), ("opt", {"n_steps": 2, "n_update_layers": 1}), ("llama", {"n_steps": 2})],
)
def test_options_of_the_prompt(name: str, options: dict[str, Any]) -> None:
    sim, ids = compiled(name, **options), token_ids(2, WHOLE)
    masks = torch.rand(2, 2, PROMPT, generator=torch.Generator().manual_seed(0)) < 0.7
    rates = torch.tensor([0.03, 0.01], dtype=torch.float64)
    given = {"train_mask": masks, "inner_lr": rates}
    assert worst(one_by_one(sim, ids, **given), whole(sim, ids, **given)) < 1e-9
    kept, sim.update = sim.update, "materialised"
    try:
        assert worst(one_by_one(sim, ids, **given), whole(sim, ids, **given)) < 1e-9
    finally:
        sim.update = kept


def test_fp32() -> None:
    check(compiled("llama", torch.float32), token_ids(2, WHOLE), 1e-4)


@pytest.mark.parametrize("kv_heads", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"window": 4},
        {"slopes": (0.5, 0.25, 0.0625), "soft_cap": 0.7},
        {"sunk": True, "window": 3, "value_dim": 4},
        {"gained": True, "q_norm": {"kind": "rms"}, "v_norm": True},
    ],
)
def test_options_of_scores(kv_heads: int, options: dict[str, Any]) -> None:
    check(fused_sketch(kv_heads, **options), token_ids(2, WHOLE, VOCAB))


def fused_sketch(*arguments: Any, **options: Any) -> TintForCausalLM:
    sim = simulator(*decoder(*arguments, **options), n_steps=1, inner_lr=1e-2)
    sim.trust()
    sim.executor = "fused"
    return sim


def test_scales_by_position_end_with_their_table() -> None:
    """Nine positions have a scale."""
    sim, ids = fused_sketch(scaled=True, sunk=True), token_ids(1, 10, VOCAB)
    with torch.no_grad():
        past = sim(ids[:, :PROMPT], use_cache=True).past_key_values
        found = sim(ids[:, PROMPT:9], past_key_values=past).logits
        assert worst(found, whole(sim, ids[:, :9])[:, -1:]) < 1e-9
        with pytest.raises(InputError, match="Position 9 is out of range"):
            sim(ids[:, 9:], past_key_values=past)


class Heard(BaseStreamer):
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"do_sample": True, "top_k": 20, "temperature": 1.5},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampled beams": {"num_beams": 2, "do_sample": True},
    "returned": {"do_sample": True, "num_return_sequences": 3},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("padded", [False, True])
def test_the_cache_changes_nothing(way: str, padded: bool) -> None:
    """transformers' own ways of choosing tokens, with and without a cache; fp64, so that no tie is broken by chance."""
    sim, ids = compiled("gpt2", inner_lr=0.2), token_ids(2, PROMPT)
    given: dict[str, Any] = {"max_new_tokens": 5, "eos_token_id": 2}
    if padded:
        given |= {"attention_mask": PADDED, "inner_lr": torch.tensor([0.3, 0.1], dtype=torch.float64)}
    else:
        given |= {"train_mask": torch.tensor([[[1, 1, 0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 0, 0, 1, 1]]])}
    found = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        found.append(sim.generate(ids, use_cache=use_cache, **given, **({"do_sample": False} | WAYS[way])))
    assert torch.equal(*found)
    assert found[0].shape[1] > PROMPT


def test_literal_execution_generates_too(monkeypatch: pytest.MonkeyPatch) -> None:
    sim, ids = compiled("gpt2", inner_lr=0.2), token_ids(1, 6)
    wanted = sim.generate(ids, max_new_tokens=3, do_sample=False)
    monkeypatch.setattr(sim, "executor", "literal")
    assert torch.equal(sim.generate(ids, max_new_tokens=3, do_sample=False), wanted)
    assert sim.last_executor == "literal"
    with pytest.raises(OptionError, match="pass use_cache=False"):
        sim(ids, use_cache=True)


def test_beams_share_one_adaptation(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        prefill, "execute_program", lambda *args, **more: seen.append(args[2].shape) or execute_program(*args, **more)
    )
    sim = compiled("llama")
    out = sim.generate(token_ids(2, 6), num_beams=4, max_new_tokens=4, return_dict_in_generate=True, do_sample=False)
    assert seen == [(2, 6)]
    assert out.past_key_values.state.examples == 2


def test_streaming_and_lookup() -> None:
    """What a streamer hears is what is returned; drafts from the prompt itself are checked several tokens at a time."""
    sim, ids, heard = compiled("llama", inner_lr=0.1), token_ids(1, 6).repeat(1, 2), Heard()
    plain = sim.generate(ids, max_new_tokens=8, do_sample=False, streamer=heard)
    assert heard.tokens == plain[0].tolist() and heard.ended
    drafted = sim.generate(ids, max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=3)
    assert torch.equal(drafted, plain)
    sim.executor = "literal"
    try:
        with pytest.raises(OptionError, match=r"prompt_lookup_num_tokens, or set sim\.executor = 'auto'"):
            sim.generate(ids, max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=3)
    finally:
        sim.executor = "auto"


def test_a_cache_goes_on() -> None:
    """Two calls of generate, the second with the cache of the first, give what one call gives."""
    sim, ids = compiled("llama"), token_ids(2, PROMPT)
    given = {"do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    first = sim.generate(ids, max_new_tokens=3, **given)
    second = sim.generate(first.sequences, max_new_tokens=3, past_key_values=first.past_key_values, **given)
    assert torch.equal(second.sequences, sim.generate(ids, max_new_tokens=6, **given).sequences)


def test_pipeline() -> None:
    words = tokenizer()
    words.pad_token = words.unk_token
    model = gpt2(n_layers=1, vocab=len(words))
    sim = tintc.compile(model.double(), inner_lr=1e-2)
    text = "the cat sat on the mat and then it was happy"
    writer = pipeline("text-generation", model=sim, tokenizer=words)
    (found,) = writer(text, max_new_tokens=4, do_sample=False)
    ids = words(text, return_tensors="pt").input_ids
    wanted = str(words.decode(sim.generate(ids, max_new_tokens=4, do_sample=False)[0], skip_special_tokens=True))
    assert found["generated_text"].replace(" ", "") == wanted.replace(" ", "") and len(wanted) > len(text)


def test_what_cannot_be_generated() -> None:
    sim, ids = compiled("gpt2"), token_ids(2, PROMPT)
    with pytest.raises(InputError, match="would be 33; this simulator was compiled for at most 32"):
        sim.generate(ids, max_new_tokens=25)
    for prompt, mask in ((ids[:, :1], None), (ids, torch.tensor([[1] * 8, [0] * 7 + [1]]))):
        for use_cache in (True, False):
            with pytest.raises(InputError, match=r"A prompt has 1 token; .* at least 2"):
                sim.generate(prompt, attention_mask=mask, max_new_tokens=2, use_cache=use_cache)
    with pytest.raises(OptionError, match="returned, and from no others"):
        sim(ids, past_key_values=DynamicCache())
    with pytest.raises(OptionError, match="has no place for adapted weights"):
        sim.generate(ids, max_new_tokens=2, cache_implementation="static")
    past = sim(ids, use_cache=True).past_key_values
    with pytest.raises(OptionError, match="adapted already"):
        sim(ids[:, :1], past_key_values=past, inner_lr=0.1)
    with pytest.raises(InputError, match="the cache has 2 rows"):
        sim(ids[:1, :1], past_key_values=past)
    with pytest.raises(InputError, match="The text has 33 tokens"):
        sim(token_ids(2, 25), past_key_values=past)
    with pytest.raises(InputError, match="Token id 53 is out of range"):
        sim(torch.tensor([[53], [1]]), past_key_values=past)
    with pytest.raises(OptionError, match="leave out assistant_model"):
        sim.generate(ids, max_new_tokens=2, assistant_model=sim)
    for use_cache in (True, False):
        with pytest.raises(OptionError, match="leave out guidance_scale"):
            sim.generate(ids, max_new_tokens=2, guidance_scale=1.5, use_cache=use_cache)
    with pytest.raises(OptionError, match="prefill_chunk_size"):
        sim.generate(ids, max_new_tokens=2, prefill_chunk_size=2)


def test_lists_and_single_rows() -> None:
    sim: Any = compiled("gpt2")
    ids = token_ids(1, PROMPT)
    integers, tensor = r"must be a \[batch, length\] tensor of integers", "is of type list; pass a tensor"
    state = sim.adapt(ids)
    given: dict[str, Any] = {"max_new_tokens": 2}
    for call in (sim.adapt, sim, lambda text: sim(text, state=state), lambda text: sim.generate(text, **given)):
        for text in ([1, 2, 3], ids[0], ids.double()):
            with pytest.raises(InputError, match=integers):
                call(text)
    for name in ("train_mask", "loss_mask", "attention_mask"):
        for call in (sim.adapt, sim, lambda text, **mask: sim.generate(text, **given, **mask)):
            with pytest.raises(InputError, match=f"{name} {tensor}"):
                call(ids, **{name: [1] * PROMPT})
    past = sim(ids, use_cache=True).past_key_values
    for more in ({"use_cache": True}, {"past_key_values": past}):
        with pytest.raises(InputError, match=f"attention_mask {tensor}"):
            sim(ids, attention_mask=[1] * PROMPT, **more)


def test_logits_to_keep() -> None:
    sim, ids = compiled("gpt2"), token_ids(2, PROMPT)
    for wrong, shown in ((-3, "-3"), (2.0, "2.0"), (True, "True"), (torch.tensor([1]), "a tensor")):
        with pytest.raises(OptionError, match=f"logits_to_keep is {shown}; pass the number"):
            sim(ids, logits_to_keep=wrong)
    with pytest.raises(InputError, match=r"labels has shape \(2, 8\); with logits_to_keep .*, \(2, 3\)"):
        sim(ids, logits_to_keep=3, labels=ids)
    assert sim(ids, logits_to_keep=3, labels=ids[:, -3:]).loss.isfinite()


@pytest.mark.parametrize("executor", ["fused", "literal"])
def test_logits_of_last_tokens_alone_are_computed(executor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of k last tokens are the last of all (fp64, 1e-12); the head reads k tokens, and all where one looks."""
    sim, ids = compiled("gpt2"), token_ids(2, PROMPT)
    read: list[int] = []
    head: Any = Logits.logit_map

    def seen(op: Logits) -> Any:
        def mapped(scores: Tensor, **options: Any) -> Tensor:
            read.append(scores.numel() // (2 * scores.shape[-1]))
            return head.fget(op)(scores, **options)

        return mapped

    monkeypatch.setattr(sim, "executor", executor)
    with torch.no_grad():
        whole = sim(ids, return_before=True)
        monkeypatch.setattr(Logits, "logit_map", property(seen))
        kept = sim(ids, return_before=True, logits_to_keep=3)
        assert read == [3, 3]
        with sim.capture("*ln_f*"):
            sim(ids, logits_to_keep=3)
    assert read[2:] == [PROMPT]
    torch.testing.assert_close(kept.logits, whole.logits[:, -3:], rtol=0, atol=1e-12)
    torch.testing.assert_close(kept.logits_before, whole.logits_before[:, -3:], rtol=0, atol=1e-12)


def test_rows_of_a_cache() -> None:
    """Rows can be chosen, repeated and forgotten; each goes on with its own weights."""
    sim, ids = compiled("llama", inner_lr=0.1), token_ids(3, WHOLE)
    with torch.no_grad():
        past = sim(ids[:, :PROMPT], use_cache=True).past_key_values
        wanted = sim(ids[:, PROMPT:], past_key_values=past).logits
        past.crop(PROMPT - WHOLE)
        past.batch_repeat_interleave(2)
        twice = sim(ids[:, PROMPT:].repeat_interleave(2, 0), past_key_values=past).logits
        past.crop(PROMPT - WHOLE)
        past.batch_select_indices(torch.tensor([4, 1]))
        chosen = sim(ids[[2, 0], PROMPT:], past_key_values=past).logits
    assert worst(twice, wanted.repeat_interleave(2, 0)) < 1e-9
    assert worst(chosen, wanted[[2, 0]]) < 1e-9


def test_autograd_through_a_cache() -> None:
    """The gradient of a later token's loss with respect to the stored rates, by the cache and by the whole text."""
    sim, ids = compiled("llama"), token_ids(1, WHOLE)
    rates = list(sim.rates.parameters())
    past = sim(ids[:, :PROMPT], use_cache=True).past_key_values
    found = torch.autograd.grad(sim(ids[:, PROMPT:], past_key_values=past).logits.square().sum(), rates)
    train = resolve_inputs(ids[:, :PROMPT]).train
    right = sim(ids, train_mask=F.pad(train, (0, WHOLE - PROMPT))).logits[:, PROMPT:]
    wanted = torch.autograd.grad(right.square().sum(), rates)
    assert worst(torch.cat(found), torch.cat(wanted)) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bloom", "gemma2", "gemma3_text", "minicpm3", "exaone4", "cohere2", "phi", "mpt"])
def test_types_token_by_token(kind: str) -> None:
    """ALiBi, windows, soft caps, latent keys and values, parallel branches, norms of heads."""
    sim = tintc.compile(tiny_model(kind), inner_lr=0.01, dtype=torch.float64)
    sim.executor = "fused"
    check(sim, token_ids(2, WHOLE, 97))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3_5_text", "kimi_linear", "mamba", "mamba2", "falcon_h1", "lfm2", "olmo_hybrid"])
def test_hybrids_token_by_token(kind: str) -> None:
    """Delta rules, state spaces, selective scans and convolutions, beside attention and alone."""
    test_types_token_by_token(kind)
