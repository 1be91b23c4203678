"""FTRL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastopt.methods.base import MAXIMIZE, SQUARE, Method, Quantity, State, learning_rate


class FTRL(Method):
    """FTRL-Proximal: parameters that are zero until something speaks for them. For sparse linear models.

    ``z += g - (sqrt(n + g**2) - sqrt(n))/lr * p``, ``n += g**2``, and then p is 0 where ``|z| <= lambda_1``, elsewhere
    ``p = (lambda_1*sign(z) - z) / ((beta + sqrt(n))/lr + lambda_2)``

    As in the package pytorch_optimizer with its `lr_power` of -0.5: a parameter that has had no gradient is 0. A
    rate of 0 leaves the parameters alone.

    References
    ----------
    McMahan, Holt, Sculley, Young, Ebner, Grady, Nie, Phillips, Davydov, Golovin, Chikkerur, Liu, Wattenberg,
    Hrafnkelsson, Boulos & Kubica 2013, "Ad click prediction: a view from the trenches".
    """

    use = "Sparse linear models (click prediction), where most weights should be exactly zero; not for deep networks."

    counts_steps = False
    states = {"z": State(), "n": SQUARE}

    lr = learning_rate(1e-3)
    beta = Quantity(0.0, "Added to the root of n, at least 0.")
    lambda_1 = Quantity(0.0, "L1 penalty, at least 0.")
    lambda_2 = Quantity(0.0, "L2 penalty, at least 0.")
    maximize = MAXIMIZE

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "ftrl", ("z", "n")
