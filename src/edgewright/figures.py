"""Plots for reports, as inline SVG whose colours follow the page's light or dark theme."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgewright.report import Figure, Tone

_INCHES: Final = (6.4, 3.7)
# Colours that stand for CSS variables of the page; matplotlib must be given real ones.
_INK: Final = "#010101"
_GRID: Final = "#020202"
_SERIES: Final = ("#030301", "#030302", "#030303", "#030304")
_TONES: Final = {
    Tone.GOOD: "#040401",
    Tone.BAD: "#040402",
    Tone.WARN: "#040403",
    Tone.NEUTRAL: "#040404",
}
_THEME: Final = {
    _INK: "currentColor",
    _GRID: "var(--grid)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(_SERIES, 1)},
    **{colour: f"var(--{tone})" for tone, colour in _TONES.items()},
}
_MARKERS: Final = "osD^vPX*<>phd8H1234"
_FINE_TICKS: Final = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
_COARSE_TICKS: Final = (1, 2, 5)
_FEW_POINTS: Final = 30
_DASHES: Final = ("-", "--", "-.", ":")
_STYLE: Final[dict[Any, Any]] = {  # matplotlib's stubs want its own key type
    "svg.fonttype": "none",
    "svg.hashsalt": "edgewright",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Point:
    """A point with its interval on both axes; an end that equals the value draws no bar."""

    label: str
    x: float
    x_low: float
    x_high: float
    y: float
    y_low: float
    y_high: float
    tone: Tone = Tone.NEUTRAL


@dataclass(frozen=True)
class Axis:
    """One axis of ``curve_figure``; ``ticks`` are (place, words), chosen by itself where none."""

    label: str
    log: bool = False
    ticks: Sequence[tuple[float, str]] = ()


@dataclass(frozen=True)
class Bar:
    """A named length."""

    label: str
    value: float
    tone: Tone = Tone.NEUTRAL


def line_figure(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    y_label: str,
    caption: str,
    whole_x: bool = True,
    most_y: float | None = None,
) -> Figure:
    """One line for each series of (x, y); ``whole_x`` puts ticks on whole numbers only.

    The axis of y ends at ``most_y``, where that is given and it would not end before.
    """
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(x_label, y_label)
        for index, (name, points) in enumerate(series.items()):
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                color=_SERIES[index % len(_SERIES)],
                linestyle=_DASHES[index % len(_DASHES)],
                marker=_MARKERS[index % len(_MARKERS)],
                markersize=5,
                label=name,
                clip_on=False,
            )
        if most_y is not None:
            axes.set_ylim(top=min(axes.get_ylim()[1], most_y))
        if whole_x:
            axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, min_n_ticks=1))
        if len(series) > 1:
            axes.legend()
        return Figure(_svg(figure, caption), caption)


def curve_figure(
    series: Mapping[str, Sequence[tuple[float, float]]], x: Axis, y: Axis, caption: str
) -> Figure:
    """One curve for each series of (x, y); points are marked where they are few."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(x.label, y.label)
        for index, (name, points) in enumerate(series.items()):
            few = len(points) <= _FEW_POINTS
            axes.plot(
                [place for place, _ in points],
                [value for _, value in points],
                color=_SERIES[index % len(_SERIES)],
                linestyle=_DASHES[index // len(_SERIES) % len(_DASHES)],
                linewidth=1.6,
                marker=_MARKERS[index % len(_MARKERS)] if few else "",
                markersize=5,
                label=name,
            )
        _lay_out(axes.xaxis, axes.set_xscale, axes.get_xlim, x)
        _lay_out(axes.yaxis, axes.set_yscale, axes.get_ylim, y)
        if len(series) > 1:
            axes.legend()
        return Figure(_svg(figure, caption), caption)


def interval_scatter_figure(
    points: Sequence[Point],
    *,
    x_label: str,
    y_label: str,
    caption: str,
    y_line: tuple[float, str] | None = None,
    joined: tuple[Sequence[Point], str] | None = None,
) -> Figure:
    """Points with intervals on both axes, the x axis logarithmic: values are above 0.

    ``y_line`` draws a level, ``joined`` a line through some points; each with its name.
    """
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(x_label, y_label)
        axes.set_xscale("log")
        for index, point in enumerate(points):
            axes.errorbar(
                point.x,
                point.y,
                xerr=[[point.x - point.x_low], [point.x_high - point.x]],
                yerr=[[point.y - point.y_low], [point.y_high - point.y]],
                color=_TONES[point.tone],
                fmt=_MARKERS[index % len(_MARKERS)],
                markersize=8,
                elinewidth=1.2,
                label=point.label,
            )
        if joined is not None:
            line = [(point.x, point.y) for point in joined[0]]
            axes.plot(*zip(*line, strict=True), color=_SERIES[0], linewidth=1.2, label=joined[1])
        if y_line is not None:
            axes.axhline(y_line[0], color=_INK, linestyle=":", linewidth=1, label=y_line[1])
        _plain_log_ticks(axes.xaxis, axes.get_xlim())
        figure.set_figheight(_INCHES[1] + 0.2 * len(points) / 2)  # the legend has two columns
        figure.legend(loc="outside lower center", ncols=2, fontsize=10)
        return Figure(_svg(figure, caption), caption)


def bar_figure(bars: Sequence[Bar], *, x_label: str, caption: str) -> Figure:
    """Horizontal bars, the first on top, on a logarithmic scale.

    A value of 0 has no bar; an infinite one reaches ten times as far as the longest that is not.
    """
    import matplotlib

    finite = [bar.value for bar in bars if 0 < bar.value < math.inf] or [1.0]
    least, most = min(finite) / 2, max(finite) * 10
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(x_label, "")
        figure.set_figheight(1 + 0.27 * len(bars))
        axes.set_xscale("log")
        axes.set_xlim(least, most)
        axes.barh(
            range(len(bars)),
            [min(max(bar.value, least), most) for bar in bars],
            color=[_TONES[bar.tone] for bar in bars],
            height=0.7,
        )
        axes.set_yticks(range(len(bars)), [bar.label for bar in bars], fontsize=9)
        axes.invert_yaxis()
        axes.margins(y=0.01)
        axes.set_axisbelow(True)
        axes.grid(visible=False, axis="y")
        return Figure(_svg(figure, caption), caption)


def _lay_out(axis: Any, set_scale: Any, limits: Any, asked: Axis) -> None:
    """Scale and ticks of an axis whose curves are drawn."""
    import matplotlib.ticker

    if asked.log:
        set_scale("log")
        _plain_log_ticks(axis, limits())
    if asked.ticks:
        axis.set_major_locator(matplotlib.ticker.FixedLocator([place for place, _ in asked.ticks]))
        axis.set_major_formatter(
            matplotlib.ticker.FixedFormatter([word for _, word in asked.ticks])
        )
        axis.set_minor_locator(matplotlib.ticker.NullLocator())


def _plain_log_ticks(axis: Any, limits: tuple[float, float]) -> None:
    """Plain numbers on a logarithmic axis, closer where it spans less than a decade."""
    import matplotlib.ticker

    low, high = limits
    decades = math.log10(high / low)
    subs = _FINE_TICKS if decades < 1 else _COARSE_TICKS if decades < 4 else (1,)
    axis.set_major_locator(matplotlib.ticker.LogLocator(subs=subs, numticks=20))
    axis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axis.set_minor_locator(matplotlib.ticker.NullLocator())


def _axes(x_label: str, y_label: str) -> tuple[Any, Any]:
    import matplotlib.figure
    import matplotlib.ticker

    figure = matplotlib.figure.Figure(figsize=_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return figure, axes


def _svg(figure: Any, title: str) -> str:
    """The drawing as an SVG element that scales with its column and names itself."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    for colour, variable in _THEME.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg", f'<svg role="img" aria-label="{_attribute(title)}"', 1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
