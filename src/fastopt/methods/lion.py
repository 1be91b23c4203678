"""Lion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastopt.methods.base import (
    LAZY,
    MAXIMIZE,
    MOMENT,
    Careful,
    Decays,
    Flag,
    Quantity,
    learning_rate,
)


class Lion(Careful):
    """Lion: the sign of a moving average of the gradient.

    ``p *= 1 - lr*weight_decay``, ``p -= lr * sign(beta1*m + (1-beta1)*g)``, ``m = beta2*m + (1-beta2)*g``

    References
    ----------
    Chen, Liang, Huang, Real, Wang, Liu, Pham, Dong, Luong, Hsieh, Lu & Le 2023, "Symbolic discovery of optimization
    algorithms".
    """

    use = (
        "Large models and large batches where half of AdamW's state is worth a search for a new rate (3 to 10 times "
        "as small) and decay (as much larger)."
    )

    counts_steps = False
    states = {"exp_avg": MOMENT}

    lr = learning_rate(1e-4)
    betas = Decays((0.9, 0.99), "Decay of m in the update, and of m itself, in [0, 1).")
    weight_decay = Quantity(0.0, "At least 0.")
    maximize = MAXIMIZE
    decoupled_weight_decay = Flag(True, fixed=True)
    lazy = LAZY

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "lion", ("exp_avg",)
