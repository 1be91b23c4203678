"""Adan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastopt.methods.base import MAXIMIZE, MOMENT, SQUARE, Decays, Flag, Method, Quantity, State, epsilon, learning_rate


class Adan(Method):
    """Adan: Adam with Nesterov's look-ahead, from how the gradient has changed since the step before.

    ``d = g - (g before)``, 0 in the first step; ``m = beta1*m + (1-beta1)*g``, ``e = beta2*e + (1-beta2)*d``,
    ``v = beta3*v + (1-beta3)*(g + beta2*d)**2``,
    ``p -= lr * (m/(1-beta1**t) + beta2*e/(1-beta2**t)) / (sqrt(v/(1-beta3**t)) + eps)``,
    ``p /= 1 + lr*weight_decay``, t = 1, 2, ...

    As in the package timm, but that t is a parameter's own. (The paper's betas are 1 minus these.)

    References
    ----------
    Xie, Zhou, Li, Lin & Yan 2022, "Adan: adaptive Nesterov momentum algorithm for faster optimizing deep models".
    """

    use = (
        "Vision transformers and diffusion models with large rates, where its two further states (twice AdamW's) fit "
        "into memory."
    )

    states = {"exp_avg": MOMENT, "exp_avg_sq": SQUARE, "exp_avg_diff": MOMENT, "neg_pre_grad": State()}

    lr = learning_rate(1e-3)
    betas = Decays((0.98, 0.92, 0.99), "Decay of m, of e and of v, in [0, 1).")
    eps = epsilon(1e-8)
    weight_decay = Quantity(0.0, "At least 0.")
    no_prox = Flag(False, "Whether decay is ``p *= 1 - lr*weight_decay`` before the update instead, as in AdamW.")
    maximize = MAXIMIZE
    decoupled_weight_decay = Flag(True, fixed=True)

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "adan", ("exp_avg", "exp_avg_sq", "exp_avg_diff", "neg_pre_grad")
