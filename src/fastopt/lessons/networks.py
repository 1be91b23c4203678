"""What the lessons on networks share: rows to learn, random batches of them, and the training loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from fastopt import Optimizer
from fastopt.lessons.lesson import Array
from fastopt.training.data import Batch
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
