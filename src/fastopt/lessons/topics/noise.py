"""Noise.

The gradient of a mini-batch is off by chance. Near the minimum, where the true gradient vanishes, only the chance is
left: the weights jitter, the wider the larger the rate. So the rate is lowered as training goes on. The jitter also
shakes the weights out of narrow valleys; a large batch has less of it and stays in sharper ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from fastopt import SGD, schedules
from fastopt.hyperparameters import Schedule
from fastopt.lessons.drawing import BLUE, line_styles
from fastopt.lessons.lesson import Array, Lesson, at_least, exactly, near
from fastopt.lessons.networks import random_batches, sharpness, train
from fastopt.surfaces import styblinski_tang
from fastopt.training.batches import Batch
from fastopt.training.losses import SquaredError
from fastopt.training.mlp import MLP

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LESSON = Lesson(
    __name__,
    number=3,
    formula="""
        f(x) = x²/2,   g = x + σ ξ,   ξ random normal
        loss in the long run = σ²/2 · lr / (2 - lr) ≈ σ²/4 · lr
    """,
)

RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
COPIES = 4000
STEPS = 300


def noisy_descent(lr: float | Schedule, steps: int, seed: int = 0) -> Array:
    """Return the mean loss after each step on x²/2 from 5, over many copies with noise of their own."""
    random = np.random.default_rng(seed)
    x = np.full(COPIES, 5.0)
    descent = SGD(x, lr=lr)
    losses = np.empty(steps)
    for step in range(steps):
        descent.step(x + random.standard_normal(COPIES))
        losses[step] = np.mean(x**2) / 2
    return losses


@cache
def floors() -> Array:
    """Return the loss in the long run for every rate."""
    return np.array([noisy_descent(lr, steps=int(10 / lr))[-1] for lr in RATES])


@LESSON.claim(
    "The noise floor of SGD is proportional to the learning rate",
    setting="x²/2 with noise of standard deviation 1, 4000 copies, lr 0.01 to 0.2",
    quantity="slope of log(loss in the long run) over log(lr)",
    expected=near(1.0, 0.05),
)
def floor() -> float:
    """A step keeps (1 - lr)² of the variance and adds lr² σ²: they balance at lr σ²/(2 - lr)."""
    return float(np.polyfit(np.log(RATES), np.log(floors()), 1)[0])


@cache
def courses() -> dict[str, Array]:
    """Return the losses over the steps with a high, a low and a falling rate."""
    rates: dict[str, float | Schedule] = {
        "lr 0.3": 0.3,
        "lr 0.01": 0.01,
        "lr 0.3 falling to 0 (cosine)": schedules.cosine(0.3, STEPS),
    }
    return {label: noisy_descent(lr, STEPS) for label, lr in rates.items()}


@LESSON.claim(
    "So the rate is lowered as training goes on: a high rate stays high, a low one is slow",
    setting="the same, 300 steps from 5, lr 0.3, 0.01, and a cosine from 0.3 to 0",
    quantity="last loss with 0.3, and with 0.01 / with the cosine",
    expected=(at_least(5.0), at_least(5.0)),
)
def lowered() -> list[float]:
    """The high rate is at its floor of 0.088 after ten steps; the low one has a long way to its floor of 0.0025."""
    high, low, falling = (losses[-1] for losses in courses().values())
    return [high / falling, low / falling]


HOPS, HOP_NOISE = 3000, 50.0


def share_in_deeper_valley(noise: float) -> float:
    """Return how many of 500 walkers that start in the shallow valley end in the deep one, as a share."""
    surface = styblinski_tang(1)
    deep, shallow = surface.minima
    random = np.random.default_rng(0)
    w = np.full((500, 1), shallow)
    descent = SGD(w, lr=schedules.cosine(0.01, HOPS))
    for _ in range(HOPS):
        descent.step(surface.gradient(w) + noise * random.standard_normal(w.shape))
    return float(np.mean(np.abs(w - deep) < 0.5))


@LESSON.claim(
    "Noise finds the way out of a bad local minimum",
    setting="(x⁴ - 16x² + 5x)/2 from its shallow minimum, 3000 steps, cosine from lr 0.01 to 0, 500 walkers",
    quantity="share that ends in the deep minimum: without noise, with noise of standard deviation 50",
    expected=(exactly(0.0), at_least(0.6)),
    digits=1,
)
def out_of_a_bad_minimum() -> list[float]:
    """Between the two the slope is up to 15 against it, and the noise has to be larger than that. Once over, walkers
    seldom come back: the deep valley is 14 deeper. As the rate falls, they settle.
    """
    return [share_in_deeper_valley(0.0), share_in_deeper_valley(HOP_NOISE)]


NETWORK_ROWS, NETWORK_LR, NETWORK_STEPS, HELD_OUT = 256, 0.02, 3000, 2000
BATCHES = (4, 32, NETWORK_ROWS)


def network_rows(seed: int) -> tuple[Batch, Batch]:
    """Return rows to learn and rows held out: a smooth function of eight features with noise."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((NETWORK_ROWS + HELD_OUT, 8))
    y = np.sin(1.5 * x[:, 0]) + x[:, 1] * x[:, 2]
    y = (y - y.mean()) / y.std() + 0.3 * random.standard_normal(len(x))
    return Batch(x[:NETWORK_ROWS], y[:NETWORK_ROWS]), Batch(x[NETWORK_ROWS:], y[NETWORK_ROWS:])


@dataclass(frozen=True)
class Ends:
    """Where networks end, each of shape (seeds, batch sizes): losses on learned and on unseen rows, and sharpness."""

    learned: Array
    unseen: Array
    sharpness: Array


@cache
def ends_by_batch() -> Ends:
    """Train networks of three seeds with every batch size."""
    found = []
    for seed in range(3):
        rows, held_out = network_rows(seed)
        for size in BATCHES:
            model = MLP([8, 24, 24, 1], SquaredError(), batch_size=NETWORK_ROWS, dtype="float64", seed=seed)
            train(model, SGD(model.parameters, lr=NETWORK_LR), random_batches(rows, size, NETWORK_STEPS, seed))
            losses = [model.evaluate(part)["loss"] for part in (rows, held_out)]
            found.append([*losses, sharpness(model, rows)])
    return Ends(*np.array(found).T.reshape(3, -1, len(BATCHES)))


def all_rows_over_four(values: Array) -> float:
    """Return the mean over the seeds with all rows in a batch, divided by that with four."""
    means = values.mean(axis=0)
    return float(means[-1] / means[0])


@LESSON.claim(
    "Large batches settle in sharper minima than small ones",
    setting="network 8-24-24-1 on 256 noisy rows, lr 0.02, 3000 steps, mean of 3 seeds",
    quantity="largest Hessian eigenvalue at the end with all rows / with batch 4",
    expected=at_least(1.5),
    digits=2,
)
def sharp_minima() -> float:
    """With all rows the curvature grows until it is about 2/lr, where steps no longer fit into the valley. Noise stops
    it earlier: a narrow valley does not hold weights that jitter (Keskar et al. 2017; Cohen et al. 2021).
    """
    return all_rows_over_four(ends_by_batch().sharpness)


@LESSON.claim(
    "Small batches, and flat minima, generalize better",
    setting="the same networks, 2000 unseen rows",
    quantity="unseen loss with all rows / with batch 4; correlation of log(sharpness) and unseen loss within the seeds",
    expected=(at_least(1.05), at_least(0.5)),
    digits=2,
    varies=True,
)
def flat_generalizes() -> list[float]:
    """A valley that is wide for the rows that were learned is likely to be one for others, too. It is a correlation:
    what makes the minimum flat, the noise, may as well be what keeps the network from learning rows by heart.
    """
    ends = ends_by_batch()
    logs, losses = (values - values.mean(axis=1, keepdims=True) for values in (np.log(ends.sharpness), ends.unseen))
    return [all_rows_over_four(ends.unseen), float(np.corrcoef(logs.ravel(), losses.ravel())[0, 1])]


@LESSON.claim(
    "Stochastic descent ends lower than exact descent does in as many steps",
    setting="the same networks, the loss over the 256 rows that were learned",
    quantity="loss with all rows / with batch 4",
    expected=at_least(1.05),
    digits=2,
    varies=True,
)
def ends_lower() -> float:
    """What it minimizes, exact descent minimizes better: without noise it gets further down. It is on unseen rows that
    noise wins, and so what is better about it is not that it is the better minimizer.
    """
    return all_rows_over_four(ends_by_batch().learned)


@LESSON.draw(panels=3)
def figure(floor: Axes, course: Axes, sharp: Axes) -> None:
    """The loss in the long run by learning rate, with the line that theory gives; three courses of the rate on the
    same noisy bowl; the sharpness at the end of a network's training by batch size, three seeds.
    """
    rates = np.array(RATES)
    floor.loglog(rates, floors(), "o", label="measured")
    floor.loglog(rates, rates / (2 - rates) / 2, "--", color="gray", label="σ²/2 · lr/(2 - lr)")
    floor.set(xlabel="learning rate", ylabel="loss in the long run", title="noise floor")
    for style, (label, losses) in zip(line_styles(), courses().items(), strict=False):
        course.semilogy(np.arange(1, STEPS + 1), losses, linestyle=style, label=label)
    course.set(xlabel="step", ylabel="mean loss", title="why the rate is lowered")
    sharp.axhline(2 / NETWORK_LR, color="gray", linestyle="--", label="2/lr")
    for seed, values in enumerate(ends_by_batch().sharpness):
        sharp.semilogx(BATCHES, values, "osD"[seed], color=BLUE, label=f"seed {seed}")
    sharp.set(
        xlabel="rows in a batch", ylabel="largest Hessian eigenvalue", title="sharpness at the end", ylim=(0, None)
    )
