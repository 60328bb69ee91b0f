"""Every code block of the documentation runs, in order, on the models that the page names.

fp32 where models are loaded as they are; what the text says of the results is checked with the tolerances below.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pages
import pytest
import torch
from command import Command
from page_checks import CHECKS
from pages import blocks, check_console, prepare, run_page
from torch import nn
from transformers import AutoModelForCausalLM

import tintc
from tintc.frontend.mixers.registry import REGISTERED

needs_models = pytest.mark.skipif(
    not (pages.MODEL.exists() and pages.DATA.exists()), reason=f"no model in {pages.MODEL}, or no data in {pages.DATA}"
)
OWN_SIMULATOR = {"docs/tutorial.md", "docs/guide.md", "docs/streams.md", "README.md", "docs/package.md"}
"""Pages that make their own `sim`."""
WHOLE_STORY = {"README.md", "docs/streams.md"}
"""Pages of which it is checked what the story gives; the others have its beginning."""
TWO_LAYERS = {
    *("docs/few-shot-prompts.md", "docs/generating.md", "docs/gpu.md", "docs/many-gpus.md", "docs/optimisers.md"),
    *("docs/report.md", "docs/training.md"),
}
"""Pages that name no layer above the second: of the model they have the first two."""
RUN_ELSEWHERE = {"docs/adding-an-op.md": "test_excerpts.py", "docs/tools.md": "test_bridges.py"}
"""Pages whose blocks another test runs, or compares with the code."""


PAGES = [
    page
    for page in pages.pages()
    if page not in RUN_ELSEWHERE and {"python", "sh"} & {language for language, _ in blocks(page)}
]


@pytest.fixture(scope="module")
def with_simulator(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Path, Path]]:
    """Return the model's first layers, as many as asked for, and the simulator that pages begin with: two steps, every
    layer."""

    @cache
    def make(layers: int) -> tuple[Path, Path]:
        base = tmp_path_factory.mktemp("pages")
        model, folder = pages.MODEL, base / "sim"
        if layers < 5:
            model = base / "model"
            AutoModelForCausalLM.from_pretrained(pages.MODEL, num_hidden_layers=layers).save_pretrained(model)
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copyfile(pages.MODEL / name, model / name)
        tintc.compile(str(model), n_steps=2, inner_lr=1e-4, output=folder)
        return model, folder

    return make


def test_every_block_says_what_it_is() -> None:
    """By its language; text that is only indented says nothing."""
    unknown = [(page, language) for page in pages.pages() for language, _ in blocks(page)]
    assert len(unknown) > 100 and [one for one in unknown if one[1] not in pages.LANGUAGES] == []
    without_fences = {page: pages.FENCE.sub("", pages.text_of(page)) for page in pages.pages()}
    assert [page for page, text in without_fences.items() if pages.INDENTED.search(text)] == []


def test_pages_that_run_elsewhere_do() -> None:
    for page, test in RUN_ELSEWHERE.items():
        assert Path(page).name in (pages.ROOT / "tests" / test).read_text(encoding="utf-8")


def test_commands_that_are_only_shown_exist() -> None:
    shown = [text for page in pages.pages() for language, text in blocks(page) if language == "console"]
    assert shown
    for text in shown:
        check_console(text)


def test_commands_that_do_not_exist_are_noticed() -> None:
    for text in ("$ tintc compile MODEL --no-such-option\n", "$ tintc nothing\n", "no command\n"):
        with pytest.raises(AssertionError):
            check_console(text)
    for words in (["make", "nothing"], ["pip", "install", ".[nothing]"], ["python", "nothing.py"], ["rm", "sim"]):
        with pytest.raises(AssertionError):
            pages.check_line(words)


def few_ids() -> dict[str, Any]:
    """A model, its simulator and a text, under the names that short pages take for granted."""
    sim = tintc.load("sim")
    ids = sim.tokenizer(Path("story.txt").read_text(encoding="utf-8")[:200], return_tensors="pt").input_ids
    model = AutoModelForCausalLM.from_pretrained("stories260K")
    mask = torch.arange(ids.shape[1])[None] < 20
    return {"tintc": tintc, "torch": torch, "model": model, "sim": sim, "ids": ids, "train_mask": mask}


OWN_DECODER = """
class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 12), nn.Linear(12, 11, bias=False)
        self.inner, self.strength, self.out = (nn.Linear(12, 12) for _ in range(3))
        self.rate = nn.Parameter(torch.rand(12))

    def forward(self, ids):
        x = self.embed(ids)
        mixed = running_mean(self.inner(x), self.strength(x).sigmoid(), decay=torch.exp(-self.rate))
        return self.head(x + self.out(mixed))
"""
"""A decoder whose one layer mixes tokens by a function that the page of mixers defines, in the same module."""


@pytest.fixture
def own_settings() -> Iterator[None]:
    """The mixers that a page registers are forgotten afterwards, and PyTorch's switch for TF32 is put back."""
    before, allowed = dict(REGISTERED), torch.backends.cuda.matmul.allow_tf32
    yield
    REGISTERED.clear()
    REGISTERED.update(before)
    torch.backends.cuda.matmul.allow_tf32 = allowed


@needs_models
@pytest.mark.usefixtures("own_settings")
@pytest.mark.filterwarnings("error:Converting a tensor")
@pytest.mark.parametrize("page", PAGES)
def test_page(
    page: str,
    with_simulator: Callable[[int], tuple[Path, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(*with_simulator(2 if page in TWO_LAYERS else 5), None if page in WHOLE_STORY else 600)
    names: dict[str, Any] = {}
    if page in OWN_SIMULATOR:
        Path("sim").unlink()
    if page in ("docs/approximations.md", "docs/optimisers.md", "docs/modules.md", "docs/gpu.md"):
        names |= few_ids()
    if page == "docs/gpu.md":  # whose layers go to GPUs that there are not, and whose texts are long
        warm_up = tintc.TintForCausalLM.warm_up
        monkeypatch.setattr(tintc.TintForCausalLM, "place_layers", lambda sim, devices=None: {})
        monkeypatch.setattr(
            tintc.TintForCausalLM, "warm_up", lambda sim, texts, length, **more: warm_up(sim, 2, length // 16, **more)
        )
    if page == "docs/mixers.md":
        module = ModuleType("page_of_mixers")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        names = vars(module)
        names |= {"torch": torch, "nn": nn, "tintc": tintc}
        exec(OWN_DECODER, names)
        names["model"] = names["Mean"]()
    if page == "docs/tptt.md":
        names |= vars(importlib.import_module("examples.tptt"))
    names["shown"] = run_page(page, names, command)
    check = CHECKS.get(page)
    if check is not None:
        check(names)
