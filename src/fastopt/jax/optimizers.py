"""The optimizers for JAX, each made from its description in `fastopt.methods`."""

from __future__ import annotations

from fastopt import optimizers
from fastopt.classes import when_asked_for
from fastopt.jax.optimizer import Optimizer, made_from


def registry() -> dict[str, type[Optimizer]]:
    """Return the optimizers by name, in the order of `fastopt.optimizers.registry`."""
    return {name: globals().get(name) or __getattr__(name) for name in optimizers.described()}


__getattr__, __dir__ = when_asked_for(
    globals(), optimizers.described, lambda name: made_from(optimizers.described()[name])
)
