"""ASGD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastopt.methods.base import MAXIMIZE, Method, Quantity, State, learning_rate


class ASGD(Method):
    """Averaged gradient descent: a rate that falls, and beside the parameters the mean of where they have been.

    ``p *= 1 - lambd*eta``, ``p -= eta*g``, ``ax += mu*(p - ax)``, and then ``eta = lr / (1 + lambd*lr*t)**alpha``,
    ``mu = 1 / max(1, t - t0)``, t = 1, 2, ... The first eta is lr, the first mu 1.

    The mean is the state ``"ax"``: it is what to use in the end. As in `torch.optim`.

    References
    ----------
    Polyak & Juditsky 1992, "Acceleration of stochastic approximation by averaging". Bottou 2010, "Large-scale machine
    learning with stochastic gradient descent" (the rate).
    """

    use = (
        "Convex problems with noisy gradients, and language models of the AWD-LSTM kind; for deep networks `ema=` of "
        "another optimizer does much the same, in the same pass."
    )

    twin = "ASGD"
    twin_flags = ("foreach", "maximize", "differentiable", "capturable")
    states = {"ax": State()}
    numbers = {"eta": "lr", "mu": 1.0}

    lr = learning_rate(1e-2)
    lambd = Quantity(1e-4, "How fast the rate falls, and how much the parameters shrink.", low=float("-inf"))
    alpha = Quantity(0.75, "The power by which the rate falls.", low=float("-inf"))
    t0 = Quantity(1e6, "After how many steps the mean begins; until then ``ax`` is the parameter.", low=float("-inf"))
    weight_decay = Quantity(0.0, "At least 0.")
    maximize = MAXIMIZE

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "asgd", ("ax",)
