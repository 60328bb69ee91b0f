"""Masks and positions as the programs see them."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from tintc.errors import InputError, OptionError
from tintc.ir.inputs import resolve_inputs

IDS = torch.arange(12).reshape(2, 6)


def rows(tensor: Tensor) -> list[list[int]]:
    return tensor.long().tolist()


def test_defaults() -> None:
    found = resolve_inputs(IDS)
    assert rows(found.position_ids) == [[0, 1, 2, 3, 4, 5]] * 2
    assert rows(found.train) == [[1, 1, 1, 0, 0, 0]] * 2
    assert rows(found.loss_positions) == [[1, 1, 0, 0, 0, 0]] * 2
    assert bool(found.allowed.all()) and found.shape == (2, 6)
    assert rows(found.next_ids) == [[1, 2, 3, 4, 5, 5], [7, 8, 9, 10, 11, 11]]


def test_padding_on_either_side() -> None:
    found = resolve_inputs(IDS, attention_mask=torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]]))
    assert rows(found.position_ids) == [[0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 4]]
    assert rows(found.train) == [[0, 0, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]
    assert rows(found.allowed[0]) == [[0, 0, 1, 1, 1, 1]] * 6


def test_pads_never_train_or_count() -> None:
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    found = resolve_inputs(IDS, train_mask=torch.ones(2, 6), attention_mask=mask)
    assert rows(found.train) == rows(mask)
    assert rows(found.loss_positions) == [[0, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]]


def test_counting_needs_both_tokens_in_exact_and_the_target_in_paper_code() -> None:
    train = torch.tensor([[0, 1, 1, 0, 1, 1], [1, 1, 0, 0, 0, 1]])
    assert rows(resolve_inputs(IDS, train).loss_positions) == [[0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0]]
    assert rows(resolve_inputs(IDS, train, semantics="paper-code").loss_positions) == [
        [1, 1, 0, 1, 1, 0],
        [1, 0, 0, 0, 1, 0],
    ]


def test_loss_mask_indexes_the_target() -> None:
    found = resolve_inputs(IDS, torch.ones(2, 6), torch.tensor([[1, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0]]))
    assert rows(found.loss_positions) == [[0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]


@pytest.mark.parametrize("train", [[0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]])
def test_fewer_than_two_train_tokens_are_none(train: list[int]) -> None:
    found = resolve_inputs(IDS, torch.tensor([train, [1, 1, 0, 0, 0, 0]]))
    assert rows(found.train) == [[0] * 6, [1, 1, 0, 0, 0, 0]]
    assert rows(found.loss_positions) == [[0] * 6, [1, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize(("fraction", "count"), [(0.01, 0), (0.34, 2), (0.5, 3), (0.99, 5)])
def test_train_fraction_is_rounded_down(fraction: float, count: int) -> None:
    assert rows(resolve_inputs(IDS, train_fraction=fraction).train) == [[1] * count + [0] * (6 - count)] * 2


def test_masks_of_every_step() -> None:
    """Pads and rows of one train token go in each step; parts of a batch keep all steps."""
    masks = torch.tensor([[[1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0]], [[0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 0, 0]]])
    pads = torch.tensor([[1, 1, 1, 1, 1, 0], [1] * 6])
    found = resolve_inputs(IDS, masks, torch.tensor([[1, 1, 0, 1, 1, 1]] * 2), pads, n_steps=2)
    assert rows(found.train_mask(0)) == [[1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0]]
    assert rows(found.train_mask(1)) == [[0, 0, 1, 1, 1, 0], [0] * 6]
    assert rows(found.loss_positions_of(0)) == [[1, 0, 0, 0, 0, 0], [0] * 6]
    assert rows(found.loss_positions_of(1)) == [[0, 0, 1, 1, 0, 0], [0] * 6]
    part = found.rows(1, 2)
    assert part.shape == (1, 6) and torch.equal(part.train, found.train[:, 1:])
    with pytest.raises(InputError, match=r"train_mask has shape \(2, 2, 6\); .* \(2, 6\), or \(3, 2, 6\), a mask"):
        resolve_inputs(IDS, masks, n_steps=3)
    with pytest.raises(InputError, match="one such mask for every step"):
        resolve_inputs(IDS, masks[:, :1, 0])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 2.0, float("nan")])
def test_train_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(OptionError, match="must lie between 0 and 1"):
        resolve_inputs(IDS, train_fraction=fraction)


@pytest.mark.parametrize("ids", [torch.ones(2, 3), torch.ones(3, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)])
def test_ids_are_integers_in_two_dimensions(ids: Tensor) -> None:
    with pytest.raises(InputError, match="integers"):
        resolve_inputs(ids)


def test_examples_that_stand_side_by_side() -> None:
    """Equal in everything, and as often as every other."""
    a, b = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 2, 3, 5]])
    assert resolve_inputs(a).repeats() == 1
    assert resolve_inputs(torch.cat([a, a, a])).repeats() == 3
    pairs = torch.cat([a, a, b, b, b, b])
    assert resolve_inputs(pairs).repeats() == 2
    assert torch.equal(resolve_inputs(pairs).each(2).input_ids, torch.cat([a, b, b]))
    assert resolve_inputs(torch.cat([a, a, b])).repeats() == 1
    steps = torch.ones(3, 4, 4)
    assert resolve_inputs(torch.cat([a, a, b, b]), steps).repeats() == 2
    assert resolve_inputs(torch.cat([a, a, b, b]), steps).each(2).train.shape == (3, 2, 4)
    steps[1, 2, 3] = 0
    assert resolve_inputs(torch.cat([a, a, b, b]), steps).repeats() == 1


@pytest.mark.parametrize(
    ("train", "isolated"), [([1, 0, 1, 0, 1], True), ([0, 0, 0, 0, 0], False), ([0, 1, 1, 0, 1], False)]
)
def test_isolated_train_tokens_are_warned_of(train: list[int], isolated: bool) -> None:
    """They have no target, so that the descent would change nothing without a word."""
    ids, mask = torch.arange(10).reshape(2, 5), torch.tensor([[1, 1, 0, 0, 0], train])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inputs = resolve_inputs(ids, mask)
    assert [str(one.message).startswith("Nothing is trained on") for one in caught] == [True] * isolated
    assert bool(inputs.loss_positions[1].any()) == (train == [0, 1, 1, 0, 1])
