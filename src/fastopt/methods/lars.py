"""LARS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastopt.methods.base import MAXIMIZE, MOMENT, Flag, Method, Quantity, learning_rate


class LARS(Method):
    """Gradient descent with momentum and a rate for each tensor, so that all change by the same part of their norm.

    ``ratio = trust_coeff * |p| / (|g| + weight_decay*|p| + eps)``, 1 where a norm is 0,
    ``v = momentum*v + (1-dampening) * ratio*(g + weight_decay*p)``, ``p -= lr*v``. The first v has no dampening.

    With `nesterov`, the step is made from ``ratio*(g + weight_decay*p) + momentum*v``. As in the package timm.

    References
    ----------
    You, Gitman & Ginsburg 2017, "Large batch training of convolutional networks".
    """

    use = "Convolutional networks with batches of thousands of images; with ordinary batches plain `SGD` is as good."

    counts_steps = False
    states = {"momentum_buffer": MOMENT}

    lr = learning_rate(1.0)
    momentum = Quantity(0.0, "At least 0.")
    weight_decay = Quantity(0.0, "At least 0; part of the gradient, but not of its norm.")
    dampening = Quantity(0.0, "What is taken off a gradient.", low=float("-inf"))
    nesterov = Flag(False, "Needs momentum and no dampening.")
    trust_coeff = Quantity(1e-3, "How large a part of its norm a tensor changes by.")
    eps = Quantity(1e-8, "Added to the norms that the ratio is divided by, at least 0.", words="epsilon value")
    trust_clip = Flag(False, "Whether the ratio is ``min(ratio/lr, 1)``: lr is an upper bound then (LARC).")
    always_adapt = Flag(False, "Whether there is a ratio also where `weight_decay` is 0; otherwise it is 1 there.")
    maximize = MAXIMIZE

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        return ("lars", ()) if options["momentum"] == 0 else ("lars_momentum", ("momentum_buffer",))

    @classmethod
    def check_together(cls, options: Mapping[str, Any]) -> None:
        if options["nesterov"] and (options["momentum"] <= 0 or options["dampening"] != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
