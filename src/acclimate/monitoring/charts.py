"""Charts as SVG elements for HTML pages."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

#: From the palette of Okabe and Ito, which colour-blind people can tell apart.
COLOURS: Final[Mapping[str, str]] = {
    "adapted": "#009E73",
    "declined": "#56B4E9",
    "fallback": "#D55E00",
    "plain": "#BBBBBB",
}


def stacked_days(days: Sequence[str], counts: Mapping[str, Sequence[int]], title: str) -> str:
    """Return stacked bars, one for each day, with one colour for each status.

    Args:
        days: ISO dates, in order.
        counts: by status, one for each day.
        title: of the chart.
    """
    figure, axes = _figure(title)
    bottom = [0] * len(days)
    for status, values in counts.items():
        if any(values):
            axes.bar(range(len(days)), values, bottom=bottom, color=COLOURS[status], label=status, width=0.8)
            bottom = [b + v for b, v in zip(bottom, values, strict=True)]
    every = max(1, len(days) // 8)
    axes.set_xticks(range(0, len(days), every), [day[5:] for day in days[::every]])
    axes.set_ylabel("requests")
    if any(bottom):
        axes.legend(frameon=False, ncols=4, loc="upper left", bbox_to_anchor=(0, -0.12))
    return _svg(figure)


def histogram(values: Sequence[float], title: str, label: str, *, marks: Mapping[str, float] | None = None) -> str:
    """Return a histogram with vertical lines at ``marks``.

    Args:
        values: to count; without any the chart reads "nothing recorded".
        title: of the chart.
        label: of the horizontal axis.
        marks: positions of the lines, by their name.
    """
    figure, axes = _figure(title)
    if values:
        axes.hist(values, bins=min(30, max(5, len(values) // 4)), color="#0072B2")
        for number, (name, value) in enumerate((marks or {}).items()):
            axes.axvline(value, color="#D55E00", linestyle=("-", "--", ":", "-.")[number % 4], label=name)
        if marks:
            axes.legend(frameon=False)
        axes.set_ylabel("requests")
    else:
        axes.text(0.5, 0.5, "nothing recorded", ha="center", va="center", transform=axes.transAxes, color="#666666")
        axes.set_yticks([])
        axes.set_xticks([])
    axes.set_xlabel(label)
    return _svg(figure)


def _figure(title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 3.0), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _svg(figure: Any) -> str:
    import matplotlib as mpl

    written = io.StringIO()
    # Text stays text instead of outlines, and the same data gives the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "acclimate"}):
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    svg = re.sub(r"<\?xml.*?<svg", "<svg", written.getvalue(), count=1, flags=re.DOTALL)
    # On a page with several charts every identifier may occur only once.
    own = hashlib.sha256(svg.encode()).hexdigest()[:8]
    return re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>c{own}-", svg)
