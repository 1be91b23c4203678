"""The plot: contours with the paths over them, and the loss curves beside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fastopt.landscape.curves import Curves
from fastopt.landscape.relief import Array, Relief
from fastopt.landscape.runs import Run, best
from fastopt.landscape.styles import Style, styles
from fastopt.surfaces import Surface

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = {
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "cross": "P", "x": "X", "star": "*",
}  # fmt: skip
LINES = {
    "solid": "-", "dash": (0, (5, 2)), "dot": (0, (1, 1.5)), "dashdot": (0, (5, 1.5, 1, 1.5)),
    "longdash": (0, (10, 2)), "longdashdot": (0, (10, 1.5, 1, 1.5)),
}  # fmt: skip
PAPER, INK = "#FFFFFF", "#333333"
LEVELS = 24
MARKS = 12
"""Markers along a path; one at every step would hide it."""


def figure(runs: Sequence[Run]) -> Figure:
    """Draw one row for every surface: the map with the paths on the left, the loss curves on the right.

    Where an optimizer ran with several learning rates, the best run is drawn.

    Parameters
    ----------
    runs : sequence of Run
        At least one.

    Returns
    -------
    matplotlib.figure.Figure
        Ready for ``savefig``.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ValueError
        If a surface has more than two coordinates.
    """
    from matplotlib.figure import Figure

    looks = styles(run.optimizer for run in runs)
    by_surface: dict[Surface, list[Run]] = {}
    for run in best(runs):
        by_surface.setdefault(run.surface, []).append(run)

    figure = Figure(figsize=(11, 5 * len(by_surface)), layout="constrained", facecolor=PAPER)
    rows = figure.subplots(len(by_surface), 2, squeeze=False)
    for (surface, members), (chart, losses) in zip(by_surface.items(), rows, strict=True):
        relief = Relief.of(surface)
        draw = _draw_map if surface.n == 2 else _draw_profile
        draw(chart, surface, relief, members, looks)
        chart.set_title(f"{surface.name}\n{surface.formula}", fontsize="medium")
        _draw_losses(losses, relief, members, looks)
    return figure


def _draw_map(axes: Axes, surface: Surface, relief: Relief, runs: Sequence[Run], looks: dict[str, Style]) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    heights = relief.height(relief.values)
    paper = LinearSegmentedColormap.from_list("relief", ["#FFFFFF", "#C3CAD3"])
    filled = axes.contourf(*relief.axes, heights, levels=LEVELS, cmap=paper)
    axes.contour(*relief.axes, heights, levels=LEVELS, colors="#9AA4AF", linewidths=0.5, linestyles="-")
    places, labels = zip(*relief.ticks(), strict=True)
    bar = axes.figure.colorbar(filled, ax=axes, ticks=places, label="loss", shrink=0.9)
    bar.ax.set_yticklabels(labels)
    for run in runs:
        _draw_path(axes, *run.path.points.T, run, looks)
    axes.plot(*surface.minima.T, "*", color=INK, markerfacecolor=PAPER, markersize=13, label="minimum")
    axes.plot(*surface.saddles.T, "x", color=INK, markersize=7, label="saddle")
    axes.set(xlim=surface.domain[:, 0], ylim=surface.domain[:, 1], xlabel="x", ylabel="y")


def _draw_profile(axes: Axes, surface: Surface, relief: Relief, runs: Sequence[Run], looks: dict[str, Style]) -> None:
    (x,) = relief.axes
    axes.plot(x, relief.values, color="#9AA4AF")
    for run in runs:
        _draw_path(axes, run.path.points[:, 0], run.path.loss, run, looks)
    axes.set(xlim=surface.domain[:, 0], xlabel="x", ylabel="loss")


def _draw_losses(axes: Axes, relief: Relief, runs: Sequence[Run], looks: dict[str, Style]) -> None:
    curves = Curves.of(relief, runs)
    for run, values in zip(runs, curves.values, strict=True):
        _draw_path(axes, np.arange(len(values)), values, run, looks)
    axes.set(xlabel="step", ylabel=curves.label, ylim=curves.limits, yscale="log" if curves.logarithmic else "linear")
    axes.grid(alpha=0.3)
    # Below the axes, where it hides no curve.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)


def _draw_path(axes: Axes, x: Array, y: Array, run: Run, looks: dict[str, Style]) -> None:
    look = looks[run.optimizer]
    end = f", diverged after step {run.path.steps}" if run.path.diverged else ""
    axes.plot(
        x,
        y,
        color=look.color,
        linestyle=LINES[look.dash],
        marker=MARKERS[look.symbol],
        markevery=max(1, len(x) // MARKS),
        markeredgecolor=PAPER,
        markersize=7,
        linewidth=1.8,
        label=f"{run.optimizer}, lr {run.lr:g}{end}",
    )
