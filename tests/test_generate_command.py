"""`tintc generate`: what it writes, as it comes and as JSON; states in files; mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command import STORY, Command

import tintc
from tintc.runtime.model.adapted_state import AdaptedState

PROMPT = " ".join(STORY.split()[:12])


@pytest.fixture(scope="module")
def compiled(one_layer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compiled") / "sim"
    tintc.compile(one_layer, inner_lr=0.2, max_length=24).save_pretrained(out)
    return out


def test_what_it_writes(command: Command, compiled: Path, tmp_path: Path) -> None:
    sim = tintc.load(compiled)
    ids = sim.tokenizer(PROMPT, return_tensors="pt").input_ids
    wanted = sim.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
    made = command("generate", compiled, "--text", PROMPT, "--max-new-tokens", 6, "--json")
    assert made.code == 0, made.err
    assert made.json["ids"] == wanted.tolist() and made.json["prompt_tokens"] == 12
    assert made.json["new_tokens"] == len(wanted) and made.json["seconds"] > 0 and made.json["executor"] == "fused"
    (tmp_path / "prompt.txt").write_text(PROMPT)
    shown = command("generate", compiled, "--file", tmp_path / "prompt.txt", "--max-new-tokens", 6)
    assert shown.code == 0, shown.err
    assert shown.out.replace(" ", "").strip() == (PROMPT + sim.tokenizer.decode(wanted)).replace(" ", "")


def test_ways_of_choosing(command: Command, compiled: Path) -> None:
    def written(*options: object) -> list[int]:
        found = command("generate", compiled, "--text", PROMPT, "--max-new-tokens", 8, "--json", *options)
        assert found.code == 0, found.err
        return found.json["ids"]

    greedy = written()
    sampled = written("--temperature", 2.0, "--top-k", 20, "--top-p", 0.99, "--seed", 3)
    assert sampled == written("--temperature", 2.0, "--top-k", 20, "--top-p", 0.99, "--seed", 3)
    assert sampled != written("--temperature", 2.0, "--top-k", 20, "--top-p", 0.99, "--seed", 4)
    assert written("--top-k", 1, "--seed", 1) == greedy
    sim = tintc.load(compiled)
    ids = sim.tokenizer(PROMPT, return_tensors="pt").input_ids
    beams = sim.generate(ids, max_new_tokens=8, do_sample=False, num_beams=3)
    assert written("--beams", 3) == beams[0, 12:].tolist()
    assert command("generate", compiled, "--text", PROMPT, "--beams", 2, "--max-new-tokens", 3).code == 0
    assert written("--executor", "literal", "--max-new-tokens", 3) == greedy[:3]
    assert written("--executor", "fused") == greedy


def test_learning_on(command: Command, compiled: Path, tmp_path: Path) -> None:
    """The command writes what Python does, and keeps what was learnt of all of it."""
    given = ("generate", compiled, "--text", PROMPT, "--max-new-tokens", 7, "--learn-every", 3, "--lr", 0.4, "--json")
    made = command(*given, "--save-state", tmp_path / "end")
    assert made.code == 0, made.err
    sim = tintc.load(compiled)
    ids = sim.tokenizer(PROMPT, return_tensors="pt").input_ids
    wanted = sim.generate(ids, learn_every=3, inner_lr=0.4, max_new_tokens=7, return_dict_in_generate=True)
    assert made.json["ids"] == wanted.sequences[0, 12:].tolist()
    kept = AdaptedState.load(tmp_path / "end", sim)
    with torch.no_grad():
        logits = [sim(ids, state=state).logits for state in (kept, wanted.past_key_values.state)]
    assert torch.allclose(*logits, rtol=1e-5, atol=1e-5)
    assert command(*given, "--state", tmp_path / "end").code == 0
    for option, message in (
        (("--train-fraction", 0.5), "leave out --train-fraction"),
        (("--beams", 2), "leave out beams"),
        (("--save-state", "no/where"), "The folder no does not exist"),
    ):
        found = command(*given, *option)
        assert found.code == 2 and message in found.err and not found.out


def test_states(command: Command, compiled: Path, tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    given = ("generate", compiled, "--max-new-tokens", 5, "--json")
    trained = ("--lr", 0.4, "--train-fraction", 0.75)
    plain = command(*given, "--text", PROMPT, *trained).json["ids"]
    assert command(*given, "--text", PROMPT, *trained, "--save-state", file).json["ids"] == plain
    assert command(*given, "--text", PROMPT, "--state", file).json["ids"] == plain
    assert command(*given, "--text", "cat", "--state", file).json["prompt_tokens"] == 1
    sim = tintc.load(compiled)
    ids = sim.tokenizer(PROMPT, return_tensors="pt").input_ids
    right = sim.adapt(ids, train_mask=torch.arange(12)[None] < 9, inner_lr=0.4)
    with torch.no_grad():
        found = sim(ids, state=AdaptedState.load(file, sim)).logits
        assert torch.allclose(found, sim(ids, state=right).logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--text", PROMPT, "--max-new-tokens", 13), "would be 25; this simulator was compiled for at most 24"),
        (("--text", PROMPT, "--max-new-tokens", 13, "--save-state", "a.state"), "Ask for fewer new tokens"),
        (("--text", PROMPT, "--lr", "nan"), "The learning rate must be finite"),
        (("--text", "cat"), "A prompt has 1 token;"),
        (("--text", PROMPT, "--temperature", 0), "The temperature is 0.0; it must be more than 0."),
        (("--text", PROMPT, "--top-p", 1.5), "The top-p is 1.5"),
        (("--text", PROMPT, "--beams", 0), "The number of beams is 0"),
        (("--text", PROMPT, "--state", "x", "--lr", 1), "A state is adapted already"),
        (("--text", PROMPT, "--state", "/no/such/file"), "There is no state at /no/such/file"),
        (("--text", PROMPT, "--train-fraction", 2), "The train fraction is 2.0"),
        ((), "Pass the text either with --text or with --file"),
    ],
)
def test_mistakes(
    command: Command,
    compiled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[object, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if "--max-new-tokens" not in options:
        options = (*options, "--max-new-tokens", 4)
    found = command("generate", compiled, *options)
    assert (found.code, found.out) == (2, "")
    assert message in found.err and found.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
