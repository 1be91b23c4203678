"""The optimizers for NumPy, each made from its description in `fastopt.methods`.

Names, order and defaults of the arguments are those of `torch.optim`; what torch has not is keyword-only. Wherever a
formula says g, it is the gradient after `maximize` (its sign), clipping and L2 weight decay. Each step first multiplies
the parameters by `1 - lr*weight_decay` where `decoupled_weight_decay` is set, and otherwise adds `weight_decay*p`
to the gradient.
"""

from __future__ import annotations

from fastopt import _core, methods
from fastopt.methods.base import Method
from fastopt.optimizer import Optimizer, made_from


def registry() -> dict[str, type[Optimizer]]:
    """Return the optimizers by name, in the order of their kernels."""
    return dict(_classes)


def _kernel(method: type[Method]) -> int:
    return _core.RULES[method.rule(method.defaults())[0]][0]


_classes = {method.__name__: made_from(method) for method in sorted(methods.registry().values(), key=_kernel)}
globals().update(_classes)
__all__ = (*_classes,)
