"""Batches.

The gradient of the loss is a mean over all rows. A mini-batch estimates it from a few: with an error whose variance
falls as 1/B, but for B rows' work. So the choice is between many rough steps and few exact ones. Here all batch sizes
learn the same linear regression, each with the best of the same learning rates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from fastopt import SGD
from fastopt.lessons.drawing import BLUE, GREEN, ORANGE, PINK
from fastopt.lessons.lesson import Array, Lesson, at_least, at_most, between, near

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LESSON = Lesson(
    __name__,
    number=2,
    formula="""
        g_B = 1/B · Σ ∇fᵢ(w) over the B rows of a batch
        E[g_B] = ∇f(w),   Var[g_B] = Var[∇fᵢ] / B
    """,
)

ROWS, FEATURES = 16384, 20
BATCHES = {1: 6000, 32: 1500, 64: 1000, 128: 800, 256: 600, 512: 500, ROWS: 60}
"""Sizes of a batch, and the steps of a run with each."""
RATES = (0.003, 0.005, 0.007, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 1.5, 1.8)
"""Learning rates times the largest curvature: 2 is where the full batch diverges."""
TIMINGS = 5
"""The shortest of so many is the time: others may have had to wait for the processor."""
START_TO_TARGET = 300
"""The race is to a loss above the minimum that is so many times lower than at the start."""


@dataclass(frozen=True)
class Regression:
    """Rows x with targets y = x · w + noise; `curvature` is the Hessian of the mean of (x · w - y)²/2."""

    x: Array
    y: Array
    curvature: Array
    best: Array

    def excess(self, w: Array) -> Array:
        """Return the loss above the minimum, for weights of shape (..., FEATURES)."""
        distance = w - self.best
        return np.asarray(0.5 * np.sum(distance @ self.curvature * distance, axis=-1))


@cache
def regression() -> Regression:
    """Make the rows, in random order: consecutive ones are a random batch."""
    random = np.random.default_rng(0)
    x = random.standard_normal((ROWS, FEATURES)) * np.geomspace(1, 0.25, FEATURES)
    y = x @ random.standard_normal(FEATURES) + random.standard_normal(ROWS)
    curvature = x.T @ x / ROWS
    return Regression(x, y, curvature, np.asarray(np.linalg.solve(curvature, x.T @ y / ROWS), dtype=np.float64))


@dataclass(frozen=True)
class Race:
    """The run to the target of one batch size with its best rate."""

    steps: int
    epochs: float
    seconds: float


def run(batch: int, rate: float) -> Race | None:
    """Return how long one rate takes until the loss stays below the target, None if it does not."""
    data, steps = regression(), BATCHES[batch]
    w = np.zeros(FEATURES)
    descent = SGD(w, lr=rate / np.linalg.eigvalsh(data.curvature)[-1])
    path, clock = np.empty((steps, FEATURES)), np.empty(steps)
    started = perf_counter()
    for step in range(steps):
        first = step * batch % ROWS
        x, y = data.x[first : first + batch], data.y[first : first + batch]
        descent.step((x @ w - y) @ x / batch)
        path[step] = w
        clock[step] = perf_counter() - started
    above = np.flatnonzero(~(data.excess(path) < data.excess(np.zeros(FEATURES)) / START_TO_TARGET))
    needed = int(above[-1]) + 2  # the first step after the last one above the target, counted from 1
    return Race(needed, needed * batch / ROWS, float(clock[needed - 1])) if needed <= steps else None


@cache
def race(batch: int) -> Race:
    """Return the run with the rate that takes the fewest steps; of several such, the fastest."""
    with np.errstate(over="ignore", invalid="ignore"):  # of rates that diverge
        runs = {rate: found for rate in RATES if (found := run(batch, rate))}
    best = min(runs, key=lambda rate: runs[rate].steps)
    again = [found for _ in range(TIMINGS) if (found := run(batch, best))]
    return min(again, key=lambda found: found.seconds)


@LESSON.claim(
    "In one pass over the data single rows get further than the full batch",
    setting="regression with 16384 rows, each batch size with its best rate, until the loss stays 300 times lower",
    quantity="passes needed with the full batch / with batch 1",
    expected=at_least(10.0),
)
def per_epoch() -> float:
    """A pass is one step for the full batch and 16384 for single rows."""
    return race(ROWS).epochs / race(1).epochs


@LESSON.claim(
    "The more rows a batch has, the fewer steps a larger one saves",
    setting="the same runs",
    quantity="steps with batch 32 / 512, and with 512 / all 16384 rows",
    expected=(between(4.0, 16.0), between(1.0, 4.0)),
)
def fewer_steps() -> list[float]:
    """While the noise rules, a batch 16 times as large can save at most 16 times the steps. Once it does not, the
    curvature decides, and 32 times as many rows save next to nothing.
    """
    return [race(32).steps / race(512).steps, race(512).steps / race(ROWS).steps]


@LESSON.claim(
    "In one second a batch of 32 to 512 gets further than a single row, and further than the full batch",
    setting="the same runs, by the clock",
    quantity="seconds with batch 1, and with the full batch / with the best of 32 to 512",
    expected=(at_least(2.0), at_least(1.2)),
    digits=2,
    varies=True,
)
def per_second() -> list[float]:
    """A step with one row takes nearly as long as one with 100: what is small is drowned in overhead."""
    best = min(race(batch).seconds for batch in BATCHES if 1 < batch < ROWS)
    return [race(1).seconds / best, race(ROWS).seconds / best]


@cache
def step_seconds() -> dict[int, float]:
    """Return the least time that a step takes, by the rows in its batch; the sizes take turns."""
    data = regression()
    descents = {batch: SGD(np.zeros(FEATURES), lr=0.01) for batch in (1, 32, ROWS)}
    least = dict.fromkeys(descents, np.inf)
    for _ in range(300):
        for batch, descent in descents.items():
            started = perf_counter()
            x, y = data.x[:batch], data.y[:batch]
            descent.step((x @ np.zeros(FEATURES) - y) @ x / batch)
            least[batch] = min(least[batch], perf_counter() - started)
    return least


@LESSON.claim(
    "A step with 32 rows takes hardly longer than one with a single row; one with all rows takes far longer",
    setting="the same regression, by the clock, the shortest of 300 steps",
    quantity="time of a step with 32 rows, and with all 16384 rows / with one",
    expected=(at_most(2.0), at_least(3.0)),
    digits=2,
    varies=True,
)
def step_times() -> list[float]:
    """Up to hundreds of rows it is the overhead of calls that takes the time, and then the arithmetic. A row's share
    of the time is a thousandth with all rows of what it is alone.
    """
    single, some, every = step_seconds().values()
    return [some / single, every / single]


@cache
def variances() -> dict[int, float]:
    """Return the variance of the gradient at the start, summed over its entries, from 1000 batches of each size."""
    data, random = regression(), np.random.default_rng(1)
    of_rows = -data.y[:, None] * data.x
    return {
        batch: float(
            np.sum(np.var([of_rows[random.integers(ROWS, size=batch)].mean(axis=0) for _ in range(1000)], axis=0))
        )
        for batch in (1, 32, 64, 128, 256, 512)
    }


@LESSON.claim(
    "The variance of the gradient falls as 1/B",
    setting="1000 batches each of 1 and of 32 to 512 rows, at the start",
    quantity="slope of log variance over log B",
    expected=near(-1.0, 0.03),
)
def variance() -> float:
    """The rows are drawn independently, and so the variance of their mean is that of one divided by their number."""
    return float(np.polyfit(np.log(list(variances())), np.log(list(variances().values())), 1)[0])


@LESSON.draw(panels=4)
def figure(passes: Axes, seconds: Axes, steps: Axes, noise: Axes) -> None:
    """What it takes until the loss is 300 times lower for good, by batch size: passes over the data, time on the
    machine that made this figure, and steps. Below right: the variance of the gradient.
    """
    races = [race(batch) for batch in BATCHES]
    sizes = list(BATCHES)
    passes.loglog(sizes, [race.epochs for race in races], "o-", color=BLUE)
    passes.set(xlabel="rows in a batch", ylabel="passes over the data", title="passes to the target")
    seconds.loglog(sizes, [1000 * race.seconds for race in races], "s-", color=ORANGE)
    seconds.set(xlabel="rows in a batch", ylabel="time [ms]", title="time to the target")
    steps.loglog(sizes, [race.steps for race in races], "^-", color=PINK)
    steps.set(xlabel="rows in a batch", ylabel="steps", title="steps to the target")
    measured = variances()
    noise.loglog(measured.keys(), measured.values(), "D", color=GREEN, label="measured")
    noise.loglog(
        measured.keys(), [measured[1] / batch for batch in measured], "--", color="gray", label="that of one row / B"
    )
    noise.set(xlabel="rows in a batch B", ylabel="variance of the gradient", title="noise")
