"""The walk: a page that shows one station at a time, with a picture that moves.

The pictures are drawn once, as SVG, and moved by a script; without scripts every station shows its whole run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np

from fastopt.landscape.relief import Relief
from fastopt.landscape.styles import Style, styles
from fastopt.lessons.lesson import Array, Lesson, number_text
from fastopt.lessons.stations import Station, stations
from fastopt.surfaces import Surface

SIZE, PROFILE_HEIGHT = 480, 300
"""Width of a picture, and height of one of a single coordinate, in its own units."""
GRID_LINES = 121
BANDS = 12
DASHES = {
    "solid": "",
    "dash": "8 4",
    "dot": "2 3",
    "dashdot": "8 3 2 3",
    "longdash": "14 4",
    "longdashdot": "14 3 2 3",
}


def walk(lessons: Collection[Lesson], lesson_file: Callable[[Lesson], str], landscape_file: str) -> str:
    """Return the walk as HTML; it links those of the lessons that are among `lessons`."""
    stops = stations()
    titles = "".join(f'<li><a href="#station-{k}">{escape(stop.title)}</a></li>' for k, stop in enumerate(stops, 1))
    sections = []
    for k, stop in enumerate(stops, 1):
        links = [
            f'<a href="{landscape_file}#{escape(stop.landscape)}">Try it on the landscape</a>',
            *(
                f'<a href="{lesson_file(lesson)}">Lesson: {escape(lesson.title)}</a>'
                for lesson in lessons
                if lesson.name in stop.lessons
            ),
        ]
        sections.append(_section(stop, k, len(stops), " ".join(links)))
    return (
        '<div id="walk">\n'
        f'<nav aria-label="Stations"><ol id="stations">{titles}</ol></nav>\n'
        f"{''.join(sections)}"
        '<div id="steps"><button type="button" id="back">← Back</button>'
        '<p id="keys"><kbd>Space</kbd> play, pause &nbsp; <kbd>←</kbd> <kbd>→</kbd> back, next</p>'
        '<button type="button" id="next">Next →</button></div>\n'
        "</div>"
    )


def _section(stop: Station, number: int, total: int, links: str) -> str:
    words = "\n".join(
        [
            f'<p class="analogy">{escape(stop.analogy)}</p>',
            f'<p class="worked"><b>By hand.</b> {escape(stop.worked)}</p>',
            f'<p class="insight"><b>Key insight.</b> {escape(stop.insight)}</p>',
            f"<details><summary><b>Exercise.</b> {escape(stop.question)}</summary>"
            f"<p>{escape(stop.answer)}</p></details>",
            f'<p class="links">{links}</p>',
        ]
    )
    return (
        f'<section class="station" id="station-{number}" aria-labelledby="title-{number}">\n'
        f'<h2 id="title-{number}" tabindex="-1"><span class="count">step {number} of {total}</span> '
        f"{escape(stop.title)}</h2>\n"
        f'<div class="halves">\n{_film(stop)}\n<div class="words">\n{words}\n</div>\n</div>\n</section>\n'
    )


def _film(stop: Station) -> str:
    looks = styles(stop.paths)
    height, project = _projection(stop.surface)
    steps = max(path.steps for path in stop.paths.values())
    data = {
        "steps": steps,
        "walkers": [
            {"points": _rounded(project(path.points)), "loss": [number_text(loss, 3) for loss in path.loss]}
            for path in stop.paths.values()
        ],
    }
    moving = "".join(_walker(project(path.points), looks[label]) for label, path in stop.paths.items())
    label = f"{stop.surface.name.replace('_', ' ')}: {', '.join(stop.paths)}"
    legend = "".join(
        f'<li><svg viewBox="0 0 30 10" aria-hidden="true"><path d="M0 5H30" {_stroke(looks[name])}/></svg>'
        f"{escape(name)}<output>loss {number_text(path.loss[-1], 3)}</output></li>"
        for name, path in stop.paths.items()
    )
    return (
        f'<figure class="film">\n<svg viewBox="0 0 {SIZE} {height}" role="img" aria-label="{escape(label)}">'
        f"{_ground(stop.surface, height, project)}{moving}</svg>\n"
        f'<div class="transport"><button type="button" class="play">Play</button>'
        f'<input type="range" min="0" max="{steps}" value="{steps}" aria-label="Step of the picture">'
        f'<output class="step">{steps} / {steps}</output></div>\n'
        f"<figcaption><ul>{legend}</ul></figcaption>\n"
        f'<script type="application/json">{json.dumps(data, separators=(",", ":"))}</script>\n</figure>'
    )


def _walker(points: Array, look: Style) -> str:
    x, y = points[-1].round(1)
    line = " ".join(f"{px:g},{py:g}" for px, py in points.round(1))
    return (
        f'<polyline points="{line}" {_stroke(look)}/>'
        f'<circle class="walker" cx="{x:g}" cy="{y:g}" r="8" fill="{look.color}"/>'
    )


def _stroke(look: Style) -> str:
    return f'fill="none" stroke="{look.color}" stroke-width="2.5" stroke-dasharray="{DASHES[look.dash]}"'


def _projection(surface: Surface) -> tuple[int, Callable[[Array], Array]]:
    """Return the height of the picture, and what takes points of the surface to places in it."""
    lower, upper = surface.domain
    if surface.n == 1:
        top = 1.1 * float(np.max(surface.value(surface.domain)))

        def on_profile(points: Array) -> Array:
            across = (points[:, 0] - lower[0]) / (upper[0] - lower[0])
            return np.stack([SIZE * across, PROFILE_HEIGHT * (0.95 - 0.95 * surface.value(points) / top)], axis=-1)

        return PROFILE_HEIGHT, on_profile
    scale = SIZE / (upper[0] - lower[0])
    return round(scale * (upper[1] - lower[1])), lambda points: (points - [lower[0], upper[1]]) * [scale, -scale]


def _ground(surface: Surface, height: int, project: Callable[[Array], Array]) -> str:
    """Return what does not move: bands of equal height, or the profile, and the minima and saddles."""
    relief = Relief.of(surface, GRID_LINES)
    if surface.n == 1:
        ground = f'<path class="profile" d="{_line(project(relief.axes[0][:, None]))}"/>'
    else:
        ground = "".join(
            f'<path class="band" style="fill-opacity:{0.7 * k / BANDS:.2f}" d="{d}"/>'
            for k, d in _bands(relief, project)
        )
    marks = {"☆": surface.minima, "\N{MULTIPLICATION SIGN}": surface.saddles}
    return f'<rect class="paper" width="{SIZE}" height="{height}"/>{ground}' + "".join(
        f'<text class="mark" x="{x:.0f}" y="{y:.0f}">{sign}</text>'
        for sign, places in marks.items()
        if len(places)
        for x, y in project(places)
        if 0 <= x <= SIZE and 0 <= y <= height
    )


def _bands(relief: Relief, project: Callable[[Array], Array]) -> list[tuple[int, str]]:
    """Return the outlines of the areas between two heights, with their number from below."""
    from contourpy import FillType, contour_generator

    heights = relief.height(relief.values)
    edges = np.linspace(heights.min(), heights.max(), BANDS + 1)
    x, y = relief.axes
    contours = contour_generator(x=x, y=y, z=heights, fill_type=FillType.OuterOffset)
    found = []
    for k, (low, high) in enumerate(pairwise(edges)):
        areas: Any = contours.filled(low, high)
        pieces = [
            f"{_line(project(points[begin:end]))}Z"
            for points, offsets in zip(*areas, strict=True)
            for begin, end in pairwise(offsets)
        ]
        found.append((k, "".join(pieces)))
    return found


def _line(points: Array) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _rounded(points: Array) -> list[list[float]]:
    """Return places to a tenth, and none so far out that a browser cannot draw the way there."""
    places: list[list[float]] = np.clip(points, -10 * SIZE, 10 * SIZE).round(1).tolist()
    return places
