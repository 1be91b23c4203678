"""AdEMAMix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastopt.methods.base import (
    MAXIMIZE,
    MOMENT,
    SQUARE,
    Decays,
    Flag,
    Maybe,
    Method,
    Quantity,
    epsilon,
    learning_rate,
)


class AdEMAMix(Method):
    """AdEMAMix: AdamW with a second average of the gradient, which remembers ten thousand steps.

    ``m = beta1*m + (1-beta1)*g``, ``l = beta3(t)*l + (1-beta3(t))*g``, ``v = beta2*v + (1-beta2)*g**2``,
    ``p *= 1 - lr*weight_decay``,
    ``p -= lr * (m/(1-beta1**t) + alpha(t)*l) / (sqrt(v/(1-beta2**t)) + eps)``, t = 1, 2, ...

    alpha(t) rises evenly to alpha in the first `t_alpha` steps. beta3(t) rises from beta1 to beta3 in the first
    `t_beta3`, ``exp(log(beta1)*log(beta3) / ((1-s)*log(beta3) + s*log(beta1)))`` with ``s = t/t_beta3``, so that the
    half-life of l grows evenly. As in bitsandbytes: the bias of l is not corrected. (Its one state for m and l is two
    here.)

    References
    ----------
    Pagliardini, Ablin & Grangier 2024, "The AdEMAMix optimizer: better, faster, older".
    """

    use = (
        "Long trainings of language models (tens of thousands of steps), for a lower loss from the same tokens; it "
        "needs `t_alpha` and `t_beta3`, and a state more."
    )

    states = {"exp_avg": MOMENT, "exp_avg_sq": SQUARE, "exp_avg_slow": MOMENT}

    lr = learning_rate(1e-3)
    betas = Decays((0.9, 0.999, 0.9999), "Decay of m, of v and of l, in [0, 1).")
    alpha = Quantity(5.0, "How much l counts beside m, at least 0.")
    t_alpha = Maybe(None, "In how many steps alpha is reached; None: at once.")
    t_beta3 = Maybe(None, "In how many steps beta3 is reached; None: at once.")
    eps = epsilon(1e-8)
    weight_decay = Quantity(1e-2, "At least 0.")
    maximize = MAXIMIZE
    decoupled_weight_decay = Flag(True, fixed=True)

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "ademamix", ("exp_avg", "exp_avg_sq", "exp_avg_slow")

    @classmethod
    def check_together(cls, options: Mapping[str, Any]) -> None:
        beta1, _, beta3 = options["betas"]
        if options["t_beta3"] is not None and 0 in (beta1, beta3):
            raise ValueError(f"Invalid t_beta3 value: {options['t_beta3']}; with it, beta1 and beta3 must not be 0")
