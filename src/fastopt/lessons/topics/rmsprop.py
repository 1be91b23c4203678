"""RMSprop.

The gradient is divided by a moving root mean square of itself. What is left is its direction in every coordinate: steep
and flat ones make the same progress. And since the average moves, it forgets: the rate does not die as Adagrad's does,
so RMSprop can follow a target that keeps moving.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from fastopt import SGD, Adagrad, Optimizer, RMSprop, schedules
from fastopt.lessons.drawing import line_styles, look
from fastopt.lessons.lesson import Array, Lesson, at_least, at_most, exactly, near
from fastopt.lessons.recurrent import STEPS as RECURRENT_STEPS
from fastopt.lessons.recurrent import USUAL, recurrent
from fastopt.surfaces import bowl, ravine
from fastopt.trajectories import Trajectory, trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LESSON = Lesson(
    __name__,
    number=6,
    formula="""
        s ← alpha · s + (1 - alpha) · g²
        w ← w - lr · g / (√s + eps)
    """,
)

CONDITION = 10_000.0


@cache
def on_bowl() -> dict[str, Trajectory]:
    """Run both on a bowl that is ten thousand times steeper along y than along x, from (1, 1)."""
    surface = bowl(CONDITION)
    return {
        "SGD": trajectory(surface, SGD, [1.0, 1.0], 300, lr=1 / CONDITION),
        "RMSprop": trajectory(surface, RMSprop, [1.0, 1.0], 300, lr=0.01, alpha=0.9),
    }


@LESSON.claim(
    "RMSprop makes equal progress in steep and flat directions, SGD does not",
    setting="bowl with curvatures 1 and 10000 from (1, 1), 50 steps: RMSprop lr 0.01, SGD lr 1/10000",
    quantity="progress in the flat direction / in the steep one: RMSprop, SGD",
    expected=(near(1.0, 0.01), at_most(0.01)),
)
def equal_progress() -> list[float]:
    """A factor on a coordinate's gradient is in its root mean square, too, and cancels."""
    ends = [on_bowl()[name].points[50] for name in ("RMSprop", "SGD")]
    return [float((1 - flat) / (1 - steep)) for flat, steep in ends]


@cache
def in_turned_valley() -> Array:
    """Run RMSprop down the same valley turned by 30°; return the places along it and across it."""
    surface = ravine(CONDITION, angle=30.0)
    directions = np.linalg.eigh(surface.hessian(surface.minima[0]))[1]
    path = trajectory(surface, RMSprop, directions.sum(axis=1), 300, lr=0.01, alpha=0.9)
    return np.asarray(path.points @ directions)


@LESSON.claim(
    "RMSprop makes equal progress, too, when steep and flat are not directions of the coordinates",
    setting="the same valley turned by 30°, from (1, 1) in its own directions, 50 steps of RMSprop",
    quantity="progress in the flat direction / in the steep one",
    expected=near(1.0, 0.01),
)
def turned() -> float:
    """In both coordinates the gradient is that of the steep direction. It is coordinates that are rescaled."""
    flat, steep = in_turned_valley()[50]
    return float((1 - flat) / (1 - steep))


ALPHAS = (0.9, 0.99, 0.999)


@LESSON.claim(
    "RMSprop's first step is longer than the rate, with alpha 0.999 more than thirty times",
    setting="gradient 1, alpha 0.9, 0.99, 0.999",
    quantity="length of the first step / lr",
    expected=tuple(near(1 / np.sqrt(1 - alpha), 1e-3) for alpha in ALPHAS),
)
def first_steps() -> list[float]:
    """The average starts from 0 and has by then but a share 1 - alpha of one square: the step is lr/√(1 - alpha). Adam
    corrects that; with a long memory RMSprop needs a low rate, or a warmup.
    """
    found = []
    for alpha in ALPHAS:
        w = np.zeros(1)
        RMSprop(w, lr=0.01, alpha=alpha).step(np.ones(1))
        found.append(float(-w[0]) / 0.01)
    return found


RECURRENT_RATES = (3e-4, 1e-3)


@cache
def recurrent_losses() -> Array:
    """Return the late losses of the recurrent network of the lesson on clipping, unclipped, with the better rate."""
    runs = [recurrent(partial(RMSprop, lr=schedules.cosine(lr, RECURRENT_STEPS))) for lr in RECURRENT_RATES]
    return min((losses[:, -50:].mean(axis=1) for losses in runs), key=np.mean)


RECURRENT = "a recurrent network of 32 units that adds up 30 numbers, 300 steps, 3 seeds"


@LESSON.claim(
    "RMSprop trains a recurrent network without clipping, which SGD does not",
    setting=RECURRENT + ", the better of two rates; the targets have variance 1",
    quantity="share of the variance that is explained in the last 50 steps, worst seed; seeds of SGD that end in NaN",
    expected=(at_least(0.9), exactly(3)),
    digits=2,
)
def recurrent_network() -> list[float]:
    """A step is as long as the rate, however long the gradient: that is a kind of clipping, too."""
    unclipped = recurrent(USUAL)
    return [1 - float(recurrent_losses().max()), int(np.sum(~np.isfinite(unclipped).all(axis=1)))]


@LESSON.claim(
    "RMSprop does better on a recurrent network than SGD with momentum and clipping",
    setting=RECURRENT + ": SGD clipped to norm 1, RMSprop not clipped",
    quantity="loss in the last 50 steps of SGD / of RMSprop",
    expected=at_least(1.1),
    digits=1,
)
def better_than_clipped() -> float:
    """For years RMSprop was what such networks were trained with. Clipping does more: a single huge gradient stays in
    the average of squares for a hundred steps, and all of them are short.
    """
    return float(recurrent(USUAL, clip_norm=1.0)[:, -50:].mean() / recurrent_losses().mean())


STEPS, PERIOD = 10_000, 200
RATES = tuple(10.0 ** (power / 4) for power in range(-12, 5))


def target(step: int) -> float:
    """Return where the minimum is: it swings between -1 and 1."""
    return float(np.sin(2 * np.pi * step / PERIOD))


def following(optimizer: Callable[..., Optimizer], lr: float, steps: int) -> Array:
    """Return the distance from the moving minimum over the steps."""
    x = np.zeros(1)
    descent = optimizer(x, lr=lr)
    distances = np.empty(steps)
    for step in range(steps):
        error = x - target(step)
        distances[step] = abs(error[0])
        descent.step(error)
    return distances


@cache
def followers() -> dict[str, Array]:
    """Return the distances of each optimizer with the rate that follows best in the first five swings."""
    found = {}
    for optimizer in (Adagrad, RMSprop):
        rate = min(RATES, key=lambda lr: following(optimizer, lr, 5 * PERIOD).mean())
        found[optimizer.__name__] = following(optimizer, rate, STEPS)
    return found


@LESSON.claim(
    "RMSprop follows a moving target, which Adagrad loses",
    setting="x²/2 whose minimum swings to and fro in 200 steps, 10000 steps, the rates that follow best at first",
    quantity="mean distance in the last 1000 steps / in the first 1000: RMSprop, Adagrad",
    expected=(at_most(1.1), at_least(1.5)),
    digits=2,
)
def follows() -> list[float]:
    """The target moves as far in every step. Adagrad's rate has more than halved, so it lags further behind."""
    late_and_early = [(distances[-1000:].mean(), distances[:1000].mean()) for distances in followers().values()]
    adagrad, rmsprop = (float(late / early) for late, early in late_and_early)
    return [rmsprop, adagrad]


@LESSON.draw(panels=4)
def figure(flat: Axes, steep: Axes, turned: Axes, moving: Axes) -> None:
    """The way in the flat and in the steep direction of a bowl; both when they are not the directions of the
    coordinates; the distance from a minimum that swings to and fro.
    """
    for name, path in on_bowl().items():
        flat.plot(path.points[:, 0], **look(name), label=name)
        steep.plot(path.points[:, 1], **look(name), label=name)
    flat.set(xlabel="step", ylabel="x", title="flat direction, curvature 1")
    steep.set(xlabel="step", ylabel="y", title="steep direction, curvature 10000")
    for style, label, places in zip(
        line_styles(), ("flat direction", "steep direction"), in_turned_valley().T, strict=False
    ):
        turned.plot(places, linestyle=style, label=label)
    turned.set(xlabel="step", ylabel="place in the direction", title="RMSprop, directions turned by 30°")
    for name, distances in followers().items():
        swings = distances.reshape(-1, PERIOD).mean(axis=1)
        moving.plot(np.arange(PERIOD / 2, STEPS, PERIOD), swings, **look(name), label=name)
    moving.set(xlabel="step", ylabel="mean distance of a swing", title="moving minimum", ylim=(0, None))
