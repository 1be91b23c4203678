"""Yogi."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastopt.methods.base import FIXED_DECAY, MAXIMIZE, Decays, Flag, Method, Quantity, State, epsilon, learning_rate


class Yogi(Method):
    """Yogi: Adam whose v moves to the square of the gradient at a pace, so that rates do not shoot up.

    ``m = beta1*m + (1-beta1)*g``, ``v -= (1-beta2) * sign(v - g**2) * g**2``,
    ``p -= lr * m/(1-beta1**t) / (sqrt(v/(1-beta2**t)) + eps)``, t = 1, 2, ...

    As in the package pytorch_optimizer: m starts as `initial_accumulator` too; but t is a parameter's own. (In the
    paper, nothing is corrected for bias.)

    References
    ----------
    Zaheer, Reddi, Sachan, Kale & Kumar 2018, "Adaptive methods for nonconvex optimization".
    """

    use = "Very noisy or sparse gradients, and averages of clients in federated learning, where Adam's rates shoot up."

    states = {
        "exp_avg": State("initial_accumulator", "moment"),
        "exp_avg_sq": State("initial_accumulator", "square"),
    }

    lr = learning_rate(1e-2)
    betas = Decays((0.9, 0.999), "Decay of m, and the pace of v, in [0, 1).")
    initial_accumulator = Quantity(1e-6, "Where m and v start, at least 0.")
    weight_decay = Quantity(0.0, "At least 0.")
    decoupled_weight_decay = Flag(True, "Whether `weight_decay` shrinks the parameters, and is no part of g.")
    fixed_decay = FIXED_DECAY
    eps = epsilon(1e-3)
    maximize = MAXIMIZE

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "yogi", ("exp_avg", "exp_avg_sq")
