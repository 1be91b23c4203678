"""NAdam."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastopt.methods.base import MAXIMIZE, MOMENT, SQUARE, Decays, Flag, Method, Quantity, epsilon, learning_rate


class NAdam(Method):
    """NAdam: Adam with Nesterov's look-ahead, and a momentum that rises to beta1.

    ``m = beta1*m + (1-beta1)*g``, ``v = beta2*v + (1-beta2)*g**2``,
    ``mu(t) = beta1 * (1 - 0.96**(t*momentum_decay) / 2)``, ``mu_product *= mu(t)`` (it starts as 1),
    ``n = mu(t+1)*m / (1 - mu_product*mu(t+1)) + (1 - mu(t))*g / (1 - mu_product)``,
    ``p -= lr * n / (sqrt(v/(1-beta2**t)) + eps)``, t = 1, 2, ...

    As in `torch.optim`. (In optax the momentum does not rise.)

    References
    ----------
    Dozat 2016, "Incorporating Nesterov momentum into Adam".
    """

    use = "Where `Adam` works and a little more speed at the start is welcome; the gain is small."

    twin = "NAdam"
    twin_flags = ("*", "foreach", "capturable", "differentiable")
    states = {"exp_avg": MOMENT, "exp_avg_sq": SQUARE}
    numbers = {"mu_product": 1.0}

    lr = learning_rate(2e-3)
    betas = Decays((0.9, 0.999), "Decay of the moving averages of g and of its square, in [0, 1).")
    eps = epsilon(1e-8)
    weight_decay = Quantity(0.0, "At least 0.")
    momentum_decay = Quantity(4e-3, "How fast the momentum rises, at least 0.")
    decoupled_weight_decay = Flag(False, "Whether `weight_decay` shrinks the parameters instead, as in AdamW.")
    maximize = MAXIMIZE

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "nadam", ("exp_avg", "exp_avg_sq")
