"""The optimizers for JAX, each made from its description in `fastopt.methods`.

All but those whose steps keep numbers in the groups of parameters, which there are none of here, and those whose rule
depends on the parameter's shape.
"""

from __future__ import annotations

from fastopt import optimizers
from fastopt.jax.optimizer import Optimizer, made_from
from fastopt.methods.base import Method


def is_for_jax(method: type[Method]) -> bool:
    """Whether there is such an optimizer for JAX."""
    return not method.advances and method.rule_of(method.defaults(), 2) == method.rule(method.defaults())


_classes: dict[str, type[Optimizer]] = {
    name: made_from(cls.method) for name, cls in optimizers.registry().items() if is_for_jax(cls.method)
}
globals().update(_classes)
__all__ = (*_classes,)
