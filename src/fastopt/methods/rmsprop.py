"""RMSprop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastopt.methods.base import (
    DECOUPLED,
    EPSILON_ROOT,
    LAZY,
    MAXIMIZE,
    MOMENT,
    SQUARE,
    Flag,
    Method,
    Quantity,
    State,
    epsilon,
    learning_rate,
)


class RMSprop(Method):
    """RMSprop: the gradient divided by a moving root mean square of itself, entry by entry.

    ``s = alpha*s + (1-alpha)*g**2``, ``u = g / (sqrt(s + eps_root) + eps)``, ``p -= lr*u``. `centered` takes the
    variance ``s - a**2`` (0 where rounding makes it negative) in place of s, with ``a = alpha*a + (1-alpha)*g``;
    momentum makes it ``b = momentum*b + u``, ``p -= lr*b``.

    References
    ----------
    Tieleman & Hinton 2012, "Lecture 6.5, rmsprop". Graves 2013, "Generating sequences with recurrent neural networks"
    (centered).
    """

    use = (
        "Reinforcement learning and recurrent networks, where published settings use it; elsewhere `Adam` has "
        "superseded it."
    )

    twin = "RMSprop"
    twin_flags = ("capturable", "foreach", "maximize", "differentiable", "*")
    states = {"square_avg": SQUARE, "momentum_buffer": MOMENT, "grad_avg": State()}

    lr = learning_rate(1e-2)
    alpha = Quantity(0.99, "Decay of the moving averages, in [0, 1).", high=1.0)
    eps = epsilon(1e-8)
    weight_decay = Quantity(0.0, "At least 0.")
    momentum = Quantity(0.0, "At least 0.")
    centered = Flag(False, "Whether to divide by the standard deviation instead.")
    maximize = MAXIMIZE
    eps_root = EPSILON_ROOT
    decoupled_weight_decay = DECOUPLED
    lazy = LAZY

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        centered = ("_centered", ("grad_avg",)) if options["centered"] else ("", ())
        momentum = ("_momentum", ("momentum_buffer",)) if options["momentum"] != 0 else ("", ())
        return "rmsprop" + centered[0] + momentum[0], ("square_avg", *momentum[1], *centered[1])
