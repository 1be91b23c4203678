"""The walk without a browser: what its stations say and show."""

import json
import re
from html import unescape

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from fastopt.landscape import optimizer_names, styles
from fastopt.landscape.figure import LINES, MARKERS
from fastopt.lessons import registry
from fastopt.lessons.site import SHOWN_OPTIMIZERS, SHOWN_RATES, SHOWN_SURFACES, TOO_HIGH
from fastopt.lessons.stations import stations
from fastopt.lessons.walk import DASHES, walk

STATIONS = stations()
PAGE = walk(registry().values(), lambda lesson: f"{lesson.name}.html", "landscape.html")


def test_every_style_can_be_drawn() -> None:
    """Those of a figure with many optimizers too."""
    assert list(DASHES) == list(styles.DASHES) == list(LINES)
    assert set(styles.SYMBOLS) == set(MARKERS)


def test_eight_stations_in_order() -> None:
    assert [station.title for station in STATIONS] == [
        "Blindfolded on a mountain",
        "The learning rate",
        "Stochastic gradients",
        "Momentum",
        "Adam",
        "Convex and non-convex",
        "Traps",
        "The recipe",
    ]
    assert re.findall(r"step (\d) of 8", PAGE) == list("12345678")


@pytest.mark.parametrize("station", STATIONS, ids=lambda station: station.title)
def test_a_station_says_something_of_everything(station: object) -> None:
    for field in ("analogy", "worked", "insight", "question", "answer"):
        text = getattr(station, field)
        assert text.endswith((".", "?"))
        assert unescape(text) == text
    assert len(re.findall(r"[.?](?: |$)", station.analogy)) in (2, 3)  # type: ignore[attr-defined]


def test_the_exercises_have_the_answers_that_the_library_gives() -> None:
    first, second, third, fourth, *_ = STATIONS
    assert "5 - 0.1 · 2 = 4.8" in first.answer
    assert "3 - 0.1 · 6 = 2.4" in first.worked
    assert "= -6." in second.worked
    assert "= 7.2." in second.worked
    assert second.answer.endswith("it gets to 0.")
    assert "rate" in third.question
    assert "0.25" in third.worked
    assert fourth.answer.startswith("To 10:")
    assert "1.9 + 1 = 2.71" in fourth.worked
    assert "to 4.9 for g = 0.01, and to 4.9 for g = 100" in STATIONS[4].worked
    assert "26 steps" in STATIONS[6].worked
    assert STATIONS[7].worked.count("0.00015") == 2


def test_the_pictures_show_what_the_words_say() -> None:
    rates = list(STATIONS[1].paths.values())
    assert rates[0].loss[-1] > 0.1
    assert rates[1].loss[-1] < 1e-6
    assert np.all(np.diff(rates[2].loss) > 0)
    exact, one, many = (path.loss[-40:].mean() for path in STATIONS[2].paths.values())
    assert exact < many < one
    without, with_momentum = STATIONS[3].paths.values()
    assert with_momentum.loss[40] < 0.1 * without.loss[40]
    assert with_momentum.loss[-1] < 0.1 * without.loss[-1]
    plain, adam = STATIONS[4].paths.values()
    assert adam.loss[-1] < plain.loss[-1]
    ends = [path.points[-1] for path in STATIONS[5].paths.values()]
    assert len(np.unique(np.round(ends, 2), axis=0)) == 4
    ridge, beside, noisy = STATIONS[6].paths.values()
    assert np.all(ridge.points[:, 1] == 0)
    assert np.flatnonzero(np.abs(beside.points[:, 1]) > 1)[0] == 26
    assert abs(noisy.points[-1, 1]) > 1
    constant, recipe = STATIONS[7].paths.values()
    assert recipe.loss[-10:].mean() < 0.2 * constant.loss[-40:].mean()


def test_films_hold_the_paths_and_links_lead_to_lessons_and_landscapes() -> None:
    films = [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', PAGE)]
    for station, film in zip(STATIONS, films, strict=True):
        assert film["steps"] == max(path.steps for path in station.paths.values())
        for path, walker in zip(station.paths.values(), film["walkers"], strict=True):
            assert len(walker["points"]) == len(walker["loss"]) == len(path.points)
    assert set(SHOWN_OPTIMIZERS) <= set(optimizer_names())
    choices = re.findall(r'href="landscape.html#surface=(\w+)&amp;lr=([\d.]+)"', PAGE)
    assert len(choices) == 8
    for surface, rate in choices:
        assert surface in SHOWN_SURFACES
        assert float(rate) in {*SHOWN_RATES, *([TOO_HIGH] if surface == "parabola" else [])}
    assert {lesson for station in STATIONS for lesson in station.lessons} == set(registry())
