"""Charts that are read in both themes, by ear, and as CSV."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from nicegui import ui

from acclimate.ui.frame import secondary

#: Can be told apart with every kind of colour blindness (Okabe and Ito, 2008).
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GREY: Final = "#8a9aa2"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a chart: a value, or None, for each position of the axis.

    Attributes:
        name: in the legend and the CSV file.
        values: in the order of the axis.
        low, high: of the interval around each value, where there is one.
        bars: draw bars that are stacked on those of other lines.
    """

    name: str
    values: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    bars: bool = False


class Chart:
    """A chart of lines or stacked bars over a common axis, with its numbers as CSV.

    Args:
        title: names the chart; also of the file.
        axis: name of the axis.
        unit: of the values.
        low: whether it is drawn lower than others.
        marks: values that are drawn as horizontal lines, by name.
        most: upper end of the values, where they have one.
    """

    def __init__(
        self,
        title: str,
        *,
        axis: str,
        unit: str = "",
        low: bool = False,
        marks: dict[str, float] | None = None,
        most: float | None = None,
    ) -> None:
        self._title, self._axis, self._unit = title, axis, unit
        self._marks, self._most = marks or {}, most
        self._positions: list[str] = []
        self._lines: list[Line] = []
        name = html.escape(title, quote=True)
        if unit:
            ui.label(unit).classes("note")
        with ui.element("figure").style("margin: 0").props(f'role="img" aria-label="Chart: {name}"') as self._figure:
            self._chart = ui.echart(self._options(), renderer="svg").classes("chart low" if low else "chart")
        with ui.element("div").classes("row"):
            button = secondary("CSV", "download").props(f'dense aria-label="{name} as CSV"')
            button.on_click(self._download)

    def show(self, positions: Sequence[Any], lines: Sequence[Line]) -> None:
        """Draw lines over positions of the axis."""
        self._positions, self._lines = [str(position) for position in positions], list(lines)
        self._chart.options.clear()
        self._chart.options.update(self._options())
        self._chart.update()

    def csv(self) -> str:
        """Return the numbers that are drawn."""
        file = io.StringIO()
        writer = csv.writer(file)
        names = [self._axis]
        for line in self._lines:
            names += [line.name, *([f"{line.name} low", f"{line.name} high"] if line.low else [])]
        writer.writerow(names)
        for at, position in enumerate(self._positions):
            row: list[Any] = [position]
            for line in self._lines:
                row += [line.values[at], *([line.low[at], line.high[at]] if line.low else [])]
            writer.writerow(row)
        return file.getvalue()

    def _download(self) -> None:
        name = "".join(c if c.isalnum() else "-" for c in self._title.lower())
        ui.download.content(self.csv(), f"{name}.csv", "text/csv")

    def _options(self) -> dict[str, Any]:
        series: list[dict[str, Any]] = []
        for number, line in enumerate(self._lines):
            series += _series(line, COLOURS[number % len(COLOURS)], [list(self._marks.items()), []][number > 0])
        text = {"color": _GREY}
        return {
            "animation": False,
            "grid": {"left": 8, "right": 16, "top": 34, "bottom": 24, "containLabel": True},
            "legend": {"top": 0, "textStyle": text, "data": [line.name for line in self._lines]},
            "tooltip": {"trigger": "axis", "confine": True},
            "xAxis": {
                "type": "category",
                "data": self._positions,
                "name": self._axis,
                "nameLocation": "middle",
                "nameGap": 26,
                "axisLine": {"lineStyle": {"color": _GREY}},
                "axisLabel": {**text, "hideOverlap": True},
                "nameTextStyle": text,
            },
            "yAxis": {
                "type": "value",
                "min": 0,
                "max": self._most,
                "axisLabel": text,
                "splitLine": {"lineStyle": {"color": _GREY, "opacity": 0.25}},
            },
            "series": series,
        }


def _series(line: Line, colour: str, marks: list[tuple[str, float]]) -> list[dict[str, Any]]:
    if line.bars:
        return [{"name": line.name, "type": "bar", "stack": "all", "data": list(line.values), "color": colour}]
    drawn: dict[str, Any] = {
        "name": line.name,
        "type": "line",
        "data": list(line.values),
        "color": colour,
        "symbolSize": 5,
        "showSymbol": len(line.values) < 60,
    }
    if marks:
        drawn["markLine"] = {
            "symbol": "none",
            "silent": True,
            "label": {"formatter": "{b}", "position": "insideStartTop", "color": _GREY},
            "lineStyle": {"color": _GREY, "type": "dashed"},
            "data": [{"name": name, "yAxis": value} for name, value in marks],
        }
    if not line.low:
        return [drawn]
    # A band is the lower end, which is not drawn, and the width of the interval on top of it.
    widths = [
        None if low is None or high is None else high - low for low, high in zip(line.low, line.high, strict=True)
    ]
    shared = {"type": "line", "stack": f"{line.name} interval", "symbol": "none", "silent": True}
    hidden = {"lineStyle": {"opacity": 0}, "tooltip": {"show": False}}
    return [
        {**shared, **hidden, "name": f"{line.name} low", "data": list(line.low)},
        {
            **shared,
            **hidden,
            "name": f"{line.name} interval",
            "data": widths,
            "areaStyle": {"color": colour, "opacity": 0.18},
        },
        drawn,
    ]
