"""Depth.

In a deep network the gradient comes to the first layer through all the others, and each of them multiplies it. With
sigmoids, whose slope is at most 1/4, hardly anything is left of it: it vanishes, and the early layers learn nothing.
What helped were units that let it through, first weights of the right size, ways around the layers, and optimizers that
do not mind how long a gradient is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from fastopt import SGD, Adam, Optimizer
from fastopt.lessons.drawing import line_styles
from fastopt.lessons.lesson import Array, Lesson, at_least, at_most

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LESSON = Lesson(
    __name__,
    number=10,
    formula="""
        aₗ = φ(Wₗ aₗ₋₁),   with a way around:  aₗ = aₗ₋₁ + φ(Wₗ aₗ₋₁)
        ∂loss/∂aₗ₋₁ = Wₗᵀ (φ'(Wₗ aₗ₋₁) · ∂loss/∂aₗ)  (+ ∂loss/∂aₗ)
    """,
)

LAYERS, WIDTH, ROWS, STEPS = 10, 32, 128, 300


@dataclass(frozen=True)
class Unit:
    """What the units of a layer compute, its slope by its value, and the variance of first weights times the width."""

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    variance: float
    way_around: bool = False


def sigmoid(x: Array) -> Array:
    """Return 1/(1 + e^-x), without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))


UNITS = {
    "sigmoid": Unit(sigmoid, lambda a: a * (1 - a), 1.0),
    "relu": Unit(lambda x: np.maximum(x, 0.0), lambda a: (a > 0).astype(float), 2.0),
    "sigmoid, ways around": Unit(sigmoid, lambda a: a * (1 - a), 1.0, way_around=True),
}


def first_weights(unit: Unit, seed: int) -> dict[str, Array]:
    """Return the weights of all layers and of the output."""
    random = np.random.default_rng(seed)
    scale = np.sqrt(unit.variance / WIDTH)
    layers = {f"layers.{layer}": scale * random.standard_normal((WIDTH, WIDTH)) for layer in range(LAYERS)}
    return {**layers, "output": random.standard_normal(WIDTH) / np.sqrt(WIDTH)}


@cache
def rows() -> tuple[Array, Array]:
    """Return a smooth function of the first of 32 features, of variance 1."""
    x = np.random.default_rng(0).standard_normal((ROWS, WIDTH))
    y = np.sin(1.5 * x[:, 0]) + x[:, 1] * x[:, 2]
    return x, (y - y.mean()) / y.std()


def loss_and_gradient(unit: Unit, weights: dict[str, Array]) -> tuple[float, dict[str, Array]]:
    """Return the mean squared error and its gradient."""
    x, y = rows()
    inputs, values = [x], []
    for layer in range(LAYERS):
        values.append(unit.value(inputs[-1] @ weights[f"layers.{layer}"].T))
        inputs.append(inputs[-1] + values[-1] if unit.way_around else values[-1])
    error = inputs[-1] @ weights["output"] - y
    gradient = {"output": 2 * error @ inputs[-1] / ROWS}
    behind = np.outer(2 * error / ROWS, weights["output"])
    for layer in reversed(range(LAYERS)):
        inner = behind * unit.slope(values[layer])
        gradient[f"layers.{layer}"] = inner.T @ inputs[layer]
        behind = inner @ weights[f"layers.{layer}"] + (behind if unit.way_around else 0.0)
    return float(np.mean(error**2)), gradient


@cache
def lengths(name: str) -> Array:
    """Return the length of the gradient of each layer at the start, median of 9 networks."""
    found = []
    for seed in range(9):
        _, gradient = loss_and_gradient(UNITS[name], first_weights(UNITS[name], seed))
        found.append([np.linalg.norm(gradient[f"layers.{layer}"]) for layer in range(LAYERS)])
    return np.asarray(np.median(found, axis=0))


def first_over_last(name: str) -> float:
    """Return how long the gradient of the first layer is, divided by that of the last."""
    return float(lengths(name)[0] / lengths(name)[-1])


@LESSON.claim(
    "With sigmoids the gradient vanishes on its way to the first layer",
    setting="10 layers of 32 sigmoids, first weights of variance 1/32, median of 9 networks",
    quantity="length of the gradient of the first layer / of the last",
    expected=at_most(1e-4),
    digits=1,
)
def vanishes() -> float:
    """A sigmoid's slope is at most 1/4, and nine layers make (1/4)⁹, which is 4e-6."""
    return first_over_last("sigmoid")


@LESSON.claim(
    "Units without a ceiling, or ways around the layers, let it through",
    setting="the same with relu and first weights of variance 2/32; with sigmoids and ways around the layers",
    quantity="length of the gradient of the first layer / of the last: relu, ways around",
    expected=(at_least(0.03), at_least(0.03)),
    digits=1,
)
def lets_through() -> list[float]:
    """A relu has the slope 1 where it lets a value through (He et al. 2015); around a layer the gradient goes
    unchanged (He et al. 2016).
    """
    return [first_over_last("relu"), first_over_last("sigmoid, ways around")]


@dataclass(frozen=True)
class Outcome:
    """Losses by step, and by what share of their length the weights of the first layer have changed."""

    losses: Array
    moved: float


TRAININGS: dict[str, tuple[str, type[Optimizer], dict[str, float]]] = {
    "sigmoid, SGD": ("sigmoid", SGD, {"lr": 0.1, "momentum": 0.9, "clip_norm": 1.0}),
    "relu, SGD": ("relu", SGD, {"lr": 0.03, "momentum": 0.9, "clip_norm": 1.0}),
    "sigmoid, ways around, SGD": ("sigmoid, ways around", SGD, {"lr": 0.01, "momentum": 0.9, "clip_norm": 1.0}),
    "sigmoid, Adam": ("sigmoid", Adam, {"lr": 0.001}),
}


@cache
def outcome(training: str) -> Outcome:
    """Train a network on all rows."""
    name, optimizer, options = TRAININGS[training]
    weights = first_weights(UNITS[name], seed=0)
    before = weights["layers.0"].copy()
    descent = optimizer(weights, **options)
    losses = np.empty(STEPS)
    for step in range(STEPS):
        losses[step], gradient = loss_and_gradient(UNITS[name], weights)
        descent.step(gradient)
    return Outcome(losses, float(np.linalg.norm(weights["layers.0"] - before) / np.linalg.norm(before)))


@LESSON.claim(
    "So the early layers stand still, and with them the loss",
    setting="the sigmoids, SGD with momentum, lr 0.1, 300 steps on 128 rows whose targets have variance 1",
    quantity="change of the first layer's weights / their length; last loss",
    expected=(at_most(1e-3), at_least(0.95)),
    digits=2,
)
def stands_still() -> list[float]:
    """What comes out of layers that learn nothing is much the same for all rows: the output can only learn the mean."""
    result = outcome("sigmoid, SGD")
    return [result.moved, float(result.losses[-1])]


@LESSON.claim(
    "Each of three things helps: relu, ways around the layers, Adam",
    setting="the same rows, 300 steps: relu, lr 0.03; ways around, lr 0.01; sigmoids with Adam, lr 0.001",
    quantity="loss of each in the last 50 steps",
    expected=(at_most(0.1), at_most(0.9), at_most(0.9)),
    digits=1,
    varies=True,
)
def helps() -> list[float]:
    """Adam divides the gradient by its size, so that it does not matter that it has nearly vanished: the early layers
    move like the others. Of the three, relu helps most here.
    """
    return [float(outcome(training).losses[-50:].mean()) for training in list(TRAININGS)[1:]]


@LESSON.draw(panels=2)
def figure(gradients: Axes, training: Axes) -> None:
    """Left: the length of each layer's gradient at the start, median of nine networks. Right: the loss over 300 steps
    of training.
    """
    for style, name in zip(line_styles(), UNITS, strict=False):
        gradients.semilogy(range(1, LAYERS + 1), lengths(name), marker="o", linestyle=style, label=name)
    gradients.set(xlabel="layer", ylabel="length of the gradient", title="ten layers, at the start")
    for style, name in zip(line_styles(), TRAININGS, strict=False):
        training.semilogy(np.arange(1, STEPS + 1), outcome(name).losses, linestyle=style, label=name)
    training.set(xlabel="step", ylabel="loss", title="training")
