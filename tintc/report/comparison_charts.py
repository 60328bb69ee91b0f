"""Charts of several simulators beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import altair as alt

from tintc.report.charts import AFTER, BEFORE, Spec, finished, loss_over_rate, of, visible

if TYPE_CHECKING:
    from torch import Tensor

    from tintc.report.quality import Rate


def against(tokens: Sequence[str], gains: Mapping[str, Tensor]) -> Spec:
    """Return what two simulators have gained on every token, each by its name."""
    rows = [
        {"place": place, "token": visible(tokens[place]), "simulator": name, "gain": round(gain, 4)}
        for name, own in gains.items()
        for place, gain in enumerate(own.tolist())
        if place
    ]
    chart = (
        of("rows")
        .mark_point(filled=True, size=34, opacity=0.85)
        .encode(
            x=alt.X("place:Q", title="token", axis=alt.Axis(grid=False)),
            y=alt.Y("gain:Q", title="gained, nats"),
            color=_by_simulator(gains),
            tooltip=["simulator:N", "place:Q", "token:N", "gain:Q"],
        )
    )
    return finished(chart, 220, {"rows": rows})


def rates_against(curves: Mapping[str, Sequence[Rate]]) -> Spec:
    """Return the loss over the rate of two simulators, each by its name."""
    rows = [
        {"rate": one.rate, "loss": round(one.loss, 5), "simulator": name}
        for name, curve in curves.items()
        for one in curve
        if one.rate > 0
    ]
    x, y = loss_over_rate()
    chart = (
        of("rows")
        .mark_line(point=alt.OverlayMarkDef(size=40))
        .encode(
            x=x,
            y=y,
            color=_by_simulator(curves),
            tooltip=["simulator:N", "rate:Q", "loss:Q"],
        )
    )
    return finished(chart, 220, {"rows": rows})


def _by_simulator(names: Mapping[str, Any]) -> alt.Color:
    scale = alt.Scale(domain=list(names), range=[AFTER, BEFORE])
    return alt.Color("simulator:N", title=None, scale=scale, legend=alt.Legend(labelLimit=300))
