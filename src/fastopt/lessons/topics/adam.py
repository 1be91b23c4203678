"""Adam.

Adam steers by a moving average of the gradient, as momentum does, and divides it by a moving root mean square, as
RMSprop does. Both averages start at zero and are too small at first; a correction makes the first step as long as all
others. Since numerator and denominator grow alike with the loss, its scale does not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from fastopt import SGD, Adam, Optimizer, schedules
from fastopt.lessons.drawing import BLUE, PINK, draw_contours, line_styles
from fastopt.lessons.lesson import Array, Lesson, at_least, at_most, between, near
from fastopt.lessons.networks import random_batches, train
from fastopt.surfaces import Quadratic, Surface, bowl, ravine, rosenbrock
from fastopt.training.batches import Batch
from fastopt.training.losses import SquaredError
from fastopt.training.mlp import MLP

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LESSON = Lesson(
    __name__,
    number=7,
    formula="""
        m ← beta1 · m + (1 - beta1) · g,    v ← beta2 · v + (1 - beta2) · g²
        w ← w - lr · m/(1 - beta1ᵗ) / (√(v/(1 - beta2ᵗ)) + eps)
    """,
)

LR, BETA1, BETA2 = 1e-3, 0.9, 0.999
SCALES = tuple(10.0**power for power in range(-4, 5))


def uncorrected(step: int) -> float:
    """Return the rate that takes back Adam's correction: a schedule is any function of the steps taken so far."""
    t = step + 1
    return float(LR * (1 - BETA1**t) / np.sqrt(1 - BETA2**t))


def first_steps(lr: Any) -> Array:
    """Return the length of the first step, divided by the rate, for gradients of very different scales."""
    w = np.zeros(len(SCALES))
    Adam(w, lr=lr, betas=(BETA1, BETA2)).step(np.array(SCALES))
    return np.abs(w) / LR


@LESSON.claim(
    "Adam's first step has the length lr whatever the scale of the gradient",
    setting="gradients from 0.0001 to 10000, default betas",
    quantity="shortest and longest first step / lr",
    expected=(near(1.0, 1e-3), near(1.0, 1e-3)),
)
def first_step() -> list[float]:
    """The corrected averages are g and g², so that the step is lr · g/|g|."""
    return [float(first_steps(LR).min()), float(first_steps(LR).max())]


@LESSON.claim(
    "Without bias correction the first step has not the length lr",
    setting="the same, with a schedule that takes the correction back",
    quantity="first step / lr",
    expected=near((1 - BETA1) / np.sqrt(1 - BETA2), 1e-3),
)
def without_correction() -> float:
    """A tenth of g divided by the root of a thousandth of g² is 3.16."""
    return float(first_steps(uncorrected).max())


@cache
def path(factor: float, optimizer: Callable[..., Optimizer], lr: float) -> Array:
    """Return the path down Rosenbrock's valley with the loss multiplied by a factor."""
    surface = rosenbrock()
    w = surface.starts[0].copy()
    descent = optimizer(w, lr=lr)
    points = [w.copy()]
    for _ in range(500):
        descent.step(factor * surface.gradient(w))
        points.append(w.copy())
    return np.array(points)


def apart(optimizer: Callable[..., Optimizer], lr: float) -> float:
    """Return how far the paths for the loss and for a tenth of it get from each other."""
    return float(np.max(np.abs(path(1.0, optimizer, lr) - path(0.1, optimizer, lr))))


@LESSON.claim(
    "Multiplying the loss by a constant leaves Adam's path as it is; that of SGD changes",
    setting="Rosenbrock's valley, 500 steps, the loss and a tenth of it: Adam lr 0.02, SGD lr 0.0005",
    quantity="largest distance between the paths: Adam, SGD",
    expected=(at_most(1e-4), at_least(0.1)),
)
def scale_free() -> list[float]:
    """Both averages scale alike. Only epsilon, 1e-8, does not."""
    return [apart(Adam, 0.02), apart(SGD, 5e-4)]


@cache
def scaled(surface: Surface) -> Surface:
    """Return a quadratic as it is in the coordinates w / √rate, rate being what Adam divides by, over random points.

    A step of plain descent in these coordinates is a step of Adam in the old ones, without its momentum.
    """
    random = np.random.default_rng(0)
    w = np.zeros(surface.n)
    descent = Adam(w, lr=0.0, betas=(0.0, BETA2))
    for _ in range(5000):
        descent.step(surface.gradient(random.standard_normal(surface.n)))
    root = np.sqrt(np.sqrt(descent.state[0]["exp_avg_sq"]))  # v has forgotten its start after 5000 steps
    hessian = surface.hessian(w) / np.outer(root, root)
    return Quadratic(
        name=surface.name,
        formula=surface.formula,
        source=surface.source,
        matrix=hessian / np.linalg.eigvalsh(hessian)[-1],
        center=np.zeros(surface.n),
        domain=surface.domain,
        starts=surface.starts,
        minima=np.zeros((1, surface.n)),
    )


def condition(surface: Surface) -> float:
    """Return the largest curvature over the smallest."""
    curvatures = np.linalg.eigvalsh(surface.hessian(surface.minima[0]))
    return float(curvatures[-1] / curvatures[0])


@LESSON.claim(
    "Adam makes a long bowl round, unless it lies askew",
    setting="condition 100, v collected at 5000 random points: along the axes, and turned by 30°",
    quantity="condition number after dividing by √v: along the axes, turned",
    expected=(at_most(1.5), at_least(50.0)),
    digits=2,
)
def makes_round() -> list[float]:
    """Along the axes √v is proportional to the curvature. Turned, both coordinates see the steep direction, √v is much
    the same for both, and nothing is gained.
    """
    return [condition(scaled(bowl(100.0))), condition(scaled(ravine(100.0)))]


ROWS, STEPS, SEEDS = 1024, 300, 6
RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
METHODS: dict[str, tuple[Callable[..., Optimizer], dict[str, Any]]] = {
    "neither": (SGD, {}),
    "momentum alone": (SGD, {"momentum": 0.9, "velocity": "mean"}),
    "scaling alone": (Adam, {"betas": (0.0, 0.999)}),
    "both": (Adam, {}),
    "both betas 0.95": (Adam, {"betas": (0.95, 0.95)}),
}


def job(seed: int) -> Batch:
    """Return rows whose eight features have units that differ by factors of up to 100."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((ROWS, 8))
    y = np.sin(1.5 * x[:, 0]) + x[:, 1] * x[:, 2] + x[:, 3]
    return Batch(x * random.permutation(np.geomspace(0.1, 10, 8)), (y - y.mean()) / y.std())


def final_loss(method: str, lr: float, seed: int) -> float:
    """Return the loss over all rows after training a network."""
    optimizer, options = METHODS[method]
    rows = job(seed)
    model = MLP([8, 32, 32, 1], SquaredError(), batch_size=ROWS, dtype="float64", seed=seed)
    with np.errstate(over="ignore", invalid="ignore"):  # of rates that diverge
        descent = optimizer(model.parameters, lr=schedules.cosine(lr, STEPS), **options)
        train(model, descent, random_batches(rows, 32, STEPS, seed))
        return model.evaluate(rows)["loss"]


@cache
def losses(method: str) -> Array:
    """Return the final losses by learning rate, mean over the seeds; NaN where one diverged."""
    return np.array([np.mean([final_loss(method, lr, seed) for seed in range(SEEDS)]) for lr in RATES])


def best(method: str) -> float:
    """Return the final loss with the best rate."""
    return float(np.nanmin(losses(method)))


@LESSON.claim(
    "Momentum alone helps, and scaling alone helps",
    setting="network 8-32-32-1, inputs of different units, 300 batches of 32, cosine, best of 7 rates, mean of 6 seeds",
    quantity="final loss with neither / with momentum, with neither / with scaling",
    expected=(at_least(1.1), at_least(1.1)),
    digits=2,
)
def each_component() -> list[float]:
    """Momentum smooths the noise of the batches, scaling repairs the units of the inputs."""
    return [best("neither") / best("momentum alone"), best("neither") / best("scaling alone")]


@LESSON.claim(
    "Momentum and scaling together are better than each alone",
    setting="the same",
    quantity="final loss with momentum / with both, with scaling / with both",
    expected=(at_least(1.1), at_least(1.1)),
    digits=2,
)
def both_components() -> list[float]:
    """Once the units are repaired, momentum has nothing left to do in a run this short; without it a higher
    rate can be borne.
    """
    return [best("momentum alone") / best("both"), best("scaling alone") / best("both")]


@LESSON.claim(
    "beta1 = beta2 = 0.95 does as well as the defaults 0.9 and 0.999",
    setting="the same",
    quantity="final loss with equal betas / with the defaults",
    expected=between(0.8, 1.25),
    digits=2,
)
def equal_betas() -> float:
    """For language models it was found to be close to the best choice (Orvieto & Gower 2025)."""
    return best("both betas 0.95") / best("both")


@LESSON.draw(panels=5)
def figure(before: Axes, after: Axes, first: Axes, paths: Axes, parts: Axes) -> None:
    """What Adam does to a landscape: a bowl of condition 100 as it is, and in coordinates divided as Adam divides. The
    first step by scale of the gradient, with and without the correction; x on the way down Rosenbrock's valley for the
    loss and a tenth of it; the final loss of a network by learning rate.
    """
    for axes, surface, title in (
        (before, bowl(100.0), "bowl, condition 100"),
        (after, scaled(bowl(100.0)), "the same, scaled by Adam"),
    ):
        draw_contours(axes, surface)
        axes.set(title=title)
    first.loglog(SCALES, first_steps(LR), "o-", label="Adam")
    first.loglog(SCALES, first_steps(uncorrected), "s--", label="without correction")
    first.set(xlabel="gradient", ylabel="first step / lr", title="first step", ylim=(0.5, 10))
    for optimizer, lr, color in ((Adam, 0.02, PINK), (SGD, 5e-4, BLUE)):
        name = optimizer.__name__
        paths.plot(path(1.0, optimizer, lr)[:, 0], color=color, alpha=0.4, linewidth=6, label=name)
        paths.plot(path(0.1, optimizer, lr)[:, 0], "--", color=color, label=f"{name}, a tenth of the loss")
    paths.set(xlabel="step", ylabel="x", title="Rosenbrock's valley")
    for style, method in zip(line_styles(), METHODS, strict=False):
        parts.loglog(RATES, losses(method), marker="o", linestyle=style, label=method)
    parts.set(xlabel="learning rate", ylabel=f"final loss, mean of {SEEDS} seeds", title=f"network, {STEPS} steps")
