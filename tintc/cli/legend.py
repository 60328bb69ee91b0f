"""What the words and letters in the tables of `plan` and `inspect` mean."""

from __future__ import annotations

from collections.abc import Iterable

from tintc.cli.console import print_lines

MEANINGS = {
    "S": "weight rows in one prefix",
    "S'": "parts of a weight row",
    "K": "prefixes of one module: embeddings that hold its weights, before the text",
    "d_h": "width of a head",
    "D_sim": "width of the simulator: heads times d_h",
    "padding": "share of a slot that is padding",
    "text left": "positions for text in a simulator no longer than the longest text",
    "table": "parameters by the paper's table",
    "unrolled": "parameters with structural tensors for every module",
    "unique": "parameters as stored",
    "work": "multiply-adds of one literal run on the longest text",
    "cost": "work, as a multiple of the chosen layout's",
    "stack": "S, weight rows in one prefix",
    "shards": "S', parts of a weight row",
    "n_prefixes": "K, prefixes of one module, which hold its weights before the text",
    "sim_seq_len": "positions of the simulator: K and the longest text",
    "d_sim": "D_sim, width of the simulator: heads times head_width",
    "memory_slots": "values of the auxiliary's width that are kept for each position at a time, at most",
    "prefixes": "embeddings that hold weights, of all modules together",
}


def print_legend(terms: Iterable[str]) -> None:
    """Those of the terms that have a meaning to be told, a line each."""
    print_lines([f"{term}: {MEANINGS[term]}" for term in dict.fromkeys(terms) if term in MEANINGS])
