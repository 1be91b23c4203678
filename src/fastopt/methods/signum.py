"""Signum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastopt.methods.base import MAXIMIZE, MOMENT, Flag, Method, Quantity, learning_rate


class Signum(Method):
    """Signum: the sign of a moving average of the gradient; without momentum, of the gradient (signSGD).

    ``m = momentum*m + (1-momentum)*g``, ``p -= lr*sign(m)``

    As `SignSGD` of the package pytorch_optimizer.

    References
    ----------
    Bernstein, Wang, Azizzadenesheli & Anandkumar 2018, "signSGD: compressed optimisation for non-convex problems".
    """

    use = (
        "Distributed training where only signs are sent, and as the simplest of the sign methods; `Lion` is usually "
        "better."
    )

    counts_steps = False
    states = {"momentum_buffer": MOMENT}

    lr = learning_rate(1e-3)
    momentum = Quantity(0.9, "Decay of the moving average, in [0, 1).", high=1.0)
    weight_decay = Quantity(0.0, "At least 0.")
    decoupled_weight_decay = Flag(True, "Whether `weight_decay` shrinks the parameters, and is no part of g.")
    maximize = MAXIMIZE

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        return ("signsgd", ()) if options["momentum"] == 0 else ("signum", ("momentum_buffer",))
