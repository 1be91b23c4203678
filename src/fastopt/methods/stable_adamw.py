"""StableAdamW."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastopt.methods.base import (
    MAXIMIZE,
    MOMENT,
    SQUARE,
    Careful,
    Decays,
    Flag,
    Quantity,
    learning_rate,
)


class StableAdamW(Careful):
    """AdamW that slows down for a tensor whose gradients are much larger than they were.

    ``m = b1*m + (1-b1)*g``, ``v = b2*v + (1-b2)*g**2``, each b being ``beta * (1 - beta**(t-1)) / (1 - beta**t)``,
    ``rate = lr / max(1, sqrt(mean(g**2 / max(v, eps**2))))`` for each tensor,
    ``p *= 1 - rate*weight_decay``, ``p -= rate * m / (sqrt(v) + eps)``.

    As in the package pytorch_optimizer, whose `weight_decouple` is `decoupled_weight_decay` here; there is no
    `kahan_sum`, and t is a parameter's own.

    References
    ----------
    Wortsman, Dettmers, Zettlemoyer, Morcos, Farhadi & Schmidt 2023, "Stable and low-precision training for large-scale
    vision-language models".
    """

    use = (
        "Large or low-precision trainings whose loss spikes: it needs no clipping by norm, at the cost of reading "
        "gradients twice."
    )

    states = {"exp_avg": MOMENT, "exp_avg_sq": SQUARE}
    renamed = {"weight_decouple": "decoupled_weight_decay"}

    lr = learning_rate(1e-3)
    betas = Decays((0.9, 0.99), "Decay of the moving averages of g and of its square, in [0, 1).")
    weight_decay = Quantity(1e-2, "At least 0.")
    eps = Quantity(1e-8, "Added to the root, at least 0.", words="epsilon value")
    maximize = MAXIMIZE
    decoupled_weight_decay = Flag(
        True,
        "Whether `weight_decay` shrinks the parameters, ``p *= 1 - rate*weight_decay``, instead of adding "
        "``weight_decay*p`` to the gradient.",
        keyword_only=True,
    )

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "stable_adamw", ("exp_avg", "exp_avg_sq")
