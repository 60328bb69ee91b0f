"""Charts of matrices, such as who attends to whom."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import altair as alt

from tintc.report.charts import SHADED, SIGNED, Spec, finished, of, visible
from tintc.report.text import Attention

if TYPE_CHECKING:
    from torch import Tensor


def matrix(
    grids: Mapping[str, Tensor],
    rows: Sequence[str],
    columns: Sequence[str],
    titles: tuple[str, str, str],
    signed: bool,
    square: bool = False,
) -> Spec:
    """Return grids ``[rows, columns]`` as one figure, of which the signal ``shown`` says which is seen.

    titles: of the rows, the columns and the cells. Colours are scaled to each grid by itself, and grow with a power
    less than one, so that small numbers are seen.
    """
    row_title, column_title, cell_title = titles
    colours = alt.Scale(domain=[-1, -0.001, 0.001, 1], range=SIGNED)
    if not signed:
        colours = alt.Scale(domain=[0, 1], range=SHADED)
    row_names, column_names = _names(rows), _names(columns)
    chart = (
        _cells(len(columns), row_names, column_names)
        .mark_rect()
        .encode(
            x=alt.X("c:O", title=column_title, scale=_places(columns), axis=_axis(column_names, labelAngle=-90)),
            y=alt.Y("r:O", title=row_title, scale=_places(rows), axis=_axis(row_names)),
            color=alt.Color("relative:Q", scale=colours, legend=None),
            tooltip=[
                alt.Tooltip("row:N", title=row_title),
                alt.Tooltip("column:N", title=column_title),
                alt.Tooltip("v:Q", title=cell_title, format=".3g"),
            ],
        )
        .add_params(alt.param(name="shown", value=next(iter(grids))))
    )
    height = 380 if square else max(160, min(560, 11 * len(rows) + 40))
    return finished(chart, height, {"rows": _values(grids)}, "canvas")


def _values(grids: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Return a row of data for each grid: its numbers, one row of it after the other, and the largest."""
    return [
        {
            "grid": name,
            "v": [rounded(x) for x in grid.flatten().tolist()],
            "most": rounded(float(grid.abs().max()) or 1),
        }
        for name, grid in grids.items()
    ]


def _cells(wide: int, row_names: str, column_names: str) -> alt.Chart:
    """Return an empty chart of the cells, but those that are 0, of the grid that is shown. wide: columns of it."""
    return (
        of("rows")
        .transform_filter("datum.grid === shown")
        .transform_flatten(["v"])
        .transform_window(n="row_number()")
        .transform_filter("datum.v != 0")
        .transform_calculate(
            r=f"floor((datum.n - 1) / {wide})",
            c=f"(datum.n - 1) % {wide}",
            row=f"{row_names}[datum.r]",
            column=f"{column_names}[datum.c]",
            relative="(datum.v > 0 ? 1 : -1) * pow(abs(datum.v / datum.most), 0.7)",
        )
    )


def _names(labels: Sequence[str]) -> str:
    """Return the labels as a list in the chart's language."""
    return json.dumps(list(map(visible, labels)))


def _places(labels: Sequence[str]) -> alt.Scale:
    return alt.Scale(domain=list(range(len(labels))), padding=0)


def _axis(names: str, **more: Any) -> alt.Axis:
    """Return an axis whose places have these names."""
    return alt.Axis(
        labelExpr=f"{names}[datum.value]",
        labelOverlap=True,
        ticks=False,
        domain=False,
        labelFontSize=10,
        labelLimit=70,
        **more,
    )


def attention(layers: Sequence[Attention], tokens: Sequence[str]) -> dict[str, Spec]:
    """Return figures of attention before and after the update, and of the change, each with all layers."""
    grids: dict[str, dict[str, Tensor]] = {"before": {}, "after": {}, "change": {}}
    for one in layers:
        head = one.most_changed()
        for label, choose in ((attention_label(one, None), None), (attention_label(one, head), head)):
            before = one.before.mean(0) if choose is None else one.before[choose]
            after = one.after.mean(0) if choose is None else one.after[choose]
            grids["before"][label] = before
            grids["after"][label] = after
            grids["change"][label] = after - before
    titles = ("the token that looks", "the token it looks at", "probability")
    return {
        name: matrix(shown, tokens, tokens, titles, signed=name == "change", square=True)
        for name, shown in grids.items()
    }


def attention_label(one: Attention, head: int | None) -> str:
    """Return what a pattern is called in the list of those that can be shown."""
    layer = one.name.replace("layers.", "layer ").replace(".attention", "")
    if head is None:
        return f"{layer}, mean of its heads"
    return f"{layer}, head {head} (most changed)"


def rounded(value: float) -> float:
    """Return the number with three digits, which is what a figure shows."""
    return float(f"{value:.3g}")
