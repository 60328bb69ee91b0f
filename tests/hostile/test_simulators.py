"""Simulators from strangers: every lie of `lies` is refused in one sentence, and nothing else happens."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lies import DEEP, LIES, Change, entry, text

import tintc
from tintc.errors import TintcError

IDS = torch.arange(3, 9)[None]
SMALL = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 12, "vocab_size": 23}


@pytest.fixture(autouse=True)
def _ended_after_a_minute() -> Iterator[None]:
    """A reader that waits for a pipe does so for ever."""

    def stop(*_: object) -> None:
        raise TimeoutError("it does not come to an end")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("lie", LIES)
def test_lies(llama_sim: Path, tmp_path: Path, lie: str) -> None:
    change, says = LIES[lie]
    folder = Path(shutil.copytree(llama_sim, tmp_path / "sim"))
    change(folder)
    with pytest.raises(TintcError) as refused:
        _ = tintc.load(folder).tokenizer
    sentence = str(refused.value)
    assert says in sentence and "\n" not in sentence and len(sentence) < 1000


ADAPTER = {"weight": "of.none", "a": "a", "b": "b", "sizes": [1, 8, 8], "scale": 1.0, "transposed": False}
KEPT: dict[str, tuple[Change, str]] = {
    "nothing": (text("auxiliary.json", ""), "it is not valid JSON"),
    "a list": (text("auxiliary.json", "[]"), "it is not an object"),
    "lists without end": (text("auxiliary.json", DEEP), "nests more than"),
    "a class that is none": (entry("auxiliary.json", **{"class": "pipeline"}), "transformers has no pipeline"),
    "a class that is a number": (entry("auxiliary.json", **{"class": 7}), "it has no class of a model"),
    "a configuration that is a list": (entry("auxiliary.json", config=[]), "it has no config of a model"),
    "a width as text": (entry("auxiliary.json", config={"model_type": "llama", "hidden_size": "8"}), "is damaged"),
    "layers without end": (
        entry("auxiliary.json", config={"model_type": "llama", "num_hidden_layers": 10**9}),
        "num_hidden_layers 1,000,000,000",
    ),
    "a model that is larger": (entry("auxiliary.json", config={"model_type": "llama"}), "and the simulator holds"),
    "another width": (
        entry("auxiliary.json", config={"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1} | SMALL),
        "is of another shape",
    ),
    "sums of nothing": (entry("auxiliary.json", sums={"a": 1}), "it has no sums of a model"),
    "places that are numbers": (entry("auxiliary.json", places=[1]), "its places are not a model's"),
    "adapters of text": (entry("auxiliary.json", adapters=["lora"]), "its adapters are not a model's"),
    "an adapter of 1e9 rows": (entry("auxiliary.json", adapters=[ADAPTER | {"sizes": [10**9, 8, 8]}]), "numbers"),
    "an adapter of no weight": (entry("auxiliary.json", adapters=[ADAPTER]), "which is no weight of its sizes"),
    "settings that are a list": (entry("auxiliary.json", generation=[]), "it has no generation of a model"),
}
"""What a folder may say of the model that it was made from, which is built where a state is exported."""


@pytest.mark.parametrize("lie", KEPT)
def test_lies_about_the_auxiliary(llama_sim: Path, tmp_path: Path, lie: str) -> None:
    change, says = KEPT[lie]
    folder = Path(shutil.copytree(llama_sim, tmp_path / "sim"))
    change(folder)
    sim = tintc.load(folder)
    with pytest.raises(TintcError) as refused:
        sim.adapt(IDS).export(tmp_path / "out")
    assert says in str(refused.value) and len(str(refused.value)) < 1000
    assert not (tmp_path / "out").exists()


def test_without_a_lie(llama_sim: Path) -> None:
    """What all rows begin with is taken."""
    assert tintc.load(llama_sim).tokenizer is not None
