"""The page's figures, as Vega-Lite charts. They take the page's colours, in the light and in the dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import altair as alt

if TYPE_CHECKING:
    from torch import Tensor

    from tintc.report.quality import Cost, Rate


BEFORE, AFTER = "#d9730d", "#2f7de1"
"""Colours of before and after the update, and so of what was lost and what was gained."""
KINDS = ["#2f7de1", "#d9730d", "#12967f", "#9b5de5", "#c2304f", "#8a8f2a"]
SIGNED = ["rgba(217,115,13,1)", "rgba(217,115,13,0)", "rgba(47,125,225,0)", "rgba(47,125,225,1)"]
SHADED = ["rgba(47,125,225,0)", "rgba(47,125,225,1)"]
TEXT = "currentColor"

Spec = dict[str, Any]
"""A chart in Vega-Lite's JSON."""


def finished(chart: Any, height: int, data: Mapping[str, Sequence[Any]], renderer: str = "svg") -> Spec:
    """Return the chart as wide as its place on the page, in the page's type.

    data: rows by the name that the chart has for them. They are put in last, as altair looks at every number of what it
    is given. The address of the schema is left out: a page that needs no network names none.
    """
    shown = {"embedOptions": {"renderer": renderer, "actions": False}}
    whole = (
        chart.properties(width="container", height=height, background="transparent", usermeta=shown)
        .configure(font="system-ui, sans-serif")
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=TEXT,
            titleColor=TEXT,
            domainColor=TEXT,
            tickColor=TEXT,
            gridColor=TEXT,
            gridOpacity=0.12,
            domainOpacity=0.4,
            tickOpacity=0.4,
            titleFontWeight="normal",
            labelFontSize=11,
            titleFontSize=12,
        )
        .configure_legend(labelColor=TEXT, titleColor=TEXT, titleFontWeight="normal", orient="top", labelFontSize=12)
    )
    spec = whole.to_dict()
    del spec["$schema"]
    return spec | {"datasets": {name: list(rows) for name, rows in data.items()}}


def of(name: str) -> alt.Chart:
    """Return an empty chart of the rows with that name."""
    return alt.Chart(alt.NamedData(name=name))


def losses(tokens: Sequence[str], before: Tensor, after: Tensor, train: int) -> dict[str, Spec]:
    """Return the loss of every token before and after the update, and what the update has gained; tokens that were
    trained on are shaded."""
    rows = [
        {"place": place, "token": visible(tokens[place]), "before": round(was, 4), "after": round(now, 4)}
        for place, (was, now) in enumerate(zip(before.tolist(), after.tolist(), strict=True))
        if place
    ]
    axis = alt.Axis(grid=False, tickCount=8)
    x = alt.X("place:Q", title="token", scale=alt.Scale(domain=[0, len(tokens)], nice=False), axis=axis)
    hint = ["place:Q", "token:N", "before:Q", "after:Q", alt.Tooltip("gain:Q", format=".3f")]
    shade = of("shade").mark_rect(opacity=0.09, color=TEXT).encode(x="from:Q", x2="to:Q")
    base = of("rows").transform_calculate(gain="datum.before - datum.after").encode(x=x)
    names = alt.Scale(domain=["before", "after"], range=[BEFORE, AFTER])
    points = (
        base.transform_fold(["before", "after"], as_=["pass", "loss"])
        .mark_point(filled=True, size=30, opacity=0.9)
        .encode(y=alt.Y("loss:Q", title="loss, nats"), color=alt.Color("pass:N", scale=names, title=None), tooltip=hint)
    )
    colour = alt.condition("datum.gain >= 0", alt.value(AFTER), alt.value(BEFORE))
    bars = base.mark_bar(size=4).encode(y=alt.Y("gain:Q", title="gained, nats"), color=colour, tooltip=hint)
    data = {"rows": rows, "shade": [{"from": 0, "to": train - 0.5}]}
    return {"losses": finished(shade + points, 190, data), "gains": finished(shade + bars, 130, data)}


def loss_over_rate() -> tuple[alt.X, alt.Y]:
    """Return the axes of a chart of losses over rates."""
    x = alt.X(
        "rate:Q",
        title="learning rate",
        scale=alt.Scale(type="log"),
        axis=alt.Axis(format=".0e", grid=False, tickCount=3),
    )
    return x, alt.Y("loss:Q", title="mean loss of the rest, nats", scale=alt.Scale(zero=False))


def rates(curve: Sequence[Rate], stored: float) -> Spec:
    """Return the loss of the tokens that were not trained on, over the rate."""
    rows = [{"rate": one.rate, "loss": round(one.loss, 5)} for one in curve if one.rate > 0]
    x, y = loss_over_rate()
    line = of("rows").mark_line(color=AFTER, point=alt.OverlayMarkDef(size=45, color=AFTER))
    level = of("level")
    at = of("at")
    return finished(
        line.encode(x=x, y=y, tooltip=["rate:Q", "loss:Q"])
        + level.mark_rule(color=BEFORE, strokeDash=[5, 4]).encode(y=y)
        + level.mark_text(align="left", dx=4, dy=-6, color=BEFORE, x=0).encode(y=y, text="text:N")
        + at.mark_rule(color=TEXT, opacity=0.5).encode(x=x)
        + at.mark_text(align="left", dx=5, y=8, color=TEXT).encode(x=x, text="text:N"),
        330,
        {
            "rows": rows,
            "level": [{"loss": curve[0].loss, "text": "without an update"}],
            "at": [{"rate": stored, "text": "stored rate"}],
        },
    )


def gradients(rows: Sequence[Mapping[str, Any]], other: str = "autograd's") -> Spec:
    """Return the cosine of every parameter's gradient to another one, by layer."""
    kinds = sorted({row["what"] for row in rows if row["layer"] >= 0})
    shown = [
        {"layer": row["layer"], "what": row["what"], "cosine": row["cosine"], "error": row["error"]}
        for row in rows
        if row["layer"] >= 0
    ]
    chart = (
        of("rows")
        .mark_line(point=alt.OverlayMarkDef(size=40), strokeWidth=1.5)
        .encode(
            x=alt.X("layer:Q", title="layer", axis=alt.Axis(tickMinStep=1, format="d", grid=False)),
            y=alt.Y("cosine:Q", title=f"cosine to {other}", scale=alt.Scale(zero=False)),
            color=alt.Color(
                "what:N",
                title=None,
                scale=alt.Scale(domain=kinds, range=KINDS),
                legend=alt.Legend(columns=2, labelLimit=220),
            ),
            tooltip=["what:N", "layer:Q", alt.Tooltip("cosine:Q", format=".5f"), alt.Tooltip("error:Q", format=".2e")],
        )
    )
    return finished(chart, 240, {"rows": shown})


def costs(rows: Sequence[Cost]) -> Spec:
    """Return the error of the gradient under each approximation by itself."""
    shown = [{"name": one.name, "error": one.error, "cosine": one.cosine, "loss": one.loss} for one in rows[1:]]
    bars = of("rows").encode(
        y=alt.Y("name:N", title=None, sort=None, axis=alt.Axis(labelLimit=230, labelFontSize=12, ticks=False)),
        x=alt.X("error:Q", title="relative error of the gradient", axis=alt.Axis(format=".0%")),
        tooltip=["name:N", alt.Tooltip("error:Q", format=".2%"), alt.Tooltip("cosine:Q", format=".5f"), "loss:Q"],
    )
    text = bars.mark_text(align="left", dx=4, color=TEXT).encode(text=alt.Text("error:Q", format=".1%"))
    return finished(bars.mark_bar(color=AFTER, height=16) + text, 150, {"rows": shown})


def layouts(rows: Sequence[Mapping[str, Any]]) -> Spec:
    """Return the layouts that a simulator could have: prefixes against what a run costs."""
    colour = alt.condition("datum.chosen", alt.value(BEFORE), alt.value(AFTER))
    chart = (
        of("rows")
        .mark_point(filled=True, opacity=0.85)
        .encode(
            x=alt.X("K:Q", title="prefixes K", scale=alt.Scale(type="log"), axis=alt.Axis(grid=False)),
            y=alt.Y("cost:Q", title="cost, times the chosen one's", scale=alt.Scale(type="log")),
            color=colour,
            size=alt.condition("datum.chosen", alt.value(170), alt.value(40)),
            tooltip=[
                "S:Q",
                alt.Tooltip("shards:Q", title="S'"),
                "K:Q",
                "heads:Q",
                "D_sim:Q",
                alt.Tooltip("cost:Q", format=".2f"),
            ],
        )
    )
    return finished(chart, 220, {"rows": rows})


def visible(token: str) -> str:
    """Return a token as it is shown by itself: line breaks as an arrow, a lone space as a mark."""
    shown = token.replace("\n", "↵")
    if not shown.strip():
        return "␣" * max(1, len(shown))
    return shown.strip()
