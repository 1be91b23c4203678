"""Noise.

The gradient of a mini-batch is off by chance. Near the minimum, where the true gradient vanishes, only the chance is
left: the weights jitter, the wider the larger the rate. So the rate is lowered as training goes on. The jitter also
shakes the weights out of narrow valleys; a large batch has less of it and stays in sharper ones.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from fastopt import SGD, schedules
from fastopt.hyperparameters import Schedule
from fastopt.lessons.drawing import BLUE, line_styles
from fastopt.lessons.lesson import Array, Lesson, at_least, near
from fastopt.lessons.networks import random_batches, train
from fastopt.training.data import Batch
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


NETWORK_ROWS, NETWORK_LR, NETWORK_STEPS = 256, 0.02, 3000
BATCHES = (4, 32, NETWORK_ROWS)


def network_rows(seed: int) -> Batch:
    """Return a smooth function of eight features with noise."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((NETWORK_ROWS, 8))
    y = np.sin(1.5 * x[:, 0]) + x[:, 1] * x[:, 2]
    return Batch(x, (y - y.mean()) / y.std() + 0.3 * random.standard_normal(NETWORK_ROWS))


def sharpness(model: MLP, rows: Batch, iterations: int = 40) -> float:
    """Return the largest eigenvalue of the Hessian: power iteration, H v from differences of gradients along v."""
    home = {name: values.copy() for name, values in model.parameters.items()}
    random = np.random.default_rng(0)
    direction = {name: random.standard_normal(values.shape) for name, values in home.items()}

    def gradient(distance: float) -> dict[str, Array]:
        for name, values in model.parameters.items():
            values[...] = home[name] + distance * direction[name]
        model.forward_backward(rows)
        return {name: values.copy() for name, values in model.gradients.items()}

    eigenvalue = 0.0
    for _ in range(iterations):
        length = np.sqrt(sum(np.vdot(values, values) for values in direction.values()))
        direction = {name: values / length for name, values in direction.items()}
        ahead, behind = gradient(1e-4), gradient(-1e-4)
        bent = {name: (ahead[name] - behind[name]) / 2e-4 for name in home}
        eigenvalue = float(sum(np.vdot(bent[name], direction[name]) for name in home))
        direction = bent
    return eigenvalue


@cache
def sharpness_by_batch() -> Array:
    """Return the sharpness at the end of training, shape (seeds, batch sizes)."""
    found = []
    for seed in range(3):
        rows = network_rows(seed)
        for size in BATCHES:
            model = MLP([8, 24, 24, 1], SquaredError(), batch_size=NETWORK_ROWS, dtype="float64", seed=seed)
            train(model, SGD(model.parameters, lr=NETWORK_LR), random_batches(rows, size, NETWORK_STEPS, seed))
            found.append(sharpness(model, rows))
    return np.array(found).reshape(-1, len(BATCHES))


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
    means = sharpness_by_batch().mean(axis=0)
    return float(means[-1] / means[0])


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
    for seed, values in enumerate(sharpness_by_batch()):
        sharp.semilogx(BATCHES, values, "osD"[seed], color=BLUE, label=f"seed {seed}")
    sharp.set(
        xlabel="rows in a batch", ylabel="largest Hessian eigenvalue", title="sharpness at the end", ylim=(0, None)
    )
