"""Curves and tables of a comparison, as a picture (matplotlib) or as one HTML file with everything in it (Jinja)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from thunderagent.errors import ConfigError
from thunderagent.simulator.figures import Figures
from thunderagent.simulator.shown import HIT_RATE, JAIN, LONGEST_HOLD, TURNS, Shown
from thunderagent.simulator.study import estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Series", "check_drawing", "write_html", "write_plot"]

_PANELS = (TURNS, HIT_RATE, LONGEST_HOLD, JAIN)


@frozen
class Series:
    """One policy: per point of the sweep the figures of all seeds. Without a sweep there is one point."""

    name: str
    points: tuple[tuple[float, tuple[Figures, ...]], ...]


def check_drawing(plot: Path | None, html: Path | None) -> None:
    """Before anything runs: raises ConfigError where matplotlib or Jinja is needed and not installed."""
    needed = ("matplotlib", "jinja2") if html is not None else ("matplotlib",) if plot is not None else ()
    for name in needed:
        if find_spec(name) is None:
            raise ConfigError(f"{name} is not installed: pip install 'thunderagent[plots]'")


def write_plot(path: Path, series: Sequence[Series], swept: str, title: str) -> None:
    """Four panels as PNG, SVG or PDF, by the file's ending.

    Raises:
        ConfigError: the file cannot be written.
    """
    figure = _draw(series, swept, title)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise ConfigError(f"--plot {path}: {error.strerror}") from None


Table = tuple[str, Sequence[Sequence[str]]]


def write_html(path: Path, series: Sequence[Series], swept: str, title: str, tables: Sequence[Table]) -> None:
    """The panels and ``tables`` (heading, rows; the first row names the columns) in a file that needs no other.

    Raises:
        ConfigError: the file cannot be written.
    """
    import jinja2

    drawn = io.StringIO()
    _draw(series, swept, title).savefig(drawn, format="svg")
    svg = drawn.getvalue()
    environment = jinja2.Environment(autoescape=True)
    page = environment.from_string(_PAGE).render(title=title, tables=tables, picture=svg[svg.index("<svg") :])
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--html {path}: {error.strerror}") from None


def _draw(series: Sequence[Series], swept: str, title: str) -> Figure:
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(10, 7.5), layout="constrained")
    for axes, shown in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        (_draw_curves if swept else _draw_bars)(axes, series, shown)
        axes.set_title(shown.title, fontsize=10)
        axes.set_ylim(bottom=0.0)
        axes.grid(axis="y", alpha=0.3)
        if swept:
            axes.set_xlabel(swept)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, max(1, len(labels))), fontsize=8)
    figure.suptitle(title, fontsize=9)
    return figure


def _draw_curves(axes: Any, series: Sequence[Series], shown: Shown) -> None:
    for each in series:
        places = [place for place, _ in each.points]
        found = [estimate(shown.values(seeds)) for _, seeds in each.points]
        (line,) = axes.plot(places, [one.mean for one in found], marker="o", label=each.name)
        if all(one.half_width is not None for one in found):
            low = [one.mean - (one.half_width or 0.0) for one in found]
            high = [one.mean + (one.half_width or 0.0) for one in found]
            axes.fill_between(places, low, high, color=line.get_color(), alpha=0.2)


def _draw_bars(axes: Any, series: Sequence[Series], shown: Shown) -> None:
    for place, each in enumerate(series):
        found = estimate(shown.values(each.points[0][1]))
        axes.bar(place, found.mean, yerr=found.half_width, label=each.name, capsize=4)
    axes.set_xticks([])


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.25rem; } h2 { font-size: 1rem; margin-top: 2rem; }
svg { width: 100%; height: auto; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>Timings are simulated: compare columns with one another, not with a GPU's.</p>
{{ picture | safe }}
{% for heading, rows in tables %}
<h2>{{ heading }}</h2>
<div class="table"><table>
<tr>{% for cell in rows[0] %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in rows[1:] %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% endfor %}
</body>
</html>
"""
