"""The blocks of docs/tutorial.md run, in order, on the model they name."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from command import ROOT, Command
from tiny_models import relative

MODEL = ROOT.parent / "shared" / "models" / "stories260K"
DATA = ROOT.parent / "shared" / "data" / "classification" / "sst2"
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("error:Converting a tensor")
@pytest.mark.skipif(not MODEL.exists(), reason=f"no pretrained model in {MODEL}")
@pytest.mark.skipif(not DATA.exists(), reason=f"no data set in {DATA}")
def test_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.chdir(tmp_path)
    Path("stories260K").symlink_to(MODEL)
    Path("sst2").symlink_to(DATA)
    seen: dict[str, Any] = {}
    for language, text in BLOCK.findall((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(text, "docs/tutorial.md", "exec"), seen)
        else:
            for line in text.splitlines():
                name, *arguments = shlex.split(line)
                found = command(*arguments)
                assert name == "tintc" and found.code == 0, f"{line}\n{found.err}"
    check(seen)


def test_the_module_in_the_tutorial_is_the_tested_one() -> None:
    _, _, source = (ROOT / "tests" / "nano_gpt.py").read_text(encoding="utf-8").partition("annotations\n\n")
    assert source and source in (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


@pytest.mark.skipif(not MODEL.exists(), reason=f"no pretrained model in {MODEL}")
@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_readme_and_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    """Their Python runs as it stands, block after block, with a model where they say path/to/model."""
    monkeypatch.chdir(tmp_path)
    Path("path/to").mkdir(parents=True)
    Path("path/to/model").symlink_to(MODEL)
    seen: dict[str, Any] = {}
    for language, text in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
        assert language == "python"
        exec(compile(text, page, "exec"), seen)
    assert not seen["out"].logits.equal(seen["out"].logits_before)
    if page == "README.md":
        return
    assert seen["guess"].shape == (seen["sim"].config.vocab_size,) and seen["guess"].isfinite().all()
    assert Path("updated/config.json").exists() and Path("out").exists()
    assert relative(seen["exact"].logits_before, seen["out"].logits_before) < 1e-4, "the same model, in fp64"


@pytest.mark.skipif(not MODEL.exists(), reason=f"no pretrained model in {MODEL}")
def test_the_page_of_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    """A story is predicted better by what has learnt its beginning."""
    monkeypatch.chdir(tmp_path)
    Path("stories260K").symlink_to(MODEL)
    Path("story.txt").symlink_to(ROOT / "benchmarks" / "data" / "story.txt")
    seen: dict[str, Any] = {}
    shown = ""
    for language, text in BLOCK.findall((ROOT / "docs" / "streams.md").read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(text, "docs/streams.md", "exec"), seen)
        else:
            for line in text.splitlines():
                found = command(*shlex.split(line)[1:])
                assert found.code == 0, f"{line}\n{found.err}"
                shown += found.out
    stream = seen["stream"]
    assert stream.perplexity_streamed < 0.97 * stream.perplexity_frozen
    assert f"{stream.perplexity_streamed:.3g}" in shown
    assert (
        seen["both"].examples == 4 and Path("adapter/adapter_config.json").exists() and Path("end.safetensors").exists()
    )


def check(seen: dict[str, Any]) -> None:
    """What the text says of what the blocks have done."""
    out, half, held_out = seen["out"], seen["half"], seen["held_out"]
    assert held_out(out.logits, half) < held_out(out.logits_before, half)
    exact = seen["exact"]
    assert relative(exact.logits_before, out.logits_before) < 1e-4, "the same model, in fp64"
    assert 0.5 < float(torch.cosine_similarity(*seen["updates"], dim=0)) < 0.99
    assert exact.losses[1] < exact.losses[0] and held_out(exact.logits, half) > held_out(out.logits, half)
    assert len(exact.gradients) == 2 and not any("embed" in name for name in exact.gradients[0])
    assert not seen["gentle"].logits.equal(out.logits)
    assert not any(seen[name].logits.equal(seen["gentle"].logits) for name in ("slower", "top"))
    check_few_shot(seen)
    assert seen["drift"].shape == (1, seen["ids"].shape[1]) and float(seen["drift"].sum()) > 0
    assert not seen["patched"].equal(out.logits)
    assert seen["role"].phase == "descent" and "4.mlp.up_proj.weight" in seen["role"].parameter
    assert seen["norms"] and seen["literal"].logits.isfinite().all()
    assert seen["text"].shape[1] == seen["prompt"].shape[1] + 20
    assert seen["losses"][-1] < seen["losses"][0]
    assert Path("sim-trained/config.json").exists() and Path("story.state").exists()
    assert seen["verdict"].ok
    with torch.no_grad():
        after = seen["updated"](seen["nano_ids"])[0]
        adapted = seen["nano_sim"](seen["nano_ids"], state=seen["nano_state"]).logits
    assert relative(after, adapted) < 1e-4


def check_few_shot(seen: dict[str, Any]) -> None:
    """The targets are the labels, and the update has made their first tokens likelier after the query."""
    few, guess = seen["few"], seen["guess"]
    targets = few.input_ids[0][few.loss_mask[0]]
    assert seen["sim"].tokenizer.decode(targets).split() == ["bad", "bad", "good", "good"]
    likely = [logits[0, -1].softmax(-1)[targets[[0, -1]]].sum() for logits in (guess.logits_before, guess.logits)]
    assert likely[1] > likely[0]
    counted = seen["counted"].logits
    assert counted.shape[1] == few.input_ids.shape[1] and not counted.equal(guess.logits), "all tokens are targets"
