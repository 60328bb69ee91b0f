"""What a user may pass: batches, padding, masks of any type, rates. fp64, 1e-9 of the update, by literal execution."""

from __future__ import annotations

import pytest
import torch
from programs import import_model, relative_to_update
from tiny_models import gpt2, llama, opt, token_ids
from torch import Tensor

from tintc.errors import InputError, OptionError
from tintc.runtime.model.causal_lm import TintForCausalLM

MODELS = {
    "gpt2": lambda: gpt2(n_heads=3, head_dim=4, d_ff=20),
    "opt": lambda: opt(n_layers=1, n_heads=3, head_dim=4, d_ff=20),
    "llama": lambda: llama(n_layers=1, n_heads=3, n_kv_heads=1, head_dim=4, d_ff=20),
}
"""One of two layers, whose gradients go down through attention."""
LENGTH = 10


@pytest.fixture(scope="module", params=MODELS)
def sim(request: pytest.FixtureRequest) -> TintForCausalLM:
    """Of two steps, but for OPT's."""
    return import_model(MODELS[request.param]()).compile(n_steps=1 + (request.param != "opt"), inner_lr=0.05)


def logits(sim: TintForCausalLM, ids: Tensor, **options: object) -> Tensor:
    with torch.no_grad():
        return sim(ids, **options).logits


def both(sim: TintForCausalLM, ids: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    """Return the logits after and before the update."""
    with torch.no_grad():
        out = sim(ids, return_before=True, **options)
    return out.logits, out.logits_before


def same(found: Tensor, right: Tensor, before: Tensor) -> None:
    assert relative_to_update(found, right, before) < 1e-9


def test_a_batch_is_its_examples_one_by_one(sim: TintForCausalLM) -> None:
    ids = token_ids(3, LENGTH)
    train = torch.tensor([[1] * 4 + [0] * 6, [1] * 7 + [0] * 3, [1] * 9 + [0]])
    rate = torch.tensor([0.01, 0.0, 0.08], dtype=torch.float64)
    together, before = both(sim, ids, train_mask=train, inner_lr=rate)
    alone = [logits(sim, ids[i : i + 1], train_mask=train[i : i + 1], inner_lr=float(rate[i])) for i in range(3)]
    same(together, torch.cat(alone), before)
    assert torch.equal(together[1], before[1]) and not torch.equal(together[0], before[0])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(sim: TintForCausalLM, side: str) -> None:
    ids, pads = token_ids(1, LENGTH), token_ids(1, 4, seed=7)
    text, junk = slice(4, None) if side == "left" else slice(0, LENGTH), torch.zeros(1, 4)
    parts = (pads, ids) if side == "left" else (ids, pads)
    ones = torch.ones(1, LENGTH)
    mask = torch.cat((junk, ones) if side == "left" else (ones, junk), 1)
    found = logits(sim, torch.cat(parts, 1), attention_mask=mask)[:, text]
    same(found, *both(sim, ids))


def test_a_padded_batch_is_its_examples(sim: TintForCausalLM) -> None:
    """Lengths 10 and 6, padded on the left and on the right with ids that mean something."""
    ids = token_ids(3, LENGTH)
    mask = torch.tensor([[1] * 10, [0] * 4 + [1] * 6, [1] * 6 + [0] * 4])
    found = logits(sim, ids, attention_mask=mask)
    same(found[:1], *both(sim, ids[:1]))
    same(found[1:2, 4:], *both(sim, ids[1:2, 4:]))
    same(found[2:, :6], *both(sim, ids[2:, :6]))


def test_ids_of_padding_do_not_matter(sim: TintForCausalLM) -> None:
    ids, mask = token_ids(2, LENGTH), torch.tensor([[0, 0, 0] + [1] * 7, [1] * 8 + [0] * 2])
    other = torch.where(mask == 0, (ids + 11) % 53, ids)
    keep = mask.bool()
    assert torch.equal(logits(sim, ids, attention_mask=mask)[keep], logits(sim, other, attention_mask=mask)[keep])


def test_test_tokens_do_not_train(sim: TintForCausalLM) -> None:
    """Tokens after the train part change no prediction at train positions."""
    ids = token_ids(1, LENGTH)
    other = torch.cat((ids[:, :5], token_ids(1, 5, seed=9)), 1)
    train = torch.tensor([[1] * 5 + [0] * 5])
    found, (changed, before) = logits(sim, ids, train_mask=train), both(sim, other, train_mask=train)
    same(found[:, :5], changed[:, :5], before[:, :5])


TYPES = ((torch.int64, 1), (torch.int32, 3), (torch.float32, 0.5), (torch.float64, -1), (torch.uint8, 1))
"""Types of masks, and what stands for a one in them."""


def test_masks_of_every_type_mean_the_same(sim: TintForCausalLM) -> None:
    """A run is of the inputs that they are resolved to, which are the same; and so is a run of several types."""
    ids = token_ids(2, LENGTH)
    train = torch.tensor([[1] * 4 + [0] * 6, [1] * 7 + [0] * 3])
    loss = torch.tensor([[1, 1, 0, 1, 1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 0, 1, 1, 1, 1, 1]])
    sees = torch.ones(2, LENGTH, LENGTH, dtype=torch.long).tril()
    sees[:, 5:, :2] = 0
    masks = {"train_mask": train, "loss_mask": loss, "attention_mask": sees}
    right = logits(sim, ids, **{name: mask.bool() for name, mask in masks.items()})
    for given in (masks, masks | {"attention_mask": sees[:, -1]}):  # the latter marks padding
        resolved = vars(sim.resolve(ids, **{name: mask.bool() for name, mask in given.items()}))
        for dtype, factor in TYPES:
            found = vars(sim.resolve(ids, **{name: (mask * factor).to(dtype) for name, mask in given.items()}))
            assert found.keys() == resolved.keys()
            for name, value in found.items():
                if isinstance(value, Tensor):
                    assert value.dtype == resolved[name].dtype and torch.equal(value, resolved[name]), (dtype, name)
                else:
                    assert value == resolved[name], (dtype, name)
    mixed = {name: (masks[name] * factor).to(dtype) for name, (dtype, factor) in zip(masks, TYPES[1:], strict=False)}
    assert torch.equal(logits(sim, ids, **mixed), right)
    assert not torch.equal(right, logits(sim, ids, train_mask=train, loss_mask=loss))
    assert not torch.equal(right, logits(sim, ids, train_mask=train, attention_mask=sees))


def test_defaults_are_the_first_half_and_the_causal_mask(sim: TintForCausalLM) -> None:
    ids = token_ids(2, 9)
    right = logits(sim, ids)
    explicit = {
        "train_mask": torch.tensor([[1] * 4 + [0] * 5] * 2),
        "loss_mask": torch.ones(2, 9),
        "attention_mask": torch.ones(2, 9, 9).tril(),
        "position_ids": torch.arange(9).expand(2, -1),
        "inner_lr": 0.05,
    }
    assert torch.equal(logits(sim, ids, **explicit), right)


def test_nothing_to_train_on_is_no_update(sim: TintForCausalLM) -> None:
    """Fewer than two train tokens, or none followed by another: the logits are the unchanged auxiliary's."""
    train = torch.tensor([[0] * 6, [1] + [0] * 5, [0, 0, 1, 0, 0, 0], [1, 0, 1, 0, 1, 0]])
    with pytest.warns(UserWarning, match="Nothing is trained on in a text whose train tokens are all isolated"):
        after, before = both(sim, token_ids(4, 6), train_mask=train)
    assert torch.equal(after, before)


def test_short_texts_run(sim: TintForCausalLM) -> None:
    for length in (1, 2, 3):
        with torch.no_grad():
            out = sim(token_ids(1, length), return_before=True)
        assert torch.equal(out.logits, out.logits_before) and out.logits.shape == (1, length, 53)


def test_labels_give_the_mean_loss_and_minus_100_is_left_out(sim: TintForCausalLM) -> None:
    """1e-6 absolute."""
    ids = token_ids(2, LENGTH)
    labels = ids.clone()
    labels[:, :5] = -100
    with torch.no_grad():
        out, plain = sim(ids, labels=labels), sim(ids)
    picked = out.logits[:, 4:-1].log_softmax(-1).gather(-1, ids[:, 5:, None])
    assert out.loss is not None and abs(float(out.loss) + float(picked.mean())) < 1e-6
    assert plain.loss is None and plain.logits_before is None


def test_what_cannot_be_run_is_refused(sim: TintForCausalLM) -> None:
    ids = token_ids(2, LENGTH)
    refused: list[tuple[type[Exception], str, Tensor, dict[str, object]]] = [
        (InputError, "Token id 53 is out of range", torch.tensor([[1, 53]]), {}),
        (InputError, "Token id -1 is out of range", torch.tensor([[-1, 5]]), {}),
        (InputError, "has 33 tokens; this simulator was compiled for at most 32", token_ids(1, 33), {}),
        (InputError, "empty", torch.zeros(1, 0, dtype=torch.long), {}),
        (InputError, "integers", torch.ones(1, 4), {}),
        (InputError, r"\[batch, length\]", torch.ones(4, dtype=torch.long), {}),
        (InputError, "train_mask has shape", ids, {"train_mask": torch.ones(2, 3)}),
        (InputError, "loss_mask has shape", ids, {"loss_mask": torch.ones(1, LENGTH)}),
        (InputError, "position_ids has shape", ids, {"position_ids": torch.ones(2, 3)}),
        (InputError, "attention_mask has shape", ids, {"attention_mask": torch.ones(2, LENGTH, 3)}),
        (InputError, "without any token", ids, {"attention_mask": torch.tensor([[1] * LENGTH, [0] * LENGTH])}),
        (OptionError, "inner_lr has shape", ids, {"inner_lr": torch.ones(3)}),
        (OptionError, "inner_lr is '1e-3'; pass a number", ids, {"inner_lr": "1e-3"}),
    ]
    for error, why, given, options in refused:
        with pytest.raises(error, match=why):
            sim(given, **options)


def test_padding_and_update_are_what_they_seem(sim: TintForCausalLM) -> None:
    """The comparisons above are of updates that matter: they change the logits by more than 1e-4 of their size."""
    ids = token_ids(1, LENGTH)
    with torch.no_grad():
        out = sim(ids, return_before=True)
    assert float((out.logits - out.logits_before).norm() / out.logits_before.norm()) > 1e-4
    assert relative_to_update(out.logits, out.logits, out.logits_before) == 0
