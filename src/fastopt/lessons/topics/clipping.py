"""Clipping.

Where many factors are multiplied, as in a recurrent network, the gradient is small nearly everywhere and enormous on a
few walls. One step from a wall throws the weights far away. Clipping shortens such a step. Clipping by norm keeps its
direction; clipping by value does not.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt import SGD
from fastopt.lessons.drawing import BLUE, ORANGE, draw_contours
from fastopt.lessons.lesson import Lesson, Range, at_least, at_most, between, near
from fastopt.lessons.recurrent import SEEDS, STEPS, USUAL, recurrent
from fastopt.surfaces import cliff
from fastopt.trajectories import Trajectory, trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LESSON = Lesson(
    __name__,
    number=13,
    formula="""
        by norm:   g ← g · min(1, c / |g|)
        by value:  gᵢ ← min(max(gᵢ, -c), c)
    """,
)


@cache
def at_the_cliff() -> dict[str, Trajectory]:
    """Run down to the cliff of a recurrent unit, 300 steps."""
    surface = cliff()
    return {
        label: trajectory(surface, SGD, surface.starts[0], 300, lr=0.3, clip_norm=clip_norm)
        for label, clip_norm in {"not clipped": None, "clipped to norm 0.1": 0.1}.items()
    }


@LESSON.claim(
    "At a cliff one step throws the weights far away; clipped, they stay near and get lower",
    setting="one recurrent unit over 20 steps in time, two weights, lr 0.3, 300 steps, clipped to norm 0.1",
    quantity="longest step: without, with; final loss without / with",
    expected=(at_least(1.0), at_most(0.031), at_least(5.0)),
)
def thrown() -> list[float]:
    """The gradient is below 0.1 nearly everywhere, and above 10 on the wall."""
    without, clipped = at_the_cliff().values()
    longest = [float(np.linalg.norm(np.diff(path.points, axis=0), axis=1).max()) for path in (without, clipped)]
    return [*longest, float(without.loss[-1] / clipped.loss[-1])]


@LESSON.claim(
    "A recurrent network ends in NaN without clipping",
    setting="32 units over 30 steps in time, learning a sum, SGD with momentum 0.9, lr 0.01, 3 seeds",
    quantity="seeds that are no longer finite, steps until the last of them is not",
    expected=(Range(SEEDS, SEEDS), at_most(20)),
)
def ends_in_nan() -> list[float]:
    """A weight that is a little too large is taken to the 30th power."""
    finite = np.isfinite(recurrent(USUAL))
    return [int(np.sum(~finite.all(axis=1))), int(finite.sum(axis=1).max()) + 1]


@LESSON.claim(
    "A recurrent network trains with clipping",
    setting="the same, clipped to norm 1; the targets have variance 1",
    quantity="share of the variance that is explained in the last 50 of 300 steps, the worst of 3 seeds",
    expected=between(0.9, 1.0),
    digits=2,
)
def trains() -> float:
    """Direction by direction the gradient was right, it was only too long."""
    return 1 - float(recurrent(USUAL, clip_norm=1.0)[:, -50:].mean(axis=1).max())


def cosine_of_clipped(**clipping: Any) -> float:
    """Return the cosine between 1000 entries of a gradient with heavy tails and the step that clipping makes of it."""
    gradient = np.random.default_rng(0).standard_t(df=2, size=1000)
    w = np.zeros(len(gradient))
    SGD(w, lr=1.0, **clipping).step(gradient)
    return float(-w @ gradient / np.linalg.norm(w) / np.linalg.norm(gradient))


@LESSON.claim(
    "Clipping by norm keeps the direction, clipping by value does not",
    setting="1000 entries from a t distribution with 2 degrees of freedom, c = 1",
    quantity="cosine between the gradient and the step against it: by norm, by value",
    expected=(near(1.0, 1e-9), at_most(0.9)),
)
def direction() -> list[float]:
    """By norm all entries get the same factor; by value only those that are too large get one."""
    return [cosine_of_clipped(clip_norm=1.0), cosine_of_clipped(clip_value=1.0)]


@LESSON.draw(panels=2)
def figure(wall: Axes, training: Axes) -> None:
    """Left: the way to the cliff, where contours lie close together. Right: a recurrent network learns to add.
    Without clipping all three seeds are no longer finite in the third step.
    """
    draw_contours(wall, replace(cliff(), domain=np.array([[4.0, -4.0], [7.0, 1.0]])))
    for style, (label, path) in zip(("o-", "s-"), at_the_cliff().items(), strict=True):
        wall.plot(*path.points.T, style, markersize=2.5, linewidth=1, label=label)
    wall.set(xlabel="weight", ylabel="bias", title="cliff", aspect="auto")
    steps = np.arange(1, STEPS + 1)
    for seed, losses in enumerate(recurrent(USUAL)):
        training.loglog(steps, losses, "o-", color=BLUE, label=None if seed else "not clipped")
    training.loglog(
        steps, np.median(recurrent(USUAL, clip_norm=1.0), axis=0), "--", color=ORANGE, label="clipped to norm 1, median"
    )
    training.set(xlabel="step", ylabel="loss", title="recurrent network, 3 seeds", ylim=(1e-3, 1e20))
