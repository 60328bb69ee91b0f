"""Options and fixtures of the whole test suite."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

FOREIGN = (
    *("FORCE_COLOR", "NO_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "COLUMNS", "LINES", "TERMINAL_WIDTH"),
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
)
"""Variables of a shell, of continuous integration or of a launcher that change what is printed, or who prints."""
for variable in [*FOREIGN, *(name for name in os.environ if name.startswith("TINTC_"))]:
    os.environ.pop(variable, None)  # before anything is imported that reads them
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton, which looks at it then

import tiny_models
import torch._dynamo
from command import Command, contents, make_command, model_folder, simulator_folder
from exports import fresh_exports, shared_exports
from hypothesis import HealthCheck, settings

import tintc

torch.set_num_threads(1)  # the models are tiny; and a fork of a process whose OpenMP threads have run waits for ever

settings.register_profile(
    "the same everywhere",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("the same everywhere")
"""Examples are the same in every run, and no clock decides. Others are drawn with ``--hypothesis-profile default``."""

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


def pytest_collection_finish() -> None:
    """What is imported stays: the collector of garbage does not look at it again, and comes less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    _seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Draw the same random numbers whatever ran before in this process, and others than the fixtures drew."""
    _seed(1)


def _seed(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)


@pytest.fixture(autouse=True, scope="session")
def _cheap_tracing() -> None:
    """Tracing keeps no shapes of operators: in models of two layers few come again."""
    torch._dynamo.config.fake_tensor_cache_enabled = False


@pytest.fixture(autouse=True, scope="session")
def _one_export_for_all() -> Iterator[None]:
    with shared_exports():
        yield


@pytest.fixture
def traced_anew() -> Iterator[None]:
    """For tests of tracing itself: every model is exported, whatever was exported before."""
    with fresh_exports():
        yield


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


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What many tests read and none may change: they change copies. At the end it is looked whether that is so."""
    base = tmp_path_factory.mktemp("folders")
    two, one = base / "two-layers", base / "one-layer"
    tintc.compile(model_folder(two / "tiny"), inner_lr=1e-2).save_pretrained(two / "sim")
    tintc.compile(model_folder(one / "tiny", tiny_models.gpt2(n_layers=1)), inner_lr=1e-2, output=one / "sim")
    simulator_folder(base / "llama")
    before = contents(base)
    yield base
    assert contents(base) == before, "a test has changed what all share"


@pytest.fixture(scope="session")
def two_layers(folders: Path) -> Path:
    """The folder of a GPT-2 with a tokenizer."""
    return folders / "two-layers" / "tiny"


@pytest.fixture(scope="session")
def two_layers_sim(folders: Path) -> Path:
    """Its simulator with an inner rate of 0.01, saved from memory."""
    return folders / "two-layers" / "sim"


@pytest.fixture(scope="session")
def one_layer(folders: Path) -> Path:
    """The folder of a GPT-2 of one layer with a tokenizer."""
    return folders / "one-layer" / "tiny"


@pytest.fixture(scope="session")
def one_layer_sim(folders: Path) -> Path:
    """Its simulator with an inner rate of 0.01, written tensor by tensor."""
    return folders / "one-layer" / "sim"


@pytest.fixture(scope="session")
def llama_sim(folders: Path) -> Path:
    """The simulator of a Llama of one layer, whose model lies beside it."""
    return folders / "llama" / "sim"
