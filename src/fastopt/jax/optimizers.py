"""The optimizers for JAX, each made from its description in `fastopt.methods`.

All but those for sparse gradients, which JAX has none of.
"""

from __future__ import annotations

from fastopt import optimizers
from fastopt.jax.optimizer import Optimizer, made_from

_classes: dict[str, type[Optimizer]] = {
    name: made_from(cls.method) for name, cls in optimizers.registry().items() if not cls.method.refusal_of_dense
}
globals().update(_classes)
__all__ = (*_classes,)
