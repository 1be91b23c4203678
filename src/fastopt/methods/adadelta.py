"""Adadelta."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fastopt.methods.base import DECOUPLED, MAXIMIZE, SQUARE, Method, Quantity, learning_rate


class Adadelta(Method):
    """Adadelta: steps in the unit of the parameters, as large as those before, for gradients as large as of late.

    ``s = rho*s + (1-rho)*g**2``, ``u = sqrt(d + eps) / sqrt(s + eps) * g``, ``d = rho*d + (1-rho)*u**2``,
    ``p -= lr*u``

    References
    ----------
    Zeiler 2012, "ADADELTA: an adaptive learning rate method".
    """

    use = "Where no rate is to be tuned and speed of convergence does not matter; mostly of historical interest."

    twin = "Adadelta"
    twin_flags = ("foreach", "*", "capturable", "differentiable")
    states = {"square_avg": SQUARE, "acc_delta": SQUARE}

    lr = learning_rate(1.0)
    rho = Quantity(0.9, "Decay of the moving averages, in [0, 1].", high=math.nextafter(1.0, 2.0))
    eps = Quantity(1e-6, "Added inside of both roots, at least 0.", words="epsilon value")
    weight_decay = Quantity(0.0, "At least 0.")
    maximize = MAXIMIZE
    decoupled_weight_decay = DECOUPLED

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "adadelta", ("square_avg", "acc_delta")
