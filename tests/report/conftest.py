"""The page that the tests of this folder read, made once: of a small simulator and the model it was compiled from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from command import STORY

import tintc
from tintc.cli.report import make_page
from tintc.report.page import Page


@pytest.fixture(scope="package")
def page(llama_sim: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """With all there is to show: the model, and another simulator of it, which takes two steps."""
    model = str(llama_sim.parent / "model")
    other = tmp_path_factory.mktemp("other") / "two-steps"
    tintc.compile(model, inner_lr=0.02, n_steps=2, output=other)
    made, _ = make_page(str(llama_sim), model, STORY, str(other), trusted=False)
    return made


@pytest.fixture(scope="package")
def page_file(page: Page, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(page.html, encoding="utf-8")
    yield path
