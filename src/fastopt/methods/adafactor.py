"""Adafactor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastopt.hyperparameters import Number
from fastopt.methods.base import MAXIMIZE, SQUARE, Flag, Maybe, Method, Numbers, Quantity, State, learning_rate


class Epsilons(Numbers):
    """Two numbers, the first of which may be None."""

    kind = tuple[Number | None, Number]

    def check(self, name: str, value: Any, edited: bool = False) -> None:
        """Raise `ValueError` unless there are two, each at least 0."""
        if not isinstance(value, tuple) or len(value) != 2:
            raise ValueError(f"Invalid {name}: expected two numbers, got {value!r}")
        Maybe(None, words="epsilon1").check(name, value[0], edited)
        Quantity(0.0, words="epsilon2").check(name, value[1], edited)

    def numbers(self, name: str, value: Any) -> dict[str, float]:
        """Return both; NaN is None."""
        return {"eps1": math.nan if value[0] is None else float(value[0]), "eps2": float(value[1])}


class Adafactor(Method):
    """Adafactor: rates by the rows and columns of matrices, in next to no memory.

    Of a matrix, the last two dimensions, the moving averages R and C of the means of g**2 over its rows and its columns
    are kept, ``R += t**beta2_decay * (mean(g**2) - R)``, and C likewise; ``V = R*C / max(mean(R), eps1)``. A vector has
    V itself, the moving average of g**2. With the root of the mean square, rms, of whole tensors:

    ``p *= 1 - lr*weight_decay``, ``u = g / sqrt(max(V, eps1**2))``,
    ``p -= max(eps2, rms(p)) * min(lr, 1/sqrt(t)) * u / max(1, rms(u)/d)``, t = 1, 2, ...

    As in `torch.optim`. (The paper adds eps1 to g**2.)

    References
    ----------
    Shazeer & Stern 2018, "Adafactor: adaptive learning rates with sublinear memory cost".
    """

    use = "Models whose matrices leave no memory for two states; slower to converge than `AdamW` at its best rate."
    twin = "Adafactor"
    twin_flags = ("*", "foreach")
    states = {"row_var": State(of="matrix rows"), "col_var": State(of="matrix columns"), "variance": SQUARE}

    lr = learning_rate(1e-2)
    beta2_decay = Quantity(
        -0.8, "How fast the averages come to forget less, at most 0.", low=-math.inf, high=math.ulp(0.0)
    )
    eps = Epsilons(
        (None, 1e-3),
        "eps1, by default the distance from 1 to the next number of the parameter's dtype, and the least that rms(p) "
        "counts as; at least 0.",
    )
    d = Quantity(1.0, "How large rms(u) may be before it is clipped, at least 1.", low=1.0)
    weight_decay = Quantity(0.0, "At least 0.")
    maximize = MAXIMIZE
    decoupled_weight_decay = Flag(True, fixed=True)

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "adafactor_vector", ("variance",)

    @classmethod
    def rule_for(
        cls, options: Mapping[str, Any], shape: Sequence[int], label: Callable[[], str]
    ) -> tuple[str, tuple[str, ...]]:
        return ("adafactor", ("row_var", "col_var")) if len(shape) > 1 else cls.rule(options)
