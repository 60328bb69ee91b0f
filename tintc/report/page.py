"""The page itself: everything that it says and draws, put together and rendered."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

import tintc
from tintc.analysis.head_roles import Roles
from tintc.cli.legend import MEANINGS
from tintc.report import attention_charts, charts, comparison_charts
from tintc.report.against import Other
from tintc.report.drawing import HEIGHT, WIDTH
from tintc.report.graph import LANES, graph_of
from tintc.report.layouts import candidates_of, counts_of, table_of
from tintc.report.modules import ModuleReader
from tintc.report.quality import Cost, Rate
from tintc.report.reading import named_pairs, shares_by_place, teaching_grids, token_views
from tintc.report.text import TextRun
from tintc.runtime.artefact.config import options_of

if TYPE_CHECKING:
    from torch import Tensor

    from tintc.runtime.model.causal_lm import TintForCausalLM

SIZES = ("d_sim", "heads", "head_width", "stack", "shards", "n_prefixes", "sim_seq_len", "memory_slots")


@dataclass
class Quality:
    """The results of comparing a simulator with its model.

    verdict: a sentence; gradients: rows of `quality.layers_of`; costs: a row for each approximation.
    """

    verdict: str
    gradients: list[dict[str, Any]]
    costs: list[Cost]


@dataclass
class Contents:
    """The parts of a page, as they are computed before it is drawn.

    auxiliary: lines of the auxiliary's program by value; shares: of train tokens, by layer; quality: None without a
    model; other: another simulator to compare with, if any.
    """

    name: str
    sim: TintForCausalLM
    run: TextRun
    curve: list[Rate]
    shares: dict[int, Tensor]
    auxiliary: dict[str, str] = field(default_factory=dict)
    quality: Quality | None = None
    other: Other | None = None


@dataclass(frozen=True)
class Page:
    """The rendered page. html: its text; figures: its charts by name."""

    html: str
    figures: dict[str, charts.Spec]


def render(contents: Contents, bundle: str) -> Page:
    """Return the page. bundle: the JavaScript that draws charts."""
    run, config = contents.run, contents.sim.config
    program = contents.sim.program
    roles = Roles(program)
    sections, abouts = graph_of(program, contents.auxiliary, ModuleReader(roles))
    figures = _figures(contents)
    teaching = _teaching(contents, figures)
    counts = counts_of(program)
    shares = {} if teaching is None else teaching.pop("shares")
    hint = "Click a token of the second part." if shares else ""
    data = {"figures": figures, "shares": shares, "tokens": [charts.visible(token) for token in run.tokens]}
    html = _template().render(
        name=contents.name,
        version=tintc.__version__,
        contents=_contents(contents, teaching),
        tiles=_tiles(contents, counts),
        n_steps=config.n_steps,
        steps=_plural(config.n_steps, "step"),
        text={"tokens": token_views(run, bool(shares)), "train": run.train, "shares": shares, "hint": hint},
        teaching=teaching,
        attention=_patterns(run),
        sections=sections,
        abouts=abouts,
        lanes=LANES,
        size=(WIDTH, HEIGHT),
        layout=roles.layout,
        quality=contents.quality,
        other=contents.other,
        figures=figures,
        table=table_of(program),
        counts=counts,
        layout_rows=[(name, counts["sizes"][name], MEANINGS.get(name, "")) for name in SIZES],
        provenance=_provenance(contents.sim),
        data=_embedded(data),
        bundle=bundle.replace("</script", "<\\/script"),
    )
    return Page(html, figures)


def _template() -> Template:
    environment = Environment(loader=PackageLoader("tintc.report"), autoescape=True, undefined=StrictUndefined)
    environment.filters["code"] = _code
    return environment.get_template("page.html")


def _figures(contents: Contents) -> dict[str, charts.Spec]:
    """Return the figures of everything that the page is made of."""
    run, config = contents.run, contents.sim.config
    figures = charts.losses(run.tokens, run.before, run.after, run.train)
    if contents.curve:
        figures["rates"] = charts.rates(contents.curve, config.inner_lr)
    if run.attention:
        attention = attention_charts.attention(run.attention, run.tokens)
        figures |= {f"attention-{name}": chart for name, chart in attention.items()}
    if contents.quality is not None:
        figures["gradients"] = charts.gradients(contents.quality.gradients)
        figures["costs"] = charts.costs(contents.quality.costs)
    if contents.other is not None:
        figures |= _against(contents, contents.other)
    candidates = candidates_of(contents.sim.program, options_of(config))
    if candidates:
        figures["layouts"] = charts.layouts(candidates)
    return figures


def _patterns(run: TextRun) -> list[str]:
    """Return what the attention patterns are called that can be shown: two of each layer."""
    heads = [(one, head) for one in run.attention for head in (None, one.most_changed())]
    return [attention_charts.attention_label(one, head) for one, head in heads]


def _against(contents: Contents, other: Other) -> dict[str, charts.Spec]:
    """Return the figures that compare two simulators."""
    own, their = contents.name, other.name
    if own == their:
        own, their = "this one", "the other one"
    figures = {
        "against": comparison_charts.against(contents.run.tokens, {own: contents.run.gain, their: other.run.gain})
    }
    if contents.curve and other.curve:
        figures["against-rates"] = comparison_charts.rates_against({own: contents.curve, their: other.curve})
    if any(row["layer"] >= 0 for row in other.gradients):
        figures["against-gradients"] = charts.gradients(other.gradients, "the other's")
    return figures


def _teaching(contents: Contents, figures: dict[str, charts.Spec]) -> dict[str, Any] | None:
    """Return what is said of who taught what, and add its figure; None where steps are not plain."""
    run = contents.run
    if not contents.shares:
        return None
    grids = teaching_grids(contents.shares, run)
    total = next(iter(grids.values()))
    titles = ("predicted", "train token", "part of the output's length")
    figures["teaching"] = attention_charts.matrix(
        grids, run.tokens[run.train :], run.tokens[: run.train], titles, signed=True
    )
    return {"names": list(grids), "pairs": named_pairs(total, run), "shares": shares_by_place(total, run)}


def _contents(contents: Contents, teaching: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return the sections of the page that there are: where they stand, and what they are called."""
    listed = [("text", "What it learnt", True), ("teaching", "Which token taught what", teaching is not None)]
    listed += [("attention", "Attention", bool(contents.run.attention))]
    listed += [("against", "Beside another", contents.other is not None), ("inside", "Inside", True)]
    listed += [("quality", "Its gradient", contents.quality is not None), ("size", "Size", True)]
    return [(name, title) for name, title, there in [*listed, ("provenance", "Provenance", True)] if there]


def _tiles(contents: Contents, counts: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the figures that a reader sees first, with what they are."""
    run, config = contents.run, contents.sim.config
    sizes = counts["sizes"]
    before, after = (math.exp(min(700.0, run.scored(losses))) for losses in (run.before, run.after))
    tiles = [
        (f"{before:.2f} → {after:.2f}", "perplexity of the second part, before the update and after"),
        (f"{sizes['n_update_layers']} of {sizes['n_layers']}", f"layers updated, in {_plural(config.n_steps, 'step')}"),
        (f"{sizes['d_aux']} in {sizes['d_sim']}", "width of the auxiliary in that of the simulator"),
        (f"{sizes['n_prefixes']}", "prefixes, which hold the weights of one module"),
        (f"{counts['counts']['table'] / 1e6:,.3g} M", "parameters as the paper counts them"),
    ]
    if contents.quality is not None:
        exact = contents.quality.costs[-1].cosine
        tiles.insert(1, (f"{exact:.4f}", "cosine of its gradient to autograd's"))
    return tiles


def _provenance(sim: TintForCausalLM) -> list[tuple[str, str]]:
    """Return where the simulator comes from, how it was compiled, and the digests of what it consists of."""
    config = sim.config
    rows = [(name.replace("_", " "), str(value)) for name, value in sorted(config.provenance.items())]
    options = options_of(config).recorded()
    rows += [(name.replace("_", " "), str(value)) for name, value in options.items() if value not in (None, False)]
    return rows + [(f"digest of the {name}", value) for name, value in sorted(config.digests.items())]


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _code(text: str) -> Markup:
    """Return a sentence of a docstring with what stands between backticks as code."""
    parts = [escape(part) for part in text.split("`")]
    for at in range(1, len(parts), 2):
        parts[at] = Markup("<code>{}</code>").format(Markup(parts[at]))
    return Markup("").join(parts)


def _embedded(data: Any) -> str:
    """Return JSON that a script element can hold."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
