"""Momentum.

A velocity remembers past gradients: each step keeps a share beta of it and adds the new gradient. Where gradients agree
it grows to 1/(1 - beta) times one of them; where they alternate, as they do across a ravine, they cancel. With the best
rate and beta the steps needed grow as the square root of the condition number instead of as the condition number.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt import SGD
from fastopt.lessons.drawing import GREEN, ORANGE, draw_contours
from fastopt.lessons.lesson import Array, Lesson, at_least, at_most, exactly, near
from fastopt.surfaces import bowl, ravine, rosenbrock
from fastopt.trajectories import Trajectory, trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LESSON = Lesson(
    __name__,
    number=4,
    formula="""
        v ← beta · v + g,   w ← w - lr · v                heavy ball (Polyak 1964)
        v ← beta · v + g,   w ← w - lr · (beta · v + g)   Nesterov
    """,
)


@cache
def velocity() -> Array:
    """Return the velocity over 100 steps of a constant gradient of 1, beta 0.9."""
    w = np.zeros(1)
    ball = SGD(w, lr=0.01, momentum=0.9)
    found = []
    for _ in range(100):
        ball.step(np.ones(1))
        found.append(float(ball.state[0]["momentum_buffer"][0]))
    return np.array(found)


@LESSON.claim(
    "The velocity of a constant gradient goes to 1/(1 - beta) times it",
    setting="g = 1, beta 0.9, 100 steps",
    quantity="velocity",
    expected=near(10.0, 1e-3),
    digits=4,
)
def final_velocity() -> float:
    """1 + 0.9 + 0.81 + ... = 10, of which 0.9¹⁰⁰ = 0.003 % is missing after 100 steps."""
    return float(velocity()[-1])


MEASURED = 20_000


@LESSON.claim(
    "Averaging keeps the signal and drops the noise",
    setting="gradients of 1 with noise of standard deviation 1, beta 0.9, velocity the mean, 20000 weights, step 100",
    quantity="mean of the velocities, their variance",
    expected=(near(1.0, 0.01), near(0.1 / 1.9, 0.05)),
)
def averaging() -> list[float]:
    """The mean of a mean is the mean. Of the variance (1 - beta)/(1 + beta) is left, a nineteenth, as if about 19
    gradients were averaged.
    """
    random = np.random.default_rng(0)
    w = np.zeros(MEASURED)
    ball = SGD(w, lr=0.01, momentum=0.9, velocity="mean")
    for _ in range(100):
        ball.step(1 + random.standard_normal(MEASURED))
    velocities = ball.state[0]["momentum_buffer"]
    return [float(velocities.mean()), float(velocities.var())]


BUMP = 0.3


def over_bumps(**options: Any) -> float:
    """Return the share of 200 balls from 3 to 6 away that end in the lowest dip of a bowl full of bumps."""
    x = np.linspace(3, 6, 200)
    descent = SGD(x, lr=0.01, **options)
    for _ in range(2000):
        descent.step(x + 2 * np.pi * BUMP * np.sin(2 * np.pi * x))
    return float(np.mean(np.abs(x) < 0.5))


@LESSON.claim(
    "A ball rolls through small bumps that stop a walker",
    setting="x²/2 + 0.3 (1 - cos 2πx), 200 starts from 3 to 6, lr 0.01, 2000 steps",
    quantity="share that ends in the lowest dip: without momentum, with beta 0.9",
    expected=(exactly(0.0), at_least(0.5)),
    digits=2,
)
def bumps() -> list[float]:
    """Below 1.9 the bumps are steeper than the bowl, and a walker stops in the first. The velocity carries the ball
    over some of them, not over all: a third of the balls stop one dip too early.
    """
    return [over_bumps(), over_bumps(momentum=0.9)]


CONDITION = 100.0


def best_plain(condition: float) -> dict[str, Any]:
    """Return the fastest rate of gradient descent for curvatures from 1 to `condition`."""
    return {"lr": 2 / (condition + 1)}


def best_heavy_ball(condition: float) -> dict[str, Any]:
    """Return the fastest rate and momentum of the heavy ball (Polyak 1964)."""
    root = np.sqrt(condition)
    return {"lr": 4 / (root + 1) ** 2, "momentum": ((root - 1) / (root + 1)) ** 2}


def usual_nesterov(condition: float) -> dict[str, Any]:
    """Return the rate and momentum for which Nesterov proved his bound."""
    root = np.sqrt(condition)
    return {"lr": 1 / condition, "momentum": (root - 1) / (root + 1), "nesterov": True}


@cache
def in_ravine() -> dict[str, Trajectory]:
    """Run down the ravine with and without momentum: at one rate, and each with its fastest settings."""
    surface = ravine(CONDITION)
    settings: dict[str, dict[str, Any]] = {
        "without momentum": {"lr": 1.9 / CONDITION},
        "with": {"lr": 1.9 / CONDITION, "momentum": 0.9, "velocity": "mean"},
        "without, fastest": best_plain(CONDITION),
        "with, fastest": best_heavy_ball(CONDITION),
    }
    return {
        label: trajectory(surface, SGD, surface.starts[0], steps=30, **options) for label, options in settings.items()
    }


def turns(label: str) -> float:
    """Return the share of steps that turn back: by more than a right angle from the step before."""
    steps = np.diff(in_ravine()[label].points, axis=0)
    return float(np.mean(np.sum(steps[1:] * steps[:-1], axis=1) < 0))


@LESSON.claim(
    "In a ravine the path zig-zags; momentum, which averages the gradients, stops that",
    setting="ravine of condition 100, lr 1.9/L for both, beta 0.9, velocity the mean of gradients, 30 steps",
    quantity="share of steps that turn back, without and with",
    expected=(at_least(0.9), at_most(0.3)),
)
def zigzag() -> list[float]:
    """Across the ravine the gradient changes its sign at every step, and in the mean it cancels."""
    return [turns("without momentum"), turns("with")]


@LESSON.claim(
    "Momentum stops the zig-zag with its fastest settings, too",
    setting="the same ravine, lr 2/(L + 1) without; lr 4/(√L + 1)² and beta 0.67 with",
    quantity="share of steps that turn back, without and with",
    expected=(at_least(0.9), at_most(0.3)),
)
def zigzag_at_full_speed() -> list[float]:
    """The fastest heavy ball has a rate nearly twice as large as gradient descent can bear. It zig-zags as much, and
    widely at first; what makes it fast is the progress along the valley.
    """
    return [turns("without, fastest"), turns("with, fastest")]


LOW = 0.01


@cache
def to_the_minimum() -> dict[str, Trajectory]:
    """Run down the ravine with and without momentum, both at a rate of 1.9/L, until the loss stays low."""
    surface = ravine(CONDITION)
    settings: dict[str, dict[str, Any]] = {"without momentum": {}, "with, beta 0.9": {"momentum": 0.9}}
    return {
        label: until_low(trajectory(surface, SGD, surface.starts[0], steps=200, lr=1.9 / CONDITION, **options))
        for label, options in settings.items()
    }


def until_low(path: Trajectory) -> Trajectory:
    """Return the beginning of a path up to the step from which on the loss stays low."""
    steps = int(np.flatnonzero(path.loss >= LOW)[-1]) + 1
    return replace(
        path,
        points=path.points[: steps + 1],
        loss=path.loss[: steps + 1],
        grad_norm=path.grad_norm[: steps + 1],
        lr=path.lr[:steps],
    )


@LESSON.claim(
    "At one rate, too, momentum gets down a ravine sooner",
    setting="the same ravine, lr 1.9/L for both, beta 0.9, velocity the sum of gradients",
    quantity="steps until the loss stays below 0.01: without, with",
    expected=(near(127, 0.03), at_most(100)),
)
def sooner() -> list[float]:
    """Without, a step leaves 98.1 % of the distance along the valley, and 1.6 · 0.981¹²⁷ is 0.14, where the loss is
    0.01. The velocity along the valley grows to ten gradients.
    """
    return [path.steps for path in to_the_minimum().values()]


CONDITIONS = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
TOLERANCE = 1e-6


def steps_to_tolerance(condition: float, options: dict[str, Any]) -> int:
    """Return the steps until a bowl's minimum is a million times closer than at the start."""
    surface = bowl(condition, n=10)
    w = np.ones(surface.n)
    target = TOLERANCE * np.linalg.norm(w)
    descent = SGD(w, **options)
    while np.linalg.norm(w) > target:
        descent.step(surface.gradient(w))
    return descent.step_count


@cache
def steps_needed() -> dict[str, Array]:
    """Return the steps to the tolerance for every condition number."""
    methods = {"without momentum": best_plain, "heavy ball": best_heavy_ball, "Nesterov": usual_nesterov}
    return {
        label: np.array([steps_to_tolerance(condition, best(condition)) for condition in CONDITIONS])
        for label, best in methods.items()
    }


@LESSON.claim(
    "Steps grow as the condition number without momentum, as its square root with",
    setting="bowl in 10 dimensions, condition 10 to 3000, best settings, to a millionth of the distance",
    quantity="slope of log(steps) over log(condition): without, heavy ball, Nesterov",
    expected=(near(1.0, 0.1), near(0.5, 0.2), near(0.5, 0.2)),
)
def growth() -> list[float]:
    """A step leaves (k - 1)/(k + 1) of the distance without, (√k - 1)/(√k + 1) with the best momentum."""
    return [float(np.polyfit(np.log(CONDITIONS), np.log(steps), 1)[0]) for steps in steps_needed().values()]


def kinked_slope(x: Array) -> Array:
    """Return the derivative of a convex function whose curvature is 1 between x = 1 and 2 and 25 elsewhere."""
    return np.where(x < 1, 25 * x, np.where(x < 2, x + 24, 25 * x - 24))


@cache
def on_kinks() -> dict[str, Array]:
    """Run the heavy ball and Nesterov, both tuned for curvatures from 1 to 25, over the function with kinks."""
    paths = {}
    for label, best in {"heavy ball": best_heavy_ball, "Nesterov": usual_nesterov}.items():
        x = np.array([3.3])
        descent = SGD(x, **best(25.0))
        points = [x.copy()]
        for _ in range(60):
            descent.step(kinked_slope(x))
            points.append(x.copy())
        paths[label] = np.concatenate(points)
    return paths


@LESSON.claim(
    "Nesterov's look-ahead converges where the heavy ball runs in circles",
    setting="convex function with curvature 25, 1 and 25 in pieces, settings for condition 25, from 3.3, 60 steps",
    quantity="|x| at the end: heavy ball, Nesterov",
    expected=(at_least(0.1), at_most(1e-6)),
    digits=1,
)
def look_ahead() -> list[float]:
    """Looking at the gradient where the velocity leads brakes in time (Lessard, Recht & Packard 2016)."""
    return [float(abs(path[-1])) for path in on_kinks().values()]


@LESSON.claim(
    "The three published forms of momentum give the same path after rescaling the rate",
    setting="Rosenbrock's valley, beta 0.9, 500 steps: sum lr 2e-4, mean lr 2e-3, step lr 2e-4",
    quantity="largest distance between the paths",
    expected=at_most(1e-9),
    digits=1,
)
def three_forms() -> float:
    """The velocity is the sum of gradients, their mean (a tenth of it), or the step itself (lr times it). When the rate
    changes on the way, the last goes on with the old one for a while, and is on another path.
    """
    surface = rosenbrock()
    paths = [
        trajectory(surface, SGD, surface.starts[0], 500, lr=lr, momentum=0.9, velocity=form).points
        for form, lr in {"sum": 2e-4, "mean": 2e-3, "step": 2e-4}.items()
    ]
    return max(float(np.max(np.abs(path - paths[0]))) for path in paths[1:])


@LESSON.draw(panels=4)
def figure(speed: Axes, valley: Axes, growth: Axes, kinks: Axes) -> None:
    """The velocity of a constant gradient; both paths down a ravine, until the loss stays below 0.01; the steps needed
    by condition number; the convex function with kinks on which the heavy ball circles.
    """
    speed.plot(np.arange(1, 101), velocity(), label="velocity")
    speed.axhline(10, color="gray", linestyle="--", label="1/(1 - beta)")
    speed.set(xlabel="step", ylabel="velocity / gradient", title="constant gradient, beta 0.9", xlim=(0, 60))

    draw_contours(valley, ravine(CONDITION))
    for style, (label, path) in zip(("o-", "s-"), to_the_minimum().items(), strict=True):
        valley.plot(*path.points.T, style, markersize=3, linewidth=1, label=f"{label}: {path.steps} steps")
    valley.set(title="ravine, condition 100, lr 0.019", xlim=(-1.9, 0.9), ylim=(-1.3, 0.7))

    for style, (label, steps) in zip(("o-", "s--", "D-."), steps_needed().items(), strict=True):
        growth.loglog(CONDITIONS, steps, style, label=label)
    growth.set(xlabel="condition number", ylabel="steps", title="steps to a millionth of the distance")

    for (style, color), (label, points) in zip({"--": ORANGE, "-.": GREEN}.items(), on_kinks().items(), strict=True):
        kinks.plot(points, style, color=color, label=label)
    kinks.set(xlabel="step", ylabel="x", title="convex function with kinks")
