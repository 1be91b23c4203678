"""LaProp."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastopt.methods.base import MAXIMIZE, MOMENT, SQUARE, Decays, Flag, Method, Quantity, epsilon, learning_rate


class LaProp(Method):
    """LaProp: Adam in another order: the gradient is scaled first, and averaged then.

    ``v = beta2*v + (1-beta2)*g**2``, ``m = beta1*m + (1-beta1)*lr * g / (sqrt(v/c2) + eps)``, ``p -= m/c1``,
    ``p *= 1 - lr*weight_decay``. c2 is an average of ones as v is one of squares, ``1 - beta2**t``; c1 is
    ``1 - beta1**t`` where lr is constant, and else a like average of the rates, divided by lr.

    As in the package timm.

    References
    ----------
    Ziyin, Wang & Ueda 2020, "LaProp: separating momentum and adaptivity in Adam".
    """

    use = (
        "Where `Adam` is unstable with a beta1 that is large beside beta2, as in adversarial and reinforcement "
        "learning."
    )

    states = {"exp_avg": MOMENT, "exp_avg_sq": SQUARE}
    numbers = {"exp_avg_lr_1": 0.0, "exp_avg_lr_2": 0.0}

    lr = learning_rate(4e-4)
    betas = Decays((0.9, 0.999), "Decay of m and of v, in [0, 1).")
    eps = epsilon(1e-15)
    weight_decay = Quantity(0.0, "At least 0.")
    maximize = MAXIMIZE
    decoupled_weight_decay = Flag(True, fixed=True)

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "laprop", ("exp_avg", "exp_avg_sq")
