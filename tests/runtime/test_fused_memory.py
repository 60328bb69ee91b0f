"""What will not fit is refused before it runs, or run in parts; parts give what the whole gives (fp64, 1e-12)."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from fused_cases import compiled, run, token_ids

from tintc.errors import InputError, OptionError
from tintc.runtime.fused import Sizes, batches, make_plan
from tintc.runtime.fused.budget import HEADROOM
from tintc.runtime.fused.memory import peak_bytes

IDS = token_ids(5, 12)


def limit(monkeypatch: pytest.MonkeyPatch, examples: float) -> None:
    """As much memory as that many examples take."""
    sim = compiled("gpt2", n_steps=2)
    one = peak_bytes(make_plan(sim.program, ("logits",), Sizes(1, 12, 6, 53)), 8)
    monkeypatch.setattr(batches, "available_bytes", lambda device: int(one * examples / HEADROOM) + 1)


@pytest.mark.parametrize("max_batch", [1, 2, 3, 5, 99, "auto"])
def test_parts_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch, max_batch: Any) -> None:
    sim, rates = compiled("gpt2", n_steps=2), torch.linspace(0.01, 0.05, 5, dtype=torch.float64)
    mask = torch.ones(5, 12)
    mask[3, :4] = 0
    given = {"inner_lr": rates, "attention_mask": mask, "return_before": True}
    whole = run(sim, IDS, **given)
    if max_batch == "auto":
        limit(monkeypatch, 4.5)
    parts = run(sim, IDS, max_batch=max_batch, **given)
    assert torch.allclose(parts.logits, whole.logits, rtol=0, atol=1e-12)
    assert torch.allclose(parts.logits_before, whole.logits_before, rtol=0, atol=1e-12)


def test_the_refusal_names_a_batch_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 3.2)
    sim = compiled("gpt2", n_steps=2)
    with pytest.raises(InputError, match=r"A batch of 5 texts of 12 tokens needs about .* GB") as caught:
        run(sim, IDS)
    found = re.search(r"a batch of (\d+) would fit", str(caught.value))
    assert found is not None
    fits = int(found[1])
    assert run(sim, IDS[:fits]).logits.shape[0] == fits
    with pytest.raises(InputError):
        run(sim, IDS[: fits + 1])


def test_the_refusal_names_a_length_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 0.7)
    sim = compiled("gpt2", n_steps=2)
    for max_batch in (None, "auto"):
        with pytest.raises(InputError) as caught:
            run(sim, IDS[:1], max_batch=max_batch)
    found = re.search(r"texts of (\d+) tokens would fit", str(caught.value))
    assert found is not None
    assert run(sim, IDS[:1, : int(found[1])]).logits.shape[1] == int(found[1])


@pytest.mark.parametrize("max_batch", [0, -1, "all", 1.5])
def test_parts_that_make_no_sense(max_batch: Any) -> None:
    with pytest.raises(OptionError, match="max_batch"):
        run(compiled("gpt2", n_steps=2), IDS, max_batch=max_batch)
