"""AdaGrad."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fastopt.methods.base import (
    DECOUPLED,
    EPSILON_ROOT,
    LAZY,
    MAXIMIZE,
    ROWWISE,
    Method,
    Quantity,
    State,
    epsilon,
    learning_rate,
)


class Adagrad(Method):
    """AdaGrad: rates that fall with the sum of squared gradients, entry by entry.

    ``s += g**2``, ``p -= lr/(1 + (t-1)*lr_decay) * g / (sqrt(s + eps_root) + eps)``, t = 1, 2, ...

    References
    ----------
    Duchi, Hazan & Singer 2011, "Adaptive subgradient methods for online learning and stochastic optimization".
    """

    use = (
        "Sparse features and convex problems, where rare features should keep a high rate; in long trainings of deep "
        "networks its rates die out."
    )

    twin = "Adagrad"
    twin_flags = ("foreach", "*", "differentiable", "fused")
    states = {
        "sum": State("initial_accumulator_value", "square"),
        "row_sum": State("initial_accumulator_value", of="rows"),
    }

    lr = learning_rate(1e-2)
    lr_decay = Quantity(0.0, "How fast the rate falls, at least 0.")
    weight_decay = Quantity(0.0, "At least 0.")
    initial_accumulator_value = Quantity(0.0, "Where s starts, at least 0.")
    eps = epsilon(1e-10)
    maximize = MAXIMIZE
    eps_root = EPSILON_ROOT
    decoupled_weight_decay = DECOUPLED
    lazy = LAZY
    rowwise = ROWWISE

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        return ("adagrad_rowwise", ("row_sum",)) if options["rowwise"] else ("adagrad", ("sum",))

    @classmethod
    def sparse(cls, options: Mapping[str, Any]) -> Literal["rows", "dense", "refuse"]:
        if options["weight_decay"] != 0 and not options["lazy"]:
            raise RuntimeError("weight_decay option is not compatible with sparse gradients")
        return "rows"
