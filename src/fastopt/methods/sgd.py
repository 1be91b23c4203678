"""Gradient descent and momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fastopt.methods.base import DECOUPLED, LAZY, MAXIMIZE, MOMENT, Choice, Flag, Method, Quantity, learning_rate


class SGD(Method):
    """(Stochastic) gradient descent, with momentum in its three published forms, and Nesterov's.

    Without momentum, ``p -= lr * g``. With it, by `velocity`:

    ========  ================================  ==========================================================
    "sum"     ``v = mu*v + (1-dampening)*g``,   PyTorch; heavy ball (Polyak 1964). v sums up gradients: for
              ``p -= lr*v``                     a constant one it goes to g/(1-mu). The first v is g.
    "mean"    ``v = mu*v + (1-mu)*g``,          exponential average: v goes to g
              ``p -= lr*v``
    "step"    ``v = mu*v - lr*g``,              Sutskever, Martens, Dahl & Hinton 2013; Keras. v is the
              ``p += v``                        displacement, so that a new lr acts as fast as momentum lets it
    ========  ================================  ==========================================================

    `nesterov` takes the step from where the momentum is about to carry the parameter: the displacement is made from
    ``mu*v + c*g`` instead of ``v``, c being the factor of g above.

    References
    ----------
    Robbins & Monro 1951, "A stochastic approximation method". Polyak 1964, "Some methods of speeding up the convergence
    of iteration methods". Nesterov 1983. Sutskever, Martens, Dahl & Hinton 2013, "On the importance of initialization
    and momentum in deep learning".
    """

    use = (
        "Image networks and other well-scaled problems where there is time to tune the rate: with momentum it often "
        "generalises as well as anything, with the least memory."
    )

    twin = "SGD"
    twin_flags = ("*", "foreach", "differentiable", "fused")
    counts_steps = False
    states = {"momentum_buffer": MOMENT}

    lr = learning_rate(1e-3)
    momentum = Quantity(0.0, "mu, at least 0.")
    dampening = Quantity(0.0, 'With ``velocity="sum"`` only.', low=float("-inf"))
    weight_decay = Quantity(0.0, "At least 0.")
    nesterov = Flag(False, "Needs momentum and no dampening.")
    maximize = MAXIMIZE
    velocity = Choice("sum", 'What v is: "sum", "mean" or "step".', keyword_only=True, among=("sum", "mean", "step"))
    decoupled_weight_decay = DECOUPLED
    lazy = LAZY

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        return ("sgd", ()) if options["momentum"] == 0 else ("momentum", ("momentum_buffer",))

    @classmethod
    def check_together(cls, options: Mapping[str, Any]) -> None:
        if options["nesterov"] and (options["momentum"] <= 0 or options["dampening"] != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        if options["dampening"] != 0 and options["velocity"] != "sum":
            raise ValueError(
                f"Invalid dampening value: {options['dampening']}; velocity={options['velocity']!r} has none"
            )

    @classmethod
    def sparse(cls, options: Mapping[str, Any]) -> Literal["rows", "dense", "refuse"]:
        return "rows" if options["lazy"] or options["momentum"] == options["weight_decay"] == 0 else "dense"
