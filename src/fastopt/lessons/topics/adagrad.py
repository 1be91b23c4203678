"""Adagrad.

Every weight gets its own rate: the learning rate divided by the root of the sum of all its squared gradients. Weights
that seldom see a gradient keep a high rate, which is what rare features need. But a sum only grows, so every rate falls
for ever, as 1/√t when the gradients do not change, and a long way is never finished.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastopt import SGD, Adagrad, Adam, Optimizer, RMSprop
from fastopt.lessons.drawing import look
from fastopt.lessons.lesson import Array, Lesson, Range, at_least, at_most, near
from fastopt.surfaces import rosenbrock
from fastopt.trajectories import Trajectory, trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LESSON = Lesson(
    __name__,
    number=5,
    formula="""
        s ← s + g²,   w ← w - lr · g / (√s + eps)
        for |g| = 1:  s = t, a step is lr/√t long, and t steps go 2 lr √t far
    """,
)

SLOPE_STEPS = 10_000


@cache
def down_a_slope(optimizer: Callable[..., Optimizer]) -> Array:
    """Return how far w is after every step down a straight slope, lr 0.01, g = 1."""
    w, gradient = np.zeros(1), np.ones(1)
    descent = optimizer(w, lr=0.01)
    places = np.empty(SLOPE_STEPS + 1)
    for step in range(SLOPE_STEPS):
        places[step] = -w[0]
        descent.step(gradient)
    places[-1] = -w[0]
    return places


def late_slope(optimizer: Callable[..., Optimizer]) -> float:
    """Return the exponent p with which the length of a step changes as t^p, from step 1000 on."""
    lengths = np.diff(down_a_slope(optimizer))[1000:]
    return float(np.polyfit(np.log(np.arange(1001, SLOPE_STEPS + 1)), np.log(lengths), 1)[0])


@LESSON.claim(
    "The effective rate of Adagrad falls as 1/√t, that of RMSprop stays",
    setting="straight slope, g = 1, lr 0.01, steps 1000 to 10000",
    quantity="slope of log(step length) over log(t): Adagrad, RMSprop",
    expected=(near(-0.5, 0.01), Range(-0.01, 0.01)),
)
def effective_rate() -> list[float]:
    """The sum of t equal squares is t times one; their moving average is one."""
    return [late_slope(Adagrad), late_slope(RMSprop)]


@LESSON.claim(
    "Adagrad stalls on a slope where RMSprop does not",
    setting="the same slope, 10000 steps",
    quantity="distance gone by Adagrad / by RMSprop",
    expected=near(2 / np.sqrt(SLOPE_STEPS), 0.05),
)
def stalls_on_a_slope() -> float:
    """Steps of lr/√t add up to 2 lr √t, steps of lr to lr t: 2 % of it for t = 10000."""
    return float(down_a_slope(Adagrad)[-1] / down_a_slope(RMSprop)[-1])


@cache
def in_valley() -> dict[str, Trajectory]:
    """Run both from a wall of Rosenbrock's valley, where the gradient is a hundred times that of the floor."""
    surface = rosenbrock()
    return {
        optimizer.__name__: trajectory(surface, optimizer, [-1.5, -1.0], 5000, lr=0.01)
        for optimizer in (Adagrad, RMSprop)
    }


@LESSON.claim(
    "Adagrad stalls in a valley below a steep wall where RMSprop does not",
    setting="Rosenbrock's valley from (-1.5, -1), lr 0.01, 5000 steps",
    quantity="distance from the minimum at the end: Adagrad, RMSprop",
    expected=(at_least(0.5), at_most(0.1)),
    digits=1,
)
def stalls_in_a_valley() -> list[float]:
    """The sum never forgets the wall."""
    return [float(np.linalg.norm(path.points[-1] - [1, 1])) for path in in_valley().values()]


FEATURES, ACTIVE, BATCH, SPARSE_STEPS = 1000, 10, 16, 1500
NOISE = 0.5
LAST = 300
"""So many batches at the end say how much was learned."""
RATES = tuple(10.0 ** (power / 4) for power in range(-9, 0))
"""Every optimizer gets its best out of these, 0.0056 to 0.56."""


@cache
def sparse_rows() -> tuple[NDArray[np.int64], Array]:
    """Return batches of active features, shape (steps, rows, active), and their targets, shape (steps, rows).

    The k-th feature is active with a frequency of 1/k, as words are in a text. A target is the sum of the true weights
    of the active features, which are random signs, and noise.
    """
    random = np.random.default_rng(0)
    frequency = 1 / np.arange(1, FEATURES + 1)
    frequency /= frequency.sum()
    active = random.choice(FEATURES, size=(SPARSE_STEPS, BATCH, ACTIVE), p=frequency)
    truth = random.choice([-1.0, 1.0], size=FEATURES)
    targets = truth[active].sum(axis=2) + NOISE * random.standard_normal((SPARSE_STEPS, BATCH))
    return active, targets


def sparse_course(optimizer: Callable[..., Optimizer], lr: float) -> Array:
    """Return the mean squared error of every batch before it is learned."""
    active, targets = sparse_rows()
    w, gradient = np.zeros(FEATURES), np.zeros(FEATURES)
    descent = optimizer(w, lr=lr)
    losses = np.empty(SPARSE_STEPS)
    for step in range(SPARSE_STEPS):
        error = w[active[step]].sum(axis=1) - targets[step]
        losses[step] = np.mean(error**2)
        gradient[:] = 0
        np.add.at(gradient, active[step], error[:, None] / BATCH)
        descent.step(gradient)
    return losses


@cache
def sparse_race() -> dict[str, Array]:
    """Return the course of each optimizer with its best rate."""
    with np.errstate(over="ignore", invalid="ignore"):  # of rates that diverge
        return {optimizer.__name__: best_course(optimizer) for optimizer in (SGD, Adagrad, RMSprop, Adam)}


def best_course(optimizer: Callable[..., Optimizer]) -> Array:
    """Return the course with the rate that makes the error of the last batches lowest."""
    courses = np.array([sparse_course(optimizer, lr) for lr in RATES])
    best: Array = courses[np.nanargmin(courses[:, -LAST:].mean(axis=1))]
    return best


def last_error(optimizer: Callable[..., Optimizer]) -> float:
    """Return the squared error over the last 300 batches, above that of the noise."""
    return float(sparse_race()[optimizer.__name__][-LAST:].mean() - NOISE**2)


@LESSON.claim(
    "Adagrad wins on sparse features",
    setting="1000 features as frequent as words, ten in a row, 1500 batches of 16, each with the best of nine rates",
    quantity="error above the noise in the last 300 batches: SGD, the better of RMSprop and Adam / Adagrad",
    expected=(at_least(1.2), at_least(1.2)),
)
def sparse_features() -> list[float]:
    """A feature that was seen ten times has a rate ten times as high as one that was seen a thousand times. A moving
    average forgets how seldom it was: what was not seen for long gets a step that is too long.
    """
    rivals = min(last_error(RMSprop), last_error(Adam))
    return [last_error(SGD) / last_error(Adagrad), rivals / last_error(Adagrad)]


@LESSON.draw(panels=4)
def figure(lengths: Axes, slope: Axes, valley: Axes, sparse: Axes) -> None:
    """Length of a step and distance on a straight slope; the distance from the minimum of Rosenbrock's valley below a
    steep wall; the error on sparse features.
    """
    steps = np.arange(1, SLOPE_STEPS + 1)
    for optimizer in (Adagrad, RMSprop):
        name, places = optimizer.__name__, down_a_slope(optimizer)
        lengths.loglog(steps, np.diff(places), **look(name), label=name)
        slope.loglog(steps, places[1:], **look(name), label=name)
        valley.plot(np.linalg.norm(in_valley()[name].points - [1, 1], axis=1), **look(name), label=name)
    lengths.set(xlabel="step", ylabel="length of the step", title="straight slope, lr 0.01")
    slope.set(xlabel="step", ylabel="distance gone", title="straight slope, lr 0.01")
    valley.set(xlabel="step", ylabel="distance from the minimum", title="Rosenbrock's valley, lr 0.01")
    for name, losses in sparse_race().items():
        sparse.semilogy(np.arange(25, SPARSE_STEPS, 50), losses.reshape(-1, 50).mean(axis=1), **look(name), label=name)
    sparse.axhline(NOISE**2, color="gray", linewidth=1, label="noise")
    sparse.set(xlabel="step", ylabel="squared error, mean of 50 batches", title="sparse features")
