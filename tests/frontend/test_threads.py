"""Captures in several threads: what they change of the process is as before afterwards, and the graphs are right."""

from __future__ import annotations

import logging
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from tiny_models import llama
from transformers import masking_utils

from tintc.frontend.graph.trace_model import TRACERS, capture
from tintc.frontend.importer import import_graph
from tintc.ir.text import print_program


def state() -> tuple[object, ...]:
    levels = [logging.getLogger(name).level for name in TRACERS]
    return (masking_utils.find_packed_sequence_indices, sys.stderr, list(warnings.filters), levels)


@pytest.mark.usefixtures("traced_anew")
def test_captures_in_two_threads_do_not_disturb_each_other() -> None:
    models = [llama(n_layers=1) for _ in range(2)]
    before = state()
    with ThreadPoolExecutor(2) as threads:
        programs = {print_program(import_graph(graph)) for graph in threads.map(capture, models)}
    assert len(programs) == 1
    assert state() == before
