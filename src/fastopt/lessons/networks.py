"""What the lessons on networks share: random batches of rows, the training loop, and what is measured at its end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from fastopt import Optimizer
from fastopt.lessons.lesson import Array
from fastopt.training.batches import Batch
from fastopt.training.mlp import MLP


def train(model: MLP, optimizer: Optimizer, batches: Iterable[Batch]) -> Array:
    """Take a step for every batch and return the losses before the steps."""
    losses = []
    for batch in batches:
        losses.append(model.forward_backward(batch))
        optimizer.step(model.gradients)
    return np.array(losses)


def random_batches(rows: Batch, size: int, steps: int, seed: int) -> Iterator[Batch]:
    """Draw so many batches, each of `size` random rows; all rows, in their order, where `size` is their number."""
    random = np.random.default_rng(seed)
    for _ in range(steps):
        if size == rows.samples:
            yield rows
        else:
            chosen = random.integers(rows.samples, size=size)
            yield Batch(rows.features[chosen], rows.targets[chosen])


def weight_norm(model: MLP) -> float:
    """Return the Euclidean norm of all parameters together."""
    return float(np.sqrt(sum(np.vdot(values, values) for values in model.parameters.values())))


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
