"""Gradient descent.

The gradient says which way is up and how steep it is. A step goes the other way, by the gradient times the learning
rate. On a bowl of curvature L a step multiplies the distance to the minimum by 1 - lr L: a rate that is too small
crawls, one above 2/L overshoots by more than it had to go.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from fastopt import SGD
from fastopt.lessons.drawing import line_styles
from fastopt.lessons.lesson import Lesson, at_least, at_most, between, exactly, near
from fastopt.surfaces import parabola, random_quadratic
from fastopt.trajectories import Trajectory, trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LESSON = Lesson(
    __name__,
    number=1,
    formula="""
        w ← w - lr · g,   g = ∇f(w)
        converges on a convex bowl for lr < 2/L,   L = largest curvature
    """,
)

BOWL = random_quadratic(n=10, condition=100.0, seed=1)
CURVATURE = float(np.linalg.eigvalsh(BOWL.hessian(BOWL.starts[0]))[-1])


@LESSON.claim(
    "A step goes against the gradient, by the gradient times the rate",
    setting="w = 5, g = 2, lr 0.1",
    quantity="w after the step",
    expected=exactly(4.8),
)
def one_step() -> float:
    """5 - 0.1 · 2 = 4.8."""
    w = np.array([5.0])
    SGD(w, lr=0.1).step(np.array([2.0]))
    return float(w[0])


@cache
def descent(lr: float, steps: int) -> Trajectory:
    """Run gradient descent on x² from 5."""
    return trajectory(parabola(), SGD, start=[5.0], steps=steps, lr=lr)


@LESSON.claim(
    "A rate that is too large overshoots the minimum",
    setting="x² from 5, lr 1.1",
    quantity="x after 1 and 2 steps",
    expected=(near(-6.0, 1e-12), near(7.2, 1e-12)),
)
def overshoots() -> list[float]:
    """The gradient is 2x, so a step multiplies x by 1 - 2.2 = -1.2."""
    return list(descent(1.1, 30).points[1:3, 0])


@LESSON.claim(
    "A rate above 2/L diverges",
    setting="x² from 5, lr 1.1",
    quantity="|x| after 30 steps",
    expected=near(5 * 1.2**30, 1e-9),
    digits=4,
)
def diverges() -> float:
    """Every step makes |x| 1.2 times as large."""
    return float(abs(descent(1.1, 30).points[-1, 0]))


@LESSON.claim(
    "A rate that is too small hardly moves",
    setting="x² from 5, lr 0.001",
    quantity="x after 1 and 1000 steps",
    expected=(near(4.99, 1e-12), between(0.66, 0.68)),
)
def crawls() -> list[float]:
    """A step multiplies x by 0.998, and 5 · 0.998¹⁰⁰⁰ = 0.675."""
    return list(descent(0.001, 1000).points[[1, 1000], 0])


@LESSON.claim(
    "A rate that fits gets there",
    setting="x² from 5, lr 0.1",
    quantity="x after 1, 2 and 50 steps",
    expected=(near(4.0, 1e-12), near(3.2, 1e-12), between(0.0, 1e-3)),
)
def arrives() -> list[float]:
    """A step multiplies x by 0.8, and 5 · 0.8⁵⁰ = 0.00007."""
    return list(descent(0.1, 50).points[[1, 2, 50], 0])


@LESSON.claim(
    "On a convex bowl every start ends in the one minimum",
    setting="quadratic in 10 dimensions, condition 100, 1000 random starts, lr 1/L, 3000 steps",
    quantity="largest distance of an end from the minimum",
    expected=at_most(1e-9),
)
def one_minimum() -> float:
    """In the flattest direction a step leaves 99 % of the distance, and 0.99³⁰⁰⁰ is 1e-13."""
    w = np.random.default_rng(0).uniform(-10, 10, size=(1000, BOWL.n))
    descent = SGD(w, lr=1 / CURVATURE)
    for _ in range(3000):
        descent.step(BOWL.gradient(w))
    return float(np.max(np.linalg.norm(w - BOWL.minima[0], axis=1)))


@cache
def growth(lr: float) -> float:
    """Return how many times longer the gradient gets in a late step: above 1 the run diverges."""
    w = BOWL.starts[0].copy()
    descent = SGD(w, lr=lr)
    for _ in range(400):
        gradient = BOWL.gradient(w)
        descent.step(gradient)
    return float(np.linalg.norm(BOWL.gradient(w)) / np.linalg.norm(gradient))


@LESSON.claim(
    "Divergence begins at a rate of 2/L",
    setting="the same bowl, the largest rate that converges found by bisection",
    quantity="that rate divided by 2/L",
    expected=near(1.0, 1e-3),
    digits=6,
)
def threshold() -> float:
    """The steepest direction is multiplied by 1 - lr L, which is -1 for lr = 2/L."""
    low, high = 1 / CURVATURE, 3 / CURVATURE
    while high - low > 1e-5 / CURVATURE:
        middle = (low + high) / 2
        low, high = (middle, high) if growth(middle) < 1 else (low, middle)
    return low / (2 / CURVATURE)


@LESSON.claim(
    "A tenfold change of the rate decides: a tenth of a good rate hardly gets there, ten times as much diverges",
    setting="the same bowl, 1.9/L, a tenth of it, and ten times it, 300 steps",
    quantity="last loss with a tenth / with 1.9/L; steps until ten times the rate is out of sight",
    expected=(at_least(100.0), at_most(20)),
)
def tenfold() -> list[float]:
    """In the flattest direction a step of 1.9/L leaves 98.1 % of the distance, a tenth of it 99.81 %. In the steepest,
    ten times as much makes it 18 times as long.
    """
    slow, good, high = (
        trajectory(BOWL, SGD, BOWL.starts[0], 300, lr=factor * 1.9 / CURVATURE) for factor in (0.1, 1, 10)
    )
    return [float(slow.loss[-1] / good.loss[-1]), high.steps if high.diverged else np.inf]


@LESSON.draw(panels=2)
def figure(path: Axes, bowl: Axes) -> None:
    """Left: x over the steps on x², for three rates. Right: what one late step does to the gradient, on the bowl in 10
    dimensions, by learning rate: from 2/L on it grows.
    """
    for style, lr in zip(line_styles(), (0.001, 0.1, 1.1), strict=False):
        path.plot(descent(lr, 30).points[:11, 0], linestyle=style, label=f"lr {lr:g}")
    path.set(xlabel="step", ylabel="x", title="x² from 5")

    rates = np.linspace(0.1, 1.3, 25)
    bowl.plot(rates, [growth(rate * 2 / CURVATURE) for rate in rates], marker=".", label="late in a run")
    bowl.axhline(1, color="gray", linestyle=":", label="stays as long")
    bowl.set(xlabel="learning rate / (2/L)", ylabel="growth of the gradient per step", title="bowl, condition 100")
