"""Options and fixtures of the whole test suite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import Command, make_command

TRANSFORMERS_MARKERS = (
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "generate",
    "torch_compile_test",
    "torch_export_test",
)
"""Marks that transformers' own tests have, see ``runtime/model/test_transformers_mixins.py``."""
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite golden texts with what the passes give now")


def pytest_configure(config: pytest.Config) -> None:
    """Without them `--strict-markers` refuses transformers' tests."""
    for name in TRANSFORMERS_MARKERS:
        config.addinivalue_line("markers", f"{name}: transformers' own")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``golden(name, text)`` compares with ``golden/<name>.txt`` beside the test; --update-golden rewrites the file."""

    def check(name: str, text: str) -> None:
        path = Path(request.path).parent / "golden" / f"{name}.txt"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"{path} is missing; run pytest with --update-golden and read what it wrote"
        assert text == path.read_text()

    return check


@pytest.fixture
def shared() -> Path:
    """The folder of models and golden data beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not here; it holds pretrained models and the authors' outputs")
    return SHARED


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """``command("compile", folder, ...)`` runs `tintc` in this process."""
    return make_command(monkeypatch, capfd)
