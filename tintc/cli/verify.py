"""`tintc verify`."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import Tensor

from tintc.cli.console import print_json, silence_libraries, stages
from tintc.cli.console import show as show_table
from tintc.cli.texts import read_text, tokenise
from tintc.errors import InputError, OptionError
from tintc.evaluation.blocks import train_tokens
from tintc.frontend.source.load import load_auxiliary
from tintc.frontend.source.provenance import ADAPTER_FATES, ADAPTERS
from tintc.frontend.source.sample import PROBE, numbers
from tintc.reference.verdict import Compared, Verdict
from tintc.reference.verify import verify
from tintc.runtime.execution.available import peak_rss_bytes
from tintc.runtime.load import load
from tintc.runtime.model.causal_lm import TintForCausalLM

LENGTH = 64
"""Tokens of the text that are used, if the simulator takes so many."""
WORST = 12
"""Parameters shown in the table unless all are asked for."""


def check_choice(model: str | None, files: bool) -> bool:
    """Return True if the files are to be compared; raise `OptionError` unless there is one thing to compare with."""
    if model is None and not files:
        raise OptionError(
            "Name the model that the simulator was compiled from: tintc verify OUT MODEL. Or pass --files, to compare "
            "its files with their digests."
        )
    if model is not None and files:
        raise OptionError("--files compares OUT with its own digests; leave MODEL out, or --files.")
    return files


def verify_artefact(
    path: str,
    model: str,
    file: Path | None,
    length: int | None,
    train_fraction: float | None,
    executor: str,
    dtype: str | None,
    every: bool,
    trusted: bool,
    as_json: bool,
) -> bool:
    """Print how far the simulator is from the reference; return True if it does what its options say.

    trusted: whether Python code that comes with the model may be run.
    """
    silence_libraries()
    start = time.perf_counter()
    content = PROBE if file is None else read_text(None, file)
    if train_fraction is not None:
        train_tokens(LENGTH if length is None else length, train_fraction)
    with stages():
        sim = load(path, executor=executor, dtype=dtype)
        ids = probe(path, sim, content, length, is_default=file is None)
        kept = sim.config.provenance.get(ADAPTERS) == ADAPTER_FATES[True]
        source = load_auxiliary(model, trust_remote_code=trusted, keep_adapters=kept, with_tokenizer=False)
        fraction = sim.config.train_fraction if train_fraction is None else train_fraction
        verdict = verify(path, sim, source, ids, train_tokens(len(ids), fraction))
    facts = {"output": path, "model": model, "seconds": time.perf_counter() - start, "peak_rss_bytes": peak_rss_bytes()}
    if as_json:
        print_json(facts | verdict.to_json())
    else:
        show(path, model, verdict, every)
    return verdict.ok


def probe(path: str, sim: TintForCausalLM, text: str, wanted: int | None, is_default: bool) -> Tensor:
    """Return the first tokens of the text; of a simulator without tokenizer, numbers that are the same every time."""
    length = min(LENGTH, sim.layout.max_length) if wanted is None else wanted
    if length > sim.layout.max_length:
        raise OptionError(f"The length is {length}; this simulator was compiled for at most {sim.layout.max_length}.")
    if sim.tokenizer is None and is_default:
        return numbers(sim.config.vocab_size, length, sim.config.placeholders)
    ids = tokenise(path, sim.tokenizer, text, most=length)
    if len(ids) < length:
        raise InputError(f"The text has {len(ids)} tokens and {length} are asked for; pass a longer one, or --length.")
    return ids[:length]


def show(path: str, model: str, verdict: Verdict, every: bool) -> None:
    """Print a table of the parameters farthest off, and the verdict."""
    console = Console()
    names = sorted(verdict.parameters, key=lambda name: -verdict.parameters[name].error)
    shown = list(verdict.parameters) if every else names[:WORST]
    title = f"Gradients of {path} beside explicit fine-tuning of {model}"
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("parameter", overflow="fold")
    for head in ("cosine", "error", "allowed", "to autograd: cosine", "error"):
        table.add_column(head, justify="right")
    for name in shown:
        table.add_row(name, *_cells(verdict.parameters[name]))
    if len(shown) < len(names):
        table.add_row(f"{len(names) - len(shown)} more (--all)")
    table.add_row("all together", *_cells(verdict.gradient), style="bold")
    show_table(table)
    allowed = verdict.tolerances
    console.print(
        f"logits before: error {verdict.logits_before_error:.2e} (allowed {allowed.logits:g})\n"
        f"logits after:  error {verdict.logits_after_error:.2e}; {verdict.update_error:.2e} of the update, cosine "
        f"{verdict.update_cosine:.6f}\n"
        f"{verdict.tokens} tokens, {verdict.train_tokens} of them trained on; {verdict.executor} in {verdict.dtype}, "
        f"reference in {verdict.reference_dtype}",
        highlight=False,
    )
    for problem in verdict.problems:
        console.print(f"problem: {problem}.", style="red", markup=False, highlight=False)
    console.print(
        "It does what its options say." if verdict.ok else "It does NOT do what its options say.", style="bold"
    )


def _cells(compared: Compared) -> list[str]:
    cosine = f"{compared.cosine:.6f}"
    to_autograd = f"{compared.cosine_autograd:.6f}"
    error_to_autograd = f"{compared.error_autograd:.2e}"
    return [cosine, f"{compared.error:.2e}", f"{compared.allowed:.2e}", to_autograd, error_to_autograd]
