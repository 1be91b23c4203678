"""The optimizers for NumPy, each made from its description in `fastopt.methods`.

Names, order and defaults of the arguments are those of `torch.optim`; what torch has not is keyword-only. Wherever a
formula says g, it is the gradient after `maximize` (its sign), clipping and L2 weight decay. Each step first multiplies
the parameters by `1 - lr*weight_decay` where `decoupled_weight_decay` is set, and otherwise adds `weight_decay*p`
to the gradient.
"""

from __future__ import annotations

from functools import cache

from fastopt import _core, methods
from fastopt.classes import when_asked_for
from fastopt.methods.base import Method
from fastopt.optimizer import Optimizer, made_from


def registry() -> dict[str, type[Optimizer]]:
    """Return the optimizers by name, in the order of their kernels."""
    return {name: globals().get(name) or __getattr__(name) for name in described()}


@cache
def described() -> dict[str, type[Method]]:
    """Return their descriptions by name, in the same order."""
    return {method.__name__: method for method in sorted(methods.registry().values(), key=_kernel)}


def _kernel(method: type[Method]) -> int:
    return _core.RULES[method.rule(method.defaults())[0]][0]


__getattr__, __dir__ = when_asked_for(globals(), described, lambda name: made_from(described()[name]))
