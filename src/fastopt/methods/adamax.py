"""Adamax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastopt.methods.base import DECOUPLED, MAXIMIZE, MOMENT, Decays, Method, Quantity, State, epsilon, learning_rate


class Adamax(Method):
    """Adamax: Adam with the largest gradient of late in place of the root mean square.

    ``m = beta1*m + (1-beta1)*g``, ``u = max(beta2*u, |g| + eps)``, ``p -= lr/(1-beta1**t) * m/u``, t = 1, 2, ...

    As in `torch.optim`. (The paper has no `eps`.)

    References
    ----------
    Kingma & Ba 2015, "Adam: a method for stochastic optimization", section 7.1.
    """

    use = "Gradients with rare, very large entries (embeddings, speech); seldom better than `AdamW` elsewhere."

    twin = "Adamax"
    twin_flags = ("foreach", "*", "differentiable", "capturable")
    states = {"exp_avg": MOMENT, "exp_inf": State()}

    lr = learning_rate(2e-3)
    betas = Decays((0.9, 0.999), "Decay of m and of u, in [0, 1).")
    eps = epsilon(1e-8)
    weight_decay = Quantity(0.0, "At least 0.")
    maximize = MAXIMIZE
    decoupled_weight_decay = DECOUPLED

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "adamax", ("exp_avg", "exp_inf")
