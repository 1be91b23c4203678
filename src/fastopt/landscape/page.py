"""The page: one file of HTML on which the paths move, with everything it needs inside."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import Any, Literal

import numpy as np

from fastopt.landscape.curves import Curves, without_dust
from fastopt.landscape.relief import Array, Relief
from fastopt.landscape.runs import Run, best, by_surface
from fastopt.landscape.styles import Style, styles, styles_of
from fastopt.surfaces import Surface

GRID_LINES = 101
"""Along each axis; the browser draws the contours anew at every step."""

DIGITS = 6
"""Significant digits of the numbers in the page: more than a screen can show, at half the size."""


def page(
    runs: Sequence[Run], title: str = "Optimizers on their way down", rates: Literal["best", "all"] = "best"
) -> str:
    """Build a page that shows the runs as a contour map, in three dimensions and as loss curves, step by step.

    It opens offline in any browser; without WebGL it leaves out the three dimensions. Reader's choices are the
    surface, the learning rate and the optimizers, out of what is in `runs`. A link may make the first two choices:
    ``page.html#surface=saddle&lr=0.1``, where ``lr`` is a rate, ``best`` or ``all``.

    Parameters
    ----------
    runs : sequence of Run
        At least one.
    title : str
        Heading of the page.
    rates : {"best", "all"}
        What is shown at first where an optimizer ran with several rates: its best run, or all of them.

    Returns
    -------
    str
        HTML, about 5 MB: it holds plotly.js.

    Raises
    ------
    ImportError
        If plotly is not installed.
    ValueError
        If there are no runs or a surface has more than two coordinates.
    """
    from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

    return Template(_asset("page.html")).substitute(
        title=html.escape(title),
        style=_asset("page.css"),
        plotly=get_plotlyjs(),
        # A "</script>" inside a name would end the element; "<\/" is the same to JSON.
        data=json.dumps(_data(runs, rates), allow_nan=False, separators=(",", ":")).replace("</", r"<\/"),
        script=_asset("page.js"),
    )


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _data(runs: Sequence[Run], rates: str) -> dict[str, Any]:
    groups = by_surface(runs)
    looks = styles(run.optimizer for run in runs)
    return {
        "steps": max(run.path.steps for run in runs),
        "rates": rates,
        "surfaces": [_surface_data(surface, members, looks) for surface, members in groups.items()],
    }


def _surface_data(surface: Surface, runs: Sequence[Run], looks: dict[str, Style]) -> dict[str, Any]:
    relief = Relief.of(surface, GRID_LINES)
    curves = Curves.of(relief, runs)
    winners, own_looks = set(best(runs)), styles_of(runs)
    return {
        "name": surface.name,
        "formula": surface.formula,
        "source": surface.source,
        "lookFor": surface.look_for,
        "axes": [_numbers(axis) for axis in relief.axes],
        "values": _numbers(relief.values),
        "heights": _numbers(relief.height(relief.values)),
        "ticks": relief.ticks(),
        "start": _numbers(runs[0].path.points[0]),
        "minima": _numbers(surface.minima),
        "saddles": _numbers(surface.saddles),
        "lossAxis": {"label": curves.label, "logarithmic": curves.logarithmic, "limits": curves.limits},
        "runs": [
            {
                "optimizer": run.optimizer,
                "lr": run.lr,
                "best": run in winners,
                "ending": run.ending,
                "style": looks[run.optimizer]._asdict(),
                "ownStyle": own_looks[run]._asdict(),
                "points": _numbers(run.path.points),
                "loss": _numbers(run.path.loss),
                "gradNorm": _numbers(run.path.grad_norm),
                "heights": _numbers(relief.height(run.path.loss)),
                "curve": _numbers(values),
            }
            for run, values in zip(runs, curves.values, strict=True)
        ],
    }


def _numbers(array: Array) -> Any:
    """Nested lists of the numbers, rounded."""
    rounded = [float(f"{number:.{DIGITS}g}") for number in without_dust(array).ravel()]
    return np.array(rounded).reshape(array.shape).tolist()
