"""Everything below this folder needs a CUDA GPU: `pytest -m cuda`."""

from __future__ import annotations

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cuda: needs a CUDA GPU; skipped where there is none")


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU here, or torch was built without CUDA")
    return torch.device("cuda")
