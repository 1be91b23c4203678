"""The look of the figures: panels in rows of two, legends below the curves, colours that all readers can tell apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import cycle
from typing import TYPE_CHECKING, Any

from fastopt import optimizers
from fastopt.landscape.figure import LINES
from fastopt.landscape.relief import Relief
from fastopt.landscape.styles import COLORS, styles
from fastopt.surfaces import Surface

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PINK, AMBER, SKY, GREY = COLORS
PAPER, INK = "#ffffff", "#1c2127"
PANEL_INCHES = (5.2, 4.0)
GRID_LINES = 201


def look(optimizer: str) -> dict[str, Any]:
    """Return colour and dashes of an optimizer's curves, the same in every figure."""
    style = styles(optimizers.registry())[optimizer]
    return {"color": style.color, "linestyle": LINES[style.dash]}


def line_styles() -> Iterator[Any]:
    """Yield dash patterns for the curves of a panel, from the first again where there are more curves than patterns."""
    return cycle(LINES.values())


def drawn(draw: Callable[..., None], panels: int, columns: int) -> Figure:
    """Return a figure of so many panels on which `draw` has drawn, with legends wherever a curve has a label."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = min(panels, columns)
    rows = math.ceil(panels / columns)
    with rc_context(_look()):
        figure = Figure(figsize=(PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows), layout="constrained")
        grid = figure.add_gridspec(rows, columns)
        axes = [figure.add_subplot(grid[panel // columns, panel % columns]) for panel in range(panels)]
        if panels % columns:
            axes[-1].set_subplotspec(grid[-1, :])  # alone in its row, the last panel takes all of it
        draw(*axes)
        for panel in axes:
            _put_legend_below(panel)
            _label_logarithms(panel)
    return figure


def image(figure: Figure, kind: str) -> bytes:
    """Return the figure as the content of a file, the same bytes for the same figure; `kind` is "png" or "svg"."""
    from matplotlib import rc_context

    content = BytesIO()
    with rc_context(_look()):
        figure.savefig(content, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else None)
    return content.getvalue()


def draw_contours(axes: Axes, surface: Surface) -> None:
    """Draw the contours of a surface of two coordinates over its domain, both axes to one scale."""
    relief = Relief.of(surface, GRID_LINES)
    axes.contour(
        *relief.axes, relief.height(relief.values), levels=12, colors=GREY, linewidths=0.7, alpha=0.6, linestyles="-"
    )
    axes.grid(visible=False)
    axes.set(xlabel="x", ylabel="y", aspect="equal")


def _look() -> Any:
    from cycler import cycler

    return {
        "axes.edgecolor": INK,
        "axes.facecolor": PAPER,
        "axes.grid": True,
        "axes.labelcolor": INK,
        "axes.prop_cycle": cycler(color=list(COLORS)),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": INK,
        "axes.titlesize": "medium",
        "figure.facecolor": PAPER,
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "grid.alpha": 0.3,
        "legend.frameon": False,
        "legend.labelcolor": INK,
        "lines.linewidth": 1.8,
        "svg.hashsalt": "fastopt",
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }


def _put_legend_below(axes: Axes) -> None:
    """Inside the axes the legend would hide a part of the curves."""
    _, labels = axes.get_legend_handles_labels()
    if labels:
        columns = 1 if max(map(len, labels)) > 36 else 2 if max(map(len, labels)) > 17 else 3
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=min(columns, len(labels)), fontsize="small")


def _label_logarithms(axes: Axes) -> None:
    """Plain numbers where they are short, and more than one of them on an axis that spans a decade or two."""
    from matplotlib.ticker import LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            low, high = axis.get_view_interval()
            axis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 100 else (1.0, 2.0, 5.0), numticks=8))
            axis.set_major_formatter(_power_text)
            axis.set_minor_formatter(NullFormatter())


def _power_text(number: float, position: float) -> str:
    if 1e-3 <= number < 1e5:
        return f"{number:g}"
    mantissa, _, exponent = f"{number:e}".partition("e")
    factor = "" if float(mantissa) == 1 else f"{float(mantissa):g}·"
    return f"${factor}10^{{{int(exponent)}}}$"
