"""What transformers' own functions do with a simulator's folder: Auto classes, options, saving, the hub, mistakes."""

from __future__ import annotations

import ast
import os
import pkgutil
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from command import ROOT, STORY, contents, finished, forked
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import tintc
from tintc.errors import ArtefactError, OptionError, TintcError
from tintc.runtime.artefact.card import model_card
from tintc.runtime.model import saving

IDS = tiny_models.token_ids(2, 12, vocab=22)


@pytest.fixture
def folder(llama_sim: Path, tmp_path: Path) -> Path:
    """A folder that the test may change."""
    return Path(shutil.copytree(llama_sim, tmp_path / "sim"))


def logits(sim: Any) -> torch.Tensor:
    with torch.no_grad():
        return sim(IDS).logits


def test_importing_tintc_leaves_the_compiler_alone() -> None:
    """By the import statements at the top level of modules: what loads a simulator needs no frontend, driver or
    reference. (transformers takes seconds; they would take more.)"""
    seen: set[str] = set()
    waiting = {"tintc", "tintc.runtime.model.causal_lm"}
    while waiting:
        name = waiting.pop()
        path = ROOT / name.replace(".", "/")
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        seen.add(name)
        for node in ast.parse(file.read_text()).body if file.is_file() else ():
            found = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom) and node.module == "tintc":
                found = [f"tintc.{alias.name}" for alias in node.names]
            waiting |= {other for other in found if other.startswith("tintc.")} - seen
    assert {"tintc", "tintc.runtime.model.saving"} <= seen
    assert not [name for name in seen if name.startswith(("tintc.compiler", "tintc.frontend", "tintc.reference"))]
    assert callable(tintc.compile) and tintc.reference.tune and {"compile", "reference"} <= set(dir(tintc))
    with pytest.raises(AttributeError, match="no attribute 'comple'"):
        _ = tintc.comple


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({}, torch.float32),
        ({"dtype": "auto"}, torch.float32),
        ({"dtype": torch.bfloat16}, torch.bfloat16),
        ({"dtype": "float64"}, torch.float64),
        ({"device_map": "auto"}, torch.float32),
        ({"device_map": {"": "cpu"}}, torch.float32),
        ({"device_map": "cpu", "dtype": "bfloat16"}, torch.bfloat16),
    ],
)
def test_options_of_from_pretrained(llama_sim: Path, options: dict[str, Any], dtype: torch.dtype) -> None:
    """As with any model; none of them makes it hold its structural tensors, or run literally."""
    sim = AutoModelForCausalLM.from_pretrained(llama_sim, **options)
    assert isinstance(sim, tintc.TintForCausalLM) and not sim.training
    if "device_map" not in options or not torch.cuda.is_available():
        assert logits(sim).dtype == dtype == sim.dtype
        assert sim.last_executor == "fused"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dtype": torch.float16}, "choose one of float32, bfloat16, float64"),
        ({"device_map": {"tables": "cpu", "": "disk"}}, "The device 'disk' is unknown"),
        ({"device_map": "abacus"}, "choose cpu or cuda"),
        ({"executor": "quick"}, "choose one of auto, fused, literal"),
        ({"attn_implementation": "sdpa"}, "leave it out"),
        ({"attn_implementation": "flash_attention_2"}, "leave it out"),
        ({"inner_lr": 0.5}, "was changed in one of inner_lr, .*pass inner_lr where the simulator runs"),
    ],
)
def test_options_that_cannot_be(llama_sim: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(TintcError, match=says):
        AutoModelForCausalLM.from_pretrained(llama_sim, **options)


def test_what_a_simulator_is_not(llama_sim: Path, tmp_path: Path) -> None:
    """Each in a sentence of its own; a tokenizer that could not be saved is refused when it is set."""
    sim = tintc.load(llama_sim)
    with pytest.raises(ArtefactError, match=r"is not pickled; keep it by sim\.save_pretrained"):
        torch.save(sim, tmp_path / "sim.pt")
    with pytest.raises(OptionError, match="no module of input embeddings"):
        sim.get_input_embeddings()
    with pytest.raises(OptionError, match="The tokenizer is a str; pass one of transformers'"):
        sim.tokenizer = "tokenizer"
    sim.tokenizer = None
    assert sim.tokenizer is None


def test_torch_compile_leaves_it_as_it_is(llama_sim: Path) -> None:
    """Both executors run as before: a simulator is no graph for the compiler, and is kept from it."""
    for executor in ("fused", "literal"):
        sim = tintc.load(llama_sim, executor=executor)
        assert torch.equal(logits(torch.compile(sim)), logits(sim)) and sim.last_executor == executor
    with pytest.raises(Exception, match="a simulator is a program of its own"):
        torch.compile(tintc.load(llama_sim), fullgraph=True)(IDS)


def test_saving_over_what_was_there(folder: Path) -> None:
    """Into the folder it lies in, in shards and whole: what is loaded is what was saved last."""
    sim = tintc.load(folder)
    plain = logits(sim)
    for turn, size in enumerate(("20KB", "5GB", "20KB")):
        with torch.no_grad():
            sim.rates.get_parameter("model.layers.0.mlp.down_proj").mul_(0.5)
        sim.save_pretrained(folder, max_shard_size=size)
        again = tintc.load(folder)
        assert torch.equal(logits(again), logits(sim)) and not torch.equal(logits(again), plain), turn
        assert len(list(folder.glob("*.safetensors"))) == 1 or size == "20KB"
        assert (folder / "model.safetensors").exists() == (size == "5GB")
        assert AutoTokenizer.from_pretrained(folder)("the cat")["input_ids"] == [2, 3]


def test_saving_onto_a_file(llama_sim: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a letter")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ArtefactError, match=r"(is a file; choose another|File exists\..* choose another)"):
            tintc.load(llama_sim).save_pretrained(path)
    assert contents(tmp_path) == {"file": b"a letter"}


FULL = OSError(28, "No space left on device")
FAILURES: dict[str, tuple[str, int]] = {
    "the tensors": ("transformers.modeling_utils.safe_save_file", 0),
    "the texts": ("tintc.runtime.model.saving.write_texts", 0),
    "the renaming of a folder": ("tintc.runtime.artefact.disk.rename_new", 0),
    "the first renaming": ("tintc.runtime.artefact.staging.os.rename", 0),
    "half of the renaming": ("tintc.runtime.artefact.staging.os.rename", 7),
    "the last but one renaming": ("tintc.runtime.artefact.staging.os.rename", 14),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_disk_that_is_full(folder: Path, monkeypatch: pytest.MonkeyPatch, failure: str) -> None:
    """Over an older simulator and where nothing was: one sentence, and everything as before."""
    name, after = FAILURES[failure]
    (folder / "notes.txt").write_text("kept")
    sim, before, real = tintc.load(folder), contents(folder.parent), pkgutil.resolve_name(name)
    outs = [folder, folder.parent / "new"]
    if "renaming" in failure:  # a new folder is renamed as a whole, an old one is given its files
        outs = [outs["of a folder" in failure]]
    for out in outs:
        left = [after]

        def fail(*given: Any, left: list[int] = left, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == -1:
                raise FULL
            return real(*given, **named)

        with monkeypatch.context() as patch:
            patch.setattr(name, fail)
            with pytest.raises(
                ArtefactError, match=r"No space left on device\. Nothing was changed; .* another folder\."
            ):
                sim.save_pretrained(out, max_shard_size="20KB")
        assert left[0] < 0 and contents(folder.parent) == before
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))
        with pytest.raises(ArtefactError, match="make room, or choose another"):
            sim.save_pretrained(folder)
    assert contents(folder.parent) == before
    sim.save_pretrained(folder)
    assert contents(folder.parent) == before


def test_killed_while_saving(folder: Path) -> None:
    """The old simulator is there; what lies in it is hidden, and gone after the next save."""
    (folder / "notes.txt").write_text("kept")
    before = contents(folder)

    def save_until_killed() -> None:
        saving.write_texts = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        tintc.load(folder).save_pretrained(folder, max_shard_size="20KB")

    assert finished(forked(save_until_killed)).code == -signal.SIGKILL
    (left,) = [path for path in folder.iterdir() if path.is_dir()]
    assert left.name.startswith(".") and len([*left.glob("*.safetensors")]) > 1
    assert {name: data for name, data in contents(folder).items() if left.name not in name} == before
    sim = tintc.load(folder)
    sim.save_pretrained(folder)
    assert contents(folder) == before and torch.equal(logits(tintc.load(folder)), logits(sim))


def test_edits_and_training_survive_saving(folder: Path, tmp_path: Path) -> None:
    """Trained prefixes run fused; edited structural tensors stay edited, and the folder says so."""
    sim = tintc.load(folder)
    with torch.no_grad():
        sim.get_parameter("prefixes.model.layers.0.mlp.down_proj.weight").mul_(1.5)
    sim.save_pretrained(tmp_path / "trained")
    again = tintc.load(tmp_path / "trained")
    assert torch.allclose(logits(again), logits(sim)) and again.last_executor == "fused"
    assert "literally only" not in (tmp_path / "trained" / "README.md").read_text()
    with torch.no_grad():
        sim.get_parameter("structure.linear_forward.w_o.0.weight").mul_(1.5)
    sim.save_pretrained(tmp_path / "edited")
    again = tintc.load(tmp_path / "edited")
    assert torch.equal(logits(again), logits(sim)) and again.last_executor == "literal"
    assert "literally only" in (tmp_path / "edited" / "README.md").read_text()


def test_other_processes_write_nothing(llama_sim: Path, tmp_path: Path) -> None:
    tintc.load(llama_sim).save_pretrained(tmp_path / "rank1", is_main_process=False)
    assert not list((tmp_path / "rank1").iterdir())


def test_the_hub_gets_the_whole_folder(llama_sim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`push_to_hub`, and `save_pretrained` with it: program, tokenizer and our own card too."""
    sent: list[tuple[str, set[str], str, dict[str, Any]]] = []

    class Hub:
        def __init__(self, token: Any):
            self.token = token

        def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> Any:
            return type("Repository", (), {"repo_id": f"me/{repo_id}"})

        def upload_folder(self, folder_path: Path, repo_id: str, **commit: Any) -> str:
            files = {file.name for file in folder_path.iterdir()}
            sent.append((repo_id, files, (folder_path / "README.md").read_text(), commit))
            return "there"

    monkeypatch.setattr(saving, "HfApi", Hub)
    sim = tintc.load(llama_sim)
    assert sim.push_to_hub("sim", commit_message="A simulator") == "there"
    sim.save_pretrained(tmp_path / "other", push_to_hub=True, private=True)
    assert [name for name, *_ in sent] == ["me/sim", "me/other"]
    for _, files, card, _ in sent:
        assert files == {file.name for file in llama_sim.iterdir()} and "# TinT simulator of" in card
    assert sent[0][3] == {"commit_message": "A simulator"}


def test_the_card(llama_sim: Path) -> None:
    """What it is, of which model, with which options, how it is loaded; the example in it runs."""
    config = tintc.load(llama_sim).config
    card = (llama_sim / "README.md").read_text()
    assert (
        card.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\n") and "base_model" not in card
    )
    for said in (
        "# TinT simulator of model",
        "| learning rate | 0.02 |",
        "| auxiliary: model_type | llama |",
        "the top 1 of 1 layers",
        "`import tintc` before anything else",
        "AutoModelForCausalLM.from_pretrained",
        "trains on the first 50 %",
        "`train_mask` and `loss_mask`",
        "tintc.AdaptedState.load",
    ):
        assert said in card, said
    code = card.partition("```python\n")[2].partition("```")[0].replace("path/to/this/folder", str(llama_sim))
    found: dict[str, Any] = {}
    exec(code.replace("A text to train on, and to predict the rest of", STORY[:20]), found)
    assert found["out"].logits.shape[-1] == 23
    config.provenance = config.provenance | {"source": "someone/model"}
    bare = model_card(config, has_tokenizer=False)
    assert "\nbase_model: someone/model\n---" in bare and "came without a tokenizer" in bare
    assert "AutoTokenizer.from_pretrained" not in bare


def test_transformers_alone_does_not_know_it(llama_sim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `import tintc`: the error that the card prepares for."""
    monkeypatch.delitem(CONFIG_MAPPING._extra_content, "tint")
    with pytest.raises(ValueError, match="`tint` but Transformers does not recognize this architecture"):
        AutoModelForCausalLM.from_pretrained(llama_sim)


def test_there_is_no_model_without_the_head(llama_sim: Path) -> None:
    """In a sentence of ours, not in a list of all that transformers knows."""
    for attempt in (lambda: AutoModel.from_pretrained(llama_sim), lambda: AutoModel.from_config(tintc.TintConfig())):
        with pytest.raises(OptionError, match=r"no model without its language-model head, .* tintc\.load"):
            attempt()


def test_a_configuration_without_its_program_is_no_simulator() -> None:
    with pytest.raises(ArtefactError, match=r"without a program; load the folder with tintc\.load"):
        AutoModelForCausalLM.from_config(tintc.TintConfig())
