"""Generation that goes on learning, beside a loop written out with autograd: the same tokens, and the same weights.

fp64, 1e-9 of the update.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from continuations import compiled, continued
from explicit_streams import ExplicitLoop
from fused_cases import FAMILIES, relative_to_update, run, token_ids
from torch import Tensor

from tintc.errors import InputError, OptionError
from tintc.runtime.adaptation.cache import TintCache
from tintc.runtime.model.causal_lm import TintForCausalLM

RATE = 0.1
RATES = {"gpt2": 1.0}
"""Rates of those that `RATE` does not make write anything else."""
PROBE = token_ids(1, 7, seed=9)
GREEDY: dict[str, Any] = {"do_sample": False, "return_dict_in_generate": True}


def sim_of(name: str) -> TintForCausalLM:
    return compiled(name, inner_lr=RATES.get(name, RATE), n_update_layers=2)


def written(loop: ExplicitLoop, prompt: Tensor, every: int, new: int) -> Tensor:
    """The prompt and so many tokens more, each the likeliest: the prompt's chunks are learnt, then what is written."""
    loop.stream(prompt, every, len(prompt))
    text = prompt
    learnt = len(text)
    for _ in range(new):
        if len(text) - learnt == every:
            columns = torch.arange(len(text))
            loop.learn(text, columns >= learnt - 1, columns >= learnt)
            learnt = len(text)
        text = torch.cat((text, loop.logits(text[None])[0, -1].argmax()[None]))
    return text


@pytest.mark.parametrize(("name", "every"), [("llama", 3), pytest.param("gpt2", 4, marks=pytest.mark.slow)])
def test_it_is_an_explicit_loop(name: str, every: int) -> None:
    """Prompts of unequal length, padded on the left, each learning by itself; what was learnt is kept."""
    sim = sim_of(name)
    texts = token_ids(2, 8)
    mask = torch.tensor([[1] * 8, [0] * 3 + [1] * 5])
    found = sim.generate(
        texts, attention_mask=mask, learn_every=every, max_new_tokens=9, eos_token_id=None, pad_token_id=0, **GREEDY
    )
    plain = sim.generate(texts, attention_mask=mask, max_new_tokens=9, eos_token_id=None, pad_token_id=0, **GREEDY)
    assert not torch.equal(found.sequences, plain.sequences), "or the test could not fail"
    for row, prompt in enumerate((texts[0], texts[1, 3:])):
        loop = ExplicitLoop.of(FAMILIES[name](), RATES.get(name, RATE), 1, 2)
        right = written(loop, prompt, every, 9)
        assert found.sequences[row, -len(right) :].tolist() == right.tolist()
        state = found.past_key_values.state.select([row])
        assert (
            relative_to_update(continued(sim, PROBE, state)[0], loop.logits(PROBE)[0], loop.then_logits(PROBE[0]))
            < 1e-9
        )


def test_it_is_adapting_and_generating_in_turn() -> None:
    """Sampled, from a state, several texts of a prompt, at a rate of the call's; without a cache too."""
    sim, prompt, state = sim_of("gpt2"), token_ids(1, 6), sim_of("gpt2").adapt(token_ids(1, 9, seed=2))
    given: dict[str, Any] = {"do_sample": True, "eos_token_id": None, "pad_token_id": 0}
    torch.manual_seed(0)
    now = sim.stream(prompt, 4, 6, state=state, inner_lr=0.05).state
    text = sim.generate(prompt, state=now, max_new_tokens=4, num_return_sequences=2, **given)
    columns = torch.arange(10).expand(2, -1)
    now = sim.adapt(text, columns >= 5, columns >= 6, state=now, inner_lr=0.05)
    text = sim.generate(text, state=now, max_new_tokens=3, **given)
    more: dict[str, Any] = {"state": state, "inner_lr": 0.05, "max_new_tokens": 7, "num_return_sequences": 2}
    for use_cache in (True, False):
        torch.manual_seed(0)
        found = sim.generate(prompt, learn_every=4, use_cache=use_cache, **more, **given)
        assert torch.equal(found, text)


def test_padding_behind_an_end_is_not_learnt() -> None:
    """The row that has ended keeps its weights, whatever the other writes; one token is a prompt, if not to learn."""
    sim, prompt = sim_of("gpt2"), token_ids(2, 1)
    free = sim.generate(prompt, learn_every=2, max_new_tokens=9, eos_token_id=None, pad_token_id=0, **GREEDY)
    end = int(free.sequences[0, 2])
    length = free.sequences[0].tolist().index(end) + 1
    assert end not in free.sequences[1], "the other row goes on"
    found = sim.generate(prompt, learn_every=2, max_new_tokens=9, eos_token_id=end, pad_token_id=0, **GREEDY)
    assert torch.equal(found.sequences[1], free.sequences[1]) and not found.sequences[0, length:].any()
    alone = sim.stream(found.sequences[0, :length], 3, bos=False).state
    first, other = (continued(sim, PROBE, state) for state in (found.past_key_values.state.select([0]), alone))
    assert relative_to_update(first, other, run(sim, PROBE, return_before=True).logits_before) < 1e-9


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no number": ({"learn_every": 0}, "learn_every is 0; pass the number of tokens"),
    "masks": ({"learn_every": 2, "train_mask": torch.ones(1, 6)}, "the whole text is learnt"),
    "beams": ({"learn_every": 2, "num_beams": 2}, "leave out beams and drafts"),
    "drafts": ({"learn_every": 2, "prompt_lookup_num_tokens": 2}, "leave out beams and drafts"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_it_does_not_go_with(case: str) -> None:
    given, message = WRONG[case]
    with pytest.raises(OptionError, match=message):
        sim_of("gpt2").generate(token_ids(1, 6), max_new_tokens=4, **given)


def test_texts_and_executors_that_do_not_fit() -> None:
    sim = sim_of("gpt2")
    with pytest.raises(InputError, match="at most 32"):
        sim.generate(token_ids(1, 6), learn_every=2, max_new_tokens=30)
    cache: TintCache = sim(token_ids(1, 6), use_cache=True).past_key_values
    with pytest.raises(OptionError, match="no cache of it"):
        sim.generate(token_ids(1, 7), learn_every=2, past_key_values=cache)
    sim.executor = "literal"
    try:
        with pytest.raises(OptionError, match="Literal execution writes from no state"):
            sim.generate(token_ids(1, 6), learn_every=2)
    finally:
        sim.executor = "fused"
