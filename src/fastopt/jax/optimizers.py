"""The optimizers for JAX, each made from its description in `fastopt.methods`.

All but those for sparse gradients, which JAX has none of.
"""

from __future__ import annotations

from fastopt import optimizers
from fastopt.classes import when_asked_for
from fastopt.jax.optimizer import Optimizer, made_from
from fastopt.methods.base import Method


def registry() -> dict[str, type[Optimizer]]:
    """Return the optimizers by name, in the order of `fastopt.optimizers.registry`."""
    return {name: globals().get(name) or __getattr__(name) for name in described()}


def described() -> dict[str, type[Method]]:
    """Return their descriptions by name, in the same order."""
    return {name: method for name, method in optimizers.described().items() if not method.refusal_of_dense}


__getattr__, __dir__ = when_asked_for(globals(), described, lambda name: made_from(described()[name]))
