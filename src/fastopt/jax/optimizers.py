"""The optimizers for JAX, each made from its description in `fastopt.methods`.

All but those whose rule depends on the parameter's shape or needs products of matrices, and those for sparse gradients.
"""

from __future__ import annotations

from fastopt import optimizers
from fastopt.jax.optimizer import Optimizer, made_from
from fastopt.methods.base import Method


def is_for_jax(method: type[Method]) -> bool:
    """Whether there is such an optimizer for JAX."""
    if method.between or method.refusal_of_dense:
        return False
    return method.rule_for(method.defaults(), (2, 2), str) == method.rule(method.defaults())


_classes: dict[str, type[Optimizer]] = {
    name: made_from(cls.method) for name, cls in optimizers.registry().items() if is_for_jax(cls.method)
}
globals().update(_classes)
__all__ = (*_classes,)
