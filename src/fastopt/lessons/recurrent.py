"""What the lessons on recurrent networks share: one that learns to add up, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np

from fastopt import SGD, Optimizer, schedules
from fastopt.lessons.lesson import Array

UNITS, TIMES, BATCH, STEPS, SEEDS = 32, 30, 32, 300, 3
USUAL = partial(SGD, lr=schedules.cosine(0.01, STEPS), momentum=0.9)


def recurrent_weights(seed: int) -> dict[str, Array]:
    """Return the weights of h ← relu(W h + u x + b), y = v · h, with W near the identity (Le, Jaitly & Hinton 2015)."""
    random = np.random.default_rng(seed)
    return {
        "W": np.eye(UNITS) + 0.01 * random.standard_normal((UNITS, UNITS)),
        "u": 0.5 * random.standard_normal(UNITS),
        "b": np.zeros(UNITS),
        "v": random.standard_normal(UNITS) / np.sqrt(UNITS),
    }


def forward_backward(weights: dict[str, Array], x: Array, y: Array) -> tuple[float, dict[str, Array]]:
    """Return the mean squared error and its gradient, back through time."""
    states = [np.zeros((len(x), UNITS))]
    for now in x.T:
        states.append(np.maximum(states[-1] @ weights["W"].T + np.outer(now, weights["u"]) + weights["b"], 0))
    error = states[-1] @ weights["v"] - y
    by_output = 2 * error / len(x)
    gradient = {name: np.zeros_like(values) for name, values in weights.items()}
    gradient["v"] += by_output @ states[-1]
    by_state = np.outer(by_output, weights["v"])
    for now, before, after in zip(x.T[::-1], states[-2::-1], states[:0:-1], strict=True):
        by_state = by_state * (after > 0)
        gradient["W"] += by_state.T @ before
        gradient["u"] += by_state.T @ now
        gradient["b"] += by_state.sum(axis=0)
        by_state = by_state @ weights["W"]
    return float(np.mean(error**2)), gradient


@cache
def recurrent(optimizer: Callable[..., Optimizer], **options: Any) -> Array:
    """Return the losses of learning to add up 30 numbers, shape (seeds, steps); NaN after a loss that is not finite."""
    losses = np.full((SEEDS, STEPS), np.nan)
    for seed in range(SEEDS):
        random = np.random.default_rng(100 + seed)
        weights = recurrent_weights(seed)
        descent = optimizer(weights, **options)
        for step in range(STEPS):
            x = random.standard_normal((BATCH, TIMES))
            with np.errstate(over="ignore", invalid="ignore"):
                losses[seed, step], gradient = forward_backward(weights, x, x.sum(axis=1) / np.sqrt(TIMES))
            if not np.isfinite(losses[seed, step]):
                break
            descent.step(gradient)
    return losses
