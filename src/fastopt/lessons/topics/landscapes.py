"""Landscapes.

Where the gradient vanishes the surface need not have a minimum. In many dimensions it hardly ever has: some directions
go up, some down, and the point is a saddle, which noise is enough to leave. Other obstacles are plateaus, on which the
gradient dies, and minima that are many, sharp or flat.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt import SGD, Adam, Optimizer, RMSprop, schedules
from fastopt.lessons.drawing import INK, draw_contours
from fastopt.lessons.lesson import Array, Lesson, Range, at_least, at_most, exactly, near
from fastopt.lessons.networks import random_batches, train
from fastopt.surfaces import (
    Surface,
    himmelblau,
    plateau,
    random_quadratic,
    rastrigin,
    registry,
    saddle,
    sharp_and_flat,
)
from fastopt.training.batches import Batch
from fastopt.training.losses import SquaredError
from fastopt.training.mlp import MLP
from fastopt.trajectories import trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LESSON = Lesson(
    __name__,
    number=9,
    formula="""
        saddle:   f(x, y) = x² - y²,   y ← (1 + 2 lr) · y
        minimum:  ∇f = 0 and all eigenvalues of the Hessian > 0
    """,
)

LR = 0.01


@LESSON.claim(
    "Started on the ridge, plain descent stays on a saddle",
    setting="x² - y² from (1.5, 0), lr 0.01, 2000 steps",
    quantity="|x| + |y| at the end",
    expected=Range(0.0, 1e-9),
)
def ridge() -> float:
    """On the ridge the gradient has no part that leads off it."""
    return float(np.abs(trajectory(saddle(), SGD, [1.5, 0.0], 2000, lr=LR).points[-1]).sum())


NOISES = tuple(10.0**-power for power in range(1, 9))


@cache
def escapes(noise: float) -> Array:
    """Return the steps after which each of 200 walkers from the saddle is at |y| > 1, f = -y² in y, with noise."""
    random = np.random.default_rng(0)
    y = np.zeros(200)
    steps = np.zeros(len(y), dtype=int)
    descent = SGD(y, lr=LR)
    while not steps.all():
        descent.step(-2 * y + noise * random.standard_normal(len(y)))
        steps[(np.abs(y) > 1) & (steps == 0)] = descent.step_count
    return steps


@LESSON.claim(
    "With noise descent leaves a saddle, in a time that grows as the logarithm of 1/noise",
    setting="from the saddle point, noise 1e-1 to 1e-8 in each gradient, 200 walkers",
    quantity="steps more for a tenth of the noise",
    expected=near(math.log(10) / math.log(1 + 2 * LR), 0.05),
)
def escape_time() -> float:
    """Each step multiplies y by 1 + 2 lr, so a tenth of the noise costs log(10)/log(1 + 2 lr) = 116 steps."""
    medians = [np.median(escapes(noise)) for noise in NOISES]
    return float(np.polyfit(-np.log10(NOISES), medians, 1)[0])


def random_hessians(n: int, count: int) -> Array:
    """Draw symmetric matrices with normal entries: Hessians at critical points of which nothing is known."""
    square = np.random.default_rng(n).standard_normal((count, n, n))
    return np.asarray((square + square.swapaxes(1, 2)) / 2)


@LESSON.claim(
    "At a random critical point in 1000 dimensions about 500 directions go down",
    setting="one random symmetric matrix as the Hessian",
    quantity="negative eigenvalues",
    expected=near(500, 0.02),
)
def down_directions() -> float:
    """Its eigenvalues lie symmetrically about zero."""
    return int(np.sum(np.linalg.eigvalsh(random_hessians(1000, 1)[0]) < 0))


DIMENSIONS = (1, 2, 3, 4)
EXACT_SHARES = (1 / 2, (2 - math.sqrt(2)) / 4, (math.pi - 2 * math.sqrt(2)) / (4 * math.pi))


@cache
def minima_shares() -> Array:
    """Return the share of random Hessians without a negative eigenvalue, by dimension."""
    return np.array([np.mean(np.linalg.eigvalsh(random_hessians(n, 50_000))[:, 0] > 0) for n in DIMENSIONS])


@LESSON.claim(
    "The share of critical points that are minima falls with the dimension",
    setting="50000 random symmetric matrices in each of 1, 2, 3 and 4 dimensions",
    quantity="share with all eigenvalues above 0",
    expected=(*(near(share, 0.1) for share in EXACT_SHARES), Range(0.0, 0.01)),
)
def share_of_minima() -> list[float]:
    """1/2, (2 - √2)/4 and (π - 2√2)/4π are exact; it goes on faster than exponentially (Dean & Majumdar 2006)."""
    return list(minima_shares())


CROSSERS: dict[str, tuple[Callable[..., Optimizer], dict[str, Any]]] = {
    "SGD": (SGD, {}),
    "momentum": (SGD, {"momentum": 0.9}),
    "RMSprop": (RMSprop, {}),
    "Adam": (Adam, {}),
}


DISTANCES = (5.0, 6.0, 8.0, 10.0, 13.0, 16.0)
CROSSING_RATES = tuple(2.0**power for power in range(-8, 3))


def crossing(name: str, lr: float, steps: int) -> Array:
    """Return the steps after which the loss stays below half of that of the plateau, for each distance of the start.

    It is one more than `steps` where it does not in that many.
    """
    optimizer, options = CROSSERS[name]
    surface = plateau()
    towards = surface.starts[0] / np.linalg.norm(surface.starts[0])
    w = np.outer(DISTANCES, towards)  # every rule here is elementwise: the starts do not see each other
    descent = optimizer(w, lr=lr, **options)
    needed = np.ones(len(DISTANCES), dtype=int)
    for _ in range(steps):
        descent.step(surface.gradient(w))
        needed[~(surface.value(w) < 0.5)] = descent.step_count + 1
    return needed


@cache
def crossings() -> dict[str, Array]:
    """Return the steps by distance, with the rate of which the nearest start needs the fewest."""
    found = {}
    for name in CROSSERS:
        rate = min(CROSSING_RATES, key=lambda lr: crossing(name, lr, steps=1000)[0])
        found[name] = crossing(name, rate, steps=5000)
    return found


@LESSON.claim(
    "RMSprop and Adam cross a plateau long before SGD and momentum",
    setting="plateau with a well, 5 from its middle, each with the best of 11 rates from 1/256 to 4",
    quantity="steps to the well, for good: SGD, momentum / the slower of RMSprop and Adam",
    expected=(at_least(10.0), at_least(1.5)),
)
def plateau_first() -> list[float]:
    """They go at their rate however small the gradient is. A rate that takes SGD or momentum over the plateau faster
    does not let them stay in the well.
    """
    steps = {name: float(needed[0]) for name, needed in crossings().items()}
    adaptive = max(steps["RMSprop"], steps["Adam"])
    return [steps["SGD"] / adaptive, steps["momentum"] / adaptive]


@LESSON.claim(
    "A plateau costs SGD the fourth power of its width, RMSprop and Adam only its width",
    setting="the same, from 5 to 16 away, with the same rates",
    quantity="slope of log(steps) over log(distance): SGD, RMSprop, Adam",
    expected=(near(4.0, 0.1), near(1.0, 0.1), near(1.0, 0.1)),
)
def plateau_width() -> list[float]:
    """The gradient is 2/r³ far out, and r' = -2/r³ takes r⁴/8; steps of one length take r."""
    return [
        float(np.polyfit(np.log(DISTANCES), np.log(crossings()[name]), 1)[0]) for name in ("SGD", "RMSprop", "Adam")
    ]


@cache
def ends(surface: Surface, lr: float, starts: int) -> Array:
    """Return where gradient descent ends from random starts, 1000 steps."""
    random = np.random.default_rng(0)
    lower, upper = surface.domain
    w = random.uniform(lower, upper, size=(starts, surface.n))
    descent = SGD(w, lr=lr)
    for _ in range(1000):
        descent.step(surface.gradient(w))
    return w


def distinct(points: Array) -> int:
    """Return the number of points that differ in the third decimal."""
    return len(np.unique(points.round(3) + 0.0, axis=0))


@LESSON.claim(
    "A non-convex surface has many minima to end in, a convex one has one",
    setting="gradient descent from random starts: Himmelblau 300, Rastrigin 3000, convex quadratic 300",
    quantity="different ends",
    expected=(exactly(4), exactly(121), exactly(1)),
)
def ends_by_surface() -> list[float]:
    """Himmelblau has 4 minima, Rastrigin's cube from -5.12 to 5.12 has 11 · 11."""
    return [
        distinct(ends(himmelblau(), 0.005, 300)),
        distinct(ends(rastrigin(), 0.001, 3000)),
        distinct(ends(random_quadratic(condition=10), 0.1, 300)),
    ]


PAIRS = 10_000


@cache
def convexity() -> dict[str, tuple[bool, bool]]:
    """Return of every surface whether it never lies above its chords, and whether it bends upwards everywhere."""
    found = {}
    for name, make in registry().items():
        surface = make()
        random = np.random.default_rng(0)
        a, b = surface.domain[0] + random.random((2, PAIRS, surface.n)) * np.ptp(surface.domain, axis=0)
        above = surface.value((a + b) / 2) - (surface.value(a) + surface.value(b)) / 2
        lowest = np.linalg.eigvalsh(surface.hessian(a)).min()
        found[name] = (bool(above.max() <= 1e-9), bool(lowest >= 0))
    return found


@LESSON.claim(
    "Convex is what bends upwards everywhere: there f((a + b)/2) is at most (f(a) + f(b))/2, and nowhere else",
    setting="all 15 surfaces of fastopt, 10000 pairs of random points in the domain of each",
    quantity="surfaces on which the inequality never fails, surfaces without a negative curvature, those in both",
    expected=(exactly(4), exactly(4), exactly(4)),
)
def convexity_inequality() -> list[float]:
    """The parabola and the three convex quadratics. On the others, test functions and traps, it fails for 3 to 67 % of
    the pairs.
    """
    verdicts = np.array(list(convexity().values()))
    return [*map(float, verdicts.sum(axis=0)), float(verdicts.all(axis=1).sum())]


NETWORK_STARTS = 12


@cache
def losses_at_the_ends(width: int) -> Array:
    """Return the losses at which networks of one width end, from different first weights, on the same batches."""
    random = np.random.default_rng(0)
    x = random.standard_normal((256, 8))
    y = np.sin(1.5 * x[:, 0]) + x[:, 1] * x[:, 2]
    rows = Batch(x, (y - y.mean()) / y.std())
    found = []
    for seed in range(NETWORK_STARTS):
        model = MLP([8, width, width, 1], SquaredError(), batch_size=256, dtype="float64", seed=seed)
        train(model, Adam(model.parameters, lr=schedules.cosine(0.02, 300)), random_batches(rows, 64, 300, 0))
        found.append(model.evaluate(rows)["loss"])
    return np.array(found)


@LESSON.claim(
    "In a wide network most minima are good enough, in a narrow one they are not",
    setting="networks 8-32-32-1 and 8-2-2-1 on 256 rows, Adam, 12 random starts each; the targets have variance 1",
    quantity="worst loss at the end with 32 units, median and best with 2",
    expected=(at_most(0.05), at_least(0.3), at_least(0.3)),
    digits=1,
    varies=True,
)
def good_enough() -> list[float]:
    """Where there are more weights than rows, there is a way down from nearly everywhere (Choromanska et al. 2015).
    With few weights it depends on the start.
    """
    wide, narrow = losses_at_the_ends(32), losses_at_the_ends(2)
    return [float(wide.max()), float(np.median(narrow)), float(narrow.min())]


SHARPNESS = 25.0
RATES = (0.02, 0.05, 0.07, 0.09, 0.1, 0.12, 0.15, 0.2)


@cache
def settled(lr: float) -> tuple[float, float]:
    """Return the shares of 500 starts around a sharp minimum that settle in it and in the flat one beside it."""
    surface = sharp_and_flat()
    sharp, flat = surface.minima
    w = sharp + np.random.default_rng(0).uniform(-0.3, 0.3, size=(500, 2))
    descent = SGD(w, lr=lr)
    for _ in range(1000):
        descent.step(surface.gradient(w))
    in_sharp, in_flat = (float(np.mean(np.linalg.norm(w - minimum, axis=1) < 1e-4)) for minimum in (sharp, flat))
    return in_sharp, in_flat


@LESSON.claim(
    "A rate above 2 / sharpness cannot settle in a sharp minimum",
    setting="minima of curvature 25 and 1 side by side, 500 starts around the sharp one, 1000 steps",
    quantity="share that settles in the sharp one: lr 0.07, lr 0.1",
    expected=(at_least(0.99), at_most(0.01)),
    digits=2,
)
def too_sharp() -> list[float]:
    """2/25 is 0.08."""
    return [settled(0.07)[0], settled(0.1)[0]]


@LESSON.claim(
    "A rate above 2 / sharpness ends in a flat minimum",
    setting="the same",
    quantity="share that settles in the flat one: lr 0.1, lr 0.15",
    expected=(at_least(0.99), at_least(0.99)),
    digits=1,
)
def ends_flat() -> list[float]:
    """Just above 2/25 the steps grow only until the walls, which bend less further up, throw them back, and
    so they jump about in the narrow valley for long. A rate well above leaves at once.
    """
    return [settled(0.1)[1], settled(0.15)[1]]


@cache
def tours() -> dict[Surface, dict[str, Array]]:
    """Return paths to draw over each landscape."""
    ridge, flat, hills, pair = saddle(), plateau(), himmelblau(), sharp_and_flat()
    hilltop = np.array([-0.27, -0.92])
    around = [hilltop + np.array([x, y]) for x in (-0.5, 0.5) for y in (-0.5, 0.5)]

    def tour(surface: Surface, optimizer: Callable[..., Optimizer], start: Array, steps: int, lr: float) -> Array:
        return trajectory(surface, optimizer, start, steps, lr=lr).points

    return {
        ridge: {
            "from the ridge": tour(ridge, SGD, np.array([1.5, 0.0]), 40, 0.1),
            "a hundredth beside it": tour(ridge, SGD, np.array([1.5, 0.01]), 30, 0.1),
        },
        flat: {
            "SGD, lr 0.1, 500 steps": tour(flat, SGD, flat.starts[0], 500, 0.1),
            "RMSprop, lr 0.1, 50 steps": tour(flat, RMSprop, flat.starts[0], 50, 0.1),
        },
        hills: {f"start {number}": tour(hills, SGD, start, 300, 0.005) for number, start in enumerate(around, 1)},
        pair: {f"lr {lr:g}": tour(pair, SGD, pair.starts[0], 60, lr) for lr in (0.05, 0.15)},
    }


@LESSON.draw(panels=8)
def figure(
    ridge: Axes, flat: Axes, hills: Axes, pair: Axes, leaving: Axes, share: Axes, width: Axes, valleys: Axes
) -> None:
    """The landscapes, with paths of descent: a saddle, a plateau, many minima, a sharp minimum beside a flat one. Then
    the steps until noise has left the saddle; the share of random critical points that are minima; the steps over a
    plateau by its width; where starts around a sharp minimum settle, by learning rate.
    """
    for axes, (surface, paths) in zip((ridge, flat, hills, pair), tours().items(), strict=True):
        draw_contours(axes, surface)
        for style, (label, path) in zip(("o-", "s--", "D-.", "^:"), paths.items(), strict=False):
            axes.plot(*path.T, style, markersize=3, linewidth=1.2, label=label)
            axes.plot(*path[-1], "*", color=INK, markersize=11)
        axes.set(xlim=surface.domain[:, 0], ylim=surface.domain[:, 1], title=surface.name.replace("_", " "))
    leaving.semilogx(NOISES, [np.median(escapes(noise)) for noise in NOISES], "o", label="median of 200")
    most = np.median(escapes(NOISES[-1]))
    line = most - np.log(np.array(NOISES) / NOISES[-1]) / np.log(1 + 2 * LR)
    leaving.semilogx(NOISES, line, "--", color="gray", label="116 steps for a factor of ten")
    leaving.set(xlabel="noise in a gradient", ylabel="steps to |y| > 1", title="leaving a saddle")
    share.semilogy(DIMENSIONS, minima_shares(), "o", label="measured")
    share.semilogy(DIMENSIONS[:3], EXACT_SHARES, "--", color="gray", label="exact")
    share.set_xticks(DIMENSIONS)
    share.set(xlabel="dimensions", ylabel="share of minima", title="random critical points")
    for style, (name, needed) in zip(("o-", "s--", "D-.", "^:"), crossings().items(), strict=True):
        width.loglog(DISTANCES, needed, style, label=name)
    width.set(xlabel="distance of the start from the well", ylabel="steps to the well", title="crossing a plateau")
    for style, shares, label in zip(
        ("o-", "s--"), zip(*map(settled, RATES), strict=True), ("sharp", "flat"), strict=True
    ):
        valleys.plot(RATES, shares, style, label=f"in the {label} minimum")
    valleys.axvline(2 / SHARPNESS, color="gray", linestyle=":", label="2 / sharpness")
    valleys.set(xlabel="learning rate", ylabel="share of 500 starts that settles", title="sharp and flat")
