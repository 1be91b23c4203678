"""Pictures of optimizers' paths and of schedules, for light and for dark pages."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastopt import SGD, landscape, surfaces, trajectory
from fastopt.optimizer import Optimizer
from fastopt.schedules import Schedule

SCHEMES = {"light": ("#37474f", "#b0bec5", "#c62828"), "dark": ("#cfd8dc", "#546e7a", "#ff8a65")}
"""Colours of words, of lines behind, and of what the picture is about."""
RATES = np.geomspace(1e-3, 10, 25).tolist()
STEPS = 100


def paths(cls: type[Optimizer]) -> dict[str, bytes]:
    """Draw the optimizer's way down two surfaces, at the best of many rates, beside plain descent's at its best.

    No pictures, if it cannot step two numbers.
    """
    try:
        runs = [
            landscape.Run(surface, label, lr, trajectory(surface, optimizer, surface.starts[0], STEPS, lr=lr))
            for surface in (surfaces.ravine(), surfaces.himmelblau())
            for label, optimizer in (("gradient descent", SGD), (cls.__name__, cls))
            for lr in RATES
        ]
    except ValueError:
        return {}
    drawn: dict[str, bytes] = {}
    for scheme, (ink, faint, bright) in SCHEMES.items():
        with _inked(ink):
            figure = Figure(figsize=(6.4, 3.2), layout="constrained", facecolor="none")
            axes = dict(zip(dict.fromkeys(run.surface for run in runs), figure.subplots(1, 2), strict=True))
            for surface, chart in axes.items():
                _draw_contours(chart, surface, faint)
            for run in landscape.best([run for run in runs if _stays(run)] or runs):
                descent = run.optimizer != cls.__name__
                axes[run.surface].plot(
                    *run.path.points.T,
                    "-o",
                    color=ink if descent else bright,
                    linewidth=1 if descent else 1.8,
                    markersize=1.5 if descent else 3,
                    label=f"{run.optimizer}, lr {run.lr:.2g}",
                )
            for chart in axes.values():
                chart.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), frameon=False, fontsize="small")
            drawn[scheme] = _svg(figure)
    return drawn


def curve(schedule: Schedule, last: float) -> dict[str, bytes]:
    """Draw the values of a schedule up to a step."""
    steps = np.linspace(0, last, 1001)
    drawn: dict[str, bytes] = {}
    for scheme, (ink, faint, bright) in SCHEMES.items():
        with _inked(ink):
            figure = Figure(figsize=(6, 2.4), layout="constrained", facecolor="none")
            chart = figure.subplots()
            chart.plot(steps, schedule(steps), color=bright, linewidth=2)
            chart.set(xlabel="step", xlim=(0, last))
            chart.grid(color=faint, alpha=0.4)
            chart.spines[["top", "right"]].set_visible(False)
            drawn[scheme] = _svg(figure)
    return drawn


def shown(drawn: Mapping[str, bytes], stem: str, text: str) -> str:
    """Return the Markdown that shows a picture of each scheme on pages of that scheme."""
    return "\n".join(f"![{text}]({stem}-{scheme}.svg#only-{scheme})" for scheme in drawn)


def _stays(run: landscape.Run) -> bool:
    """Whether a path is in the picture all the time: one that found a minimum from far out teaches nothing."""
    lower, upper = run.surface.domain
    return not run.path.diverged and bool(((run.path.points >= lower) & (run.path.points <= upper)).all())


def _inked(ink: str) -> AbstractContextManager[None]:
    inks: Any = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), ink)
    return rc_context({**inks, "axes.facecolor": "none", "svg.hashsalt": "fastopt"})


def _draw_contours(chart: Axes, surface: surfaces.Surface, color: str) -> None:
    lower, upper = surface.domain
    x, y = (np.linspace(low, high, 121) for low, high in zip(lower, upper, strict=True))
    heights = surface.value(np.stack(np.meshgrid(x, y), axis=-1)) - (surface.lowest or 0)
    levels = np.quantile(heights, np.linspace(0.01, 1, 14) ** 2)
    chart.contour(x, y, heights, levels=levels, colors=color, linewidths=0.6)
    chart.plot(*surface.minima.T, "*", color=color, markersize=10)
    chart.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), title=surface.name, xticks=[], yticks=[])


def _svg(figure: Figure) -> bytes:
    out = BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
