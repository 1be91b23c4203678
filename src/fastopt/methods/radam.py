"""RAdam."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastopt.methods.base import MAXIMIZE, MOMENT, SQUARE, Decays, Flag, Method, Quantity, epsilon, learning_rate


class RAdam(Method):
    """RAdam: Adam whose rate is small while too few squares have been averaged for their mean to be certain.

    ``m = beta1*m + (1-beta1)*g``, ``v = beta2*v + (1-beta2)*g**2``, ``n = N - 2*t*beta2**t / (1-beta2**t)`` with
    ``N = 2/(1-beta2) - 1``, ``r = sqrt((n-4)*(n-2)*N / ((N-4)*(N-2)*n))``,
    ``p -= lr * r * m/(1-beta1**t) * sqrt(1-beta2**t) / (sqrt(v) + eps)`` where n > 5, and until then
    ``p -= lr * m/(1-beta1**t)``, t = 1, 2, ...

    As in `torch.optim`: `eps` is added to the root before its bias is corrected.

    References
    ----------
    Liu, Jiang, He, Chen, Liu, Gao & Han 2020, "On the variance of the adaptive learning rate and beyond".
    """

    use = "Where Adam's first steps blow up and there is no warm-up; with a warm-up it gains nothing over `AdamW`."

    twin = "RAdam"
    twin_flags = ("*", "foreach", "capturable", "differentiable")
    states = {"exp_avg": MOMENT, "exp_avg_sq": SQUARE}

    lr = learning_rate(1e-3)
    betas = Decays((0.9, 0.999), "Decay of the moving averages of g and of its square, in [0, 1).")
    eps = epsilon(1e-8)
    weight_decay = Quantity(0.0, "At least 0.")
    decoupled_weight_decay = Flag(False, "Whether `weight_decay` shrinks the parameters instead, as in AdamW.")
    maximize = MAXIMIZE

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "radam", ("exp_avg", "exp_avg_sq")
