"""The plot: contours with the paths over them, and the loss curves beside."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from fastopt.landscape.curves import Curves
from fastopt.landscape.relief import Array, Relief
from fastopt.landscape.runs import Run, by_surface
from fastopt.landscape.styles import Style, styles_of
from fastopt.surfaces import Surface

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MARKERS = {
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "cross": "P", "x": "X", "star": "*",
}  # fmt: skip
LINES = {
    "solid": "-", "dash": (0, (5, 2)), "dot": (0, (1, 1.5)), "dashdot": (0, (5, 1.5, 1, 1.5)),
    "longdash": (0, (10, 2)), "longdashdot": (0, (10, 1.5, 1, 1.5)),
}  # fmt: skip
LANDMARKS = {"start": "o", "minimum": "*", "saddle": "x"}
PAPER, SHADE, LINE, INK = "#FFFFFF", "#C3CAD3", "#9AA4AF", "#333333"
GRID_LINES = 301
LEVELS = 24
MARKS = 12
"""Markers along a path; one at every step would hide it."""


def figure(runs: Sequence[Run]) -> Figure:
    """Draw one row for every surface: the map with the paths on the left, the loss curves on the right.

    Every run is drawn; `best` leaves one for each optimizer.

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
        If there are no runs or a surface has more than two coordinates.
    """
    from matplotlib.figure import Figure

    looks, groups = styles_of(runs), by_surface(runs)
    figure = Figure(figsize=(11, 5 * len(groups)), layout="constrained", facecolor=PAPER)
    rows = figure.subplots(len(groups), 2, squeeze=False)
    for (surface, members), (chart, losses) in zip(groups.items(), rows, strict=True):
        relief = Relief.of(surface, GRID_LINES)
        _draw_map(chart, surface, relief, members, looks)
        _draw_losses(losses, relief, members, looks)
    return figure


def _draw_map(axes: Axes, surface: Surface, relief: Relief, runs: Sequence[Run], looks: dict[Run, Style]) -> None:
    draw_ground = _draw_contours if surface.n == 2 else _draw_profile
    draw_ground(axes, surface, relief)
    for run in runs:
        _draw_path(axes, *_place(surface, run.path.points), run, looks)
    landmarks = {"start": runs[0].path.points[:1], "minimum": surface.minima, "saddle": surface.saddles}
    drawn = [
        axes.plot(
            *_place(surface, points), LANDMARKS[name], color=INK, markerfacecolor="none", markersize=12, label=name
        )[0]
        for name, points in landmarks.items()
        if len(points)
    ]
    axes.set_title(f"{surface.name}\n{surface.formula}\n{fill(surface.look_for, 60)}".strip(), fontsize="medium")
    _put_legend_below(axes, drawn, columns=3)


def _place(surface: Surface, points: Array) -> tuple[Array, Array]:
    """Where points are on the map; with one coordinate, at the height of the surface."""
    return points[:, 0], points[:, 1] if surface.n == 2 else surface.value(points)


def _draw_contours(axes: Axes, surface: Surface, relief: Relief) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    heights = relief.height(relief.values)
    paper = LinearSegmentedColormap.from_list("relief", [PAPER, SHADE])
    filled = axes.contourf(*relief.axes, heights, levels=LEVELS, cmap=paper)
    axes.contour(*relief.axes, heights, levels=LEVELS, colors=LINE, linewidths=0.5, linestyles="-")
    places, labels = zip(*relief.ticks(), strict=True)
    bar = axes.figure.colorbar(filled, ax=axes, ticks=places, label="loss", shrink=0.9)
    bar.ax.set_yticklabels(labels)
    axes.set(xlim=surface.domain[:, 0], ylim=surface.domain[:, 1], xlabel="x", ylabel="y", aspect="equal")


def _draw_profile(axes: Axes, surface: Surface, relief: Relief) -> None:
    axes.plot(*relief.axes, relief.values, color=LINE)
    # What is drawn from now on, a run that went far, does not change the axis.
    axes.set(xlim=surface.domain[:, 0], ylim=axes.get_ylim(), xlabel="x", ylabel="loss")


def _draw_losses(axes: Axes, relief: Relief, runs: Sequence[Run], looks: dict[Run, Style]) -> None:
    curves = Curves.of(relief, runs)
    for run, values in zip(runs, curves.values, strict=True):
        _draw_path(axes, np.arange(float(len(values))), values, run, looks)
    axes.set(xlabel="step", ylabel=curves.label, ylim=curves.limits, yscale="log" if curves.logarithmic else "linear")
    axes.grid(alpha=0.3)
    _put_legend_below(axes, axes.get_lines(), columns=2)


def _put_legend_below(axes: Axes, lines: Sequence[Line2D], columns: int) -> None:
    """Inside the axes the legend would hide a part of a path."""
    axes.legend(handles=lines, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=columns, frameon=False)


def _draw_path(axes: Axes, x: Array, y: Array, run: Run, looks: dict[Run, Style]) -> None:
    look = looks[run]
    axes.plot(
        x,
        y,
        color=look.color,
        linestyle=LINES[look.dash],
        marker=MARKERS[look.symbol],
        markevery=np.unique(np.linspace(0, len(x) - 1, MARKS).astype(int)).tolist(),
        markeredgecolor=PAPER,
        markersize=7,
        linewidth=1.8,
        label=f"{run.optimizer}, lr {run.lr:g}" + (run.ending and f", {run.ending}"),
    )
