"""One process of `speed.py`: load a simulator or its auxiliary, run one update, and print what it took as JSON.

    python benchmarks/speed_worker.py fused|explicit FOLDER COMPILED BATCH

seconds: from before the load to the first result, imports not counted; peak: largest resident memory beyond that of the
imports; weights, activations: bytes of the auxiliary's parameters, and of what autograd keeps of one forward pass over
the whole batch's train tokens plus the batch's logits.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import psutil
import torch
import transformers

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
import shapes
from peer import Peer
from speed import LENGTH, RATE, TRAIN, texts

import tintc
from tintc.ir.text import parse_program
from tintc.runtime.execution.available import peak_rss_bytes


def fused(folder: Path, batch: int) -> dict[str, float]:
    base, start = psutil.Process().memory_info().rss, time.perf_counter()
    sim = tintc.load(folder, executor="fused")
    with torch.no_grad():
        sim(texts(batch, sim.config.vocab_size))
    return {"seconds": time.perf_counter() - start, "peak": peak_rss_bytes() - base}


def explicit(folder: Path, compiled: Path, batch: int) -> dict[str, float]:
    program = parse_program((compiled / "program.tint").read_text(encoding="utf-8"))
    base, start = psutil.Process().memory_info().rss, time.perf_counter()
    peer = Peer(shapes.load(folder), program, RATE)
    ids = texts(batch, peer.model.config.vocab_size)
    peer.run_batch(ids, TRAIN)
    found = {"seconds": time.perf_counter() - start, "peak": peak_rss_bytes() - base}
    weights = sum(p.numel() * p.element_size() for p in peer.model.parameters())
    logits = batch * LENGTH * peer.model.config.vocab_size * 4
    return found | {"weights": weights, "activations": saved(peer, ids[:, :TRAIN]) + logits}


def saved(peer: Peer, ids: torch.Tensor) -> int:
    """Bytes that autograd keeps for the backward pass, parameters aside, each storage once."""
    own = {p.untyped_storage().data_ptr() for p in peer.model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = peer.model(ids, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    return sum(storage.nbytes() for storage in kept.values())


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    kind, folder, compiled, batch = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    print(json.dumps(fused(folder, batch) if kind == "fused" else explicit(folder, compiled, batch)))
