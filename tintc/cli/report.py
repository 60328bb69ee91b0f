"""`tintc report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor

from tintc.bounded import check_path
from tintc.cli.console import print_json, silence_libraries, stages
from tintc.cli.texts import read_text, tokenise
from tintc.errors import InputError, OptionError
from tintc.evaluation.blocks import SHORTEST, train_tokens
from tintc.frontend.source.load import load_auxiliary
from tintc.frontend.source.provenance import ADAPTER_FATES, ADAPTERS
from tintc.frontend.source.sample import PROBE, numbers
from tintc.progress import LOGGER
from tintc.report.images import chart_script, check_installed, write_images
from tintc.runtime.artefact.folder import read_auxiliary
from tintc.runtime.artefact.one_file import check_replaceable, staged_file
from tintc.runtime.load import load
from tintc_cli.groups import Reading

if TYPE_CHECKING:
    from tintc.report.against import Other
    from tintc.report.page import Quality
    from tintc.report.text import TextRun
    from tintc.runtime.model.causal_lm import TintForCausalLM


def write_report(
    path: str,
    output: Path,
    model: str | None,
    sample: Reading,
    png: Path | None,
    against: str | None,
    trusted: bool,
    as_json: bool,
) -> None:
    """Write the page. model: that the simulator was compiled from, to compare gradients with; png: a folder for charts;
    against: another simulator; trusted: whether Python code that comes with the model may be run."""
    silence_libraries()
    check_installed()
    check_place(output, "page")
    if png is not None:
        check_path(png, OptionError)
    if png is not None and (png.is_file() or not png.absolute().parent.is_dir()):
        raise OptionError(f"Cannot write images to {png}: it must be a folder, or a new name in one that exists.")
    content = None
    if sample.text is not None or sample.file is not None:
        content = read_text(sample.text, sample.file)
    with stages():
        page, facts = make_page(path, model, content, against, trusted)
        LOGGER.info("writing the page")
        write_whole(output, page.html)
        images: list[Path] = []
        if png is not None:
            images = write_images(page.figures, png)
    shown = {"output": str(output), "bytes": output.stat().st_size, **facts, "images": [str(image) for image in images]}
    if as_json:
        print_json(shown)
        return
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(
        f"{output}: {shown['bytes'] / 1e6:.1f} MB, {len(page.figures)} charts; of {facts['tokens']} tokens "
        f"{facts['train_tokens']} were trained on; mean loss of the others {facts['loss_before']:.4f} before and "
        f"{facts['loss_after']:.4f} after."
    )


def make_page(
    path: str, model: str | None, content: str | None, against: str | None, trusted: bool
) -> tuple[Any, dict[str, Any]]:
    """Return the page of a simulator on a text (None: a built-in one), and what is said of it on a line."""
    from tintc.report.page import Contents, render
    from tintc.report.quality import rate_curve
    from tintc.report.teaching import by_layer, updates_of
    from tintc.report.text import run_text

    LOGGER.info("loading the simulator")
    sim = load(path)
    ids = token_ids(path, sim, content)
    LOGGER.info("running the text")
    run = run_text(sim, ids)
    if not bool(run.after[1:].isfinite().all()):
        raise InputError(f"The learning rate {sim.config.inner_lr:g} is too large for this text; pass another text.")
    curve = rate_curve(sim, run)
    shares = by_layer(updates_of(sim, run.inputs))
    quality = None
    if model is not None:
        quality = compare(path, sim, model, run, trusted)
    other = None
    if against is not None:
        other = beside(sim, against, run, content)
    LOGGER.info("drawing")
    name = str(sim.config.provenance.get("source", Path(path).name))
    contents = Contents(name, sim, run, curve, shares, auxiliary_lines(path), quality, other)
    facts = {
        "tokens": len(ids),
        "train_tokens": run.train,
        "loss_before": run.scored(run.before),
        "loss_after": run.scored(run.after),
    }
    return render(contents, chart_script()), facts


def token_ids(path: str, sim: TintForCausalLM, content: str | None) -> Tensor:
    """Return the ids ``[T]`` of a text's first tokens (None: of a built-in one, or numbers without a tokenizer)."""
    from tintc.report.text import LONGEST

    length = min(LONGEST, sim.layout.max_length)
    if sim.tokenizer is None and content is None:
        ids = numbers(sim.config.vocab_size, length, sim.config.placeholders)
    else:
        words = PROBE if content is None else content
        ids = tokenise(path, sim.tokenizer, " ".join(words.split()) if content is None else words)[:length]
    if len(ids) < SHORTEST:
        raise InputError(f"The text has {len(ids)} tokens; pass at least {SHORTEST}.")
    train_tokens(len(ids), sim.config.train_fraction)
    return ids


def compare(path: str, sim: TintForCausalLM, model: str, run: TextRun, trusted: bool) -> Quality:
    """Return how the simulator's gradients do beside its model's."""
    from tintc.reference.verify import captured, reference_dtype, verified
    from tintc.report.page import Quality
    from tintc.report.quality import approximation_costs, layers_of

    LOGGER.info("loading the model")
    kept = sim.config.provenance.get(ADAPTERS) == ADAPTER_FATES[True]
    source = load_auxiliary(model, trust_remote_code=trusted, keep_adapters=kept, with_tokenizer=False)
    graph = captured(sim, source)
    verdict, references = verified(path, sim, source, run.ids, run.train, graph)
    words = f"It does not do what its options say: {'; '.join(verdict.problems)}."
    if verdict.ok:
        words = (
            "It does what its options say: beside explicit fine-tuning of its model with the same approximations, the "
            f"cosine of its gradient is {verdict.gradient.cosine:.6f}, and the update of the logits is "
            f"{verdict.update_error:.1e} off. What the approximations themselves cost, beside autograd, which has none:"
        )
    LOGGER.info("fine-tuning the model with each approximation by itself")
    with torch.no_grad():
        rows = layers_of(verdict)
    compared = verdict, references.exact
    return Quality(words, rows, approximation_costs(sim, graph, run, compared, reference_dtype(source)))


def beside(sim: TintForCausalLM, against: str, run: TextRun, content: str | None) -> Other:
    """Return what another simulator does with the same text."""
    from tintc.report import against as comparing

    LOGGER.info("running the other simulator")
    other = load(against)
    name = str(other.config.provenance.get("source", Path(against).name))
    if name == sim.config.provenance.get("source"):
        name = Path(against).name
    text = content
    if content is None and other.tokenizer is not None:
        text = " ".join(PROBE.split())
    comparing.check_same_tokens(sim, other, against, run.ids, text)
    return comparing.compare(sim, other, name, run)


def auxiliary_lines(path: str) -> dict[str, str]:
    """Return the ops of the auxiliary's program as they print, by the name of their value; none where the folder has
    lost it."""
    text = read_auxiliary(path) or ""
    lines = [line for line in text.splitlines() if line.startswith("%") and " = " in line]
    return {line[1:].partition(" ")[0].rstrip(","): line for line in lines}


def check_place(path: Path, what: str) -> None:
    """Raise `OptionError` where a file cannot be written."""
    check_path(path, OptionError)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise OptionError(f"Cannot write the {what} {path}: it must be a file in a folder that exists.")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it appears whole or not at all; it may replace another, but no link or device."""
    target = path.absolute()
    check_replaceable(target, lambda _: True, "page")
    try:
        with staged_file(target) as stream:
            stream.write(text.encode())
    except OSError as error:
        raise OptionError(f"Cannot write {path}: {error.strerror or error}.") from error
