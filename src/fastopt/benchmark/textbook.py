"""The optimizers as their papers and textbooks spell them, in NumPy: what fastopt is compared with, and, in float64,
what every contestant's answers are checked against.
"""  # noqa: D205

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
State = dict[str, Any]
Options = Mapping[str, Any]


def sgd(p: Array, g: Array, state: State, t: int, options: Options) -> None:
    """``v = mu*v + g``, ``p = p - lr*v``."""
    if options["momentum"]:
        state["v"] = g = options["momentum"] * state.get("v", 0.0) + g
    p -= options["lr"] * g


def adagrad(p: Array, g: Array, state: State, t: int, options: Options) -> None:
    """``s = s + g**2``, ``p = p - lr * g / (sqrt(s) + eps)``."""
    state["s"] = state.get("s", 0.0) + g**2
    p -= options["lr"] * g / (np.sqrt(state["s"]) + options["eps"])


def rmsprop(p: Array, g: Array, state: State, t: int, options: Options) -> None:
    """``s = alpha*s + (1-alpha)*g**2``, ``p = p - lr * g / (sqrt(s) + eps)``; centered, with momentum."""
    alpha = options["alpha"]
    state["s"] = variance = alpha * state.get("s", 0.0) + (1 - alpha) * g**2
    if options["centered"]:
        state["a"] = alpha * state.get("a", 0.0) + (1 - alpha) * g
        variance = variance - state["a"] ** 2
    update = g / (np.sqrt(variance) + options["eps"])
    if options["momentum"]:
        state["b"] = update = options["momentum"] * state.get("b", 0.0) + update
    p -= options["lr"] * update


def adam(p: Array, g: Array, state: State, t: int, options: Options) -> None:
    """``m`` and ``v``, their bias corrected, ``p = p - lr * m_hat / (sqrt(v_hat) + eps)``."""
    beta1, beta2 = options["betas"]
    state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * g
    state["v"] = largest = beta2 * state.get("v", 0.0) + (1 - beta2) * g**2
    if options["amsgrad"]:
        state["largest"] = largest = np.maximum(state.get("largest", 0.0), largest)
    m_hat = state["m"] / (1 - beta1**t)
    v_hat = largest / (1 - beta2**t)
    p -= options["lr"] * m_hat / (np.sqrt(v_hat) + options["eps"])


def adamw(p: Array, g: Array, state: State, t: int, options: Options) -> None:
    """Adam after ``p = p - lr*weight_decay*p``."""
    p -= options["lr"] * options["weight_decay"] * p
    adam(p, g, state, t, options)


STEPS: dict[str, Callable[[Array, Array, State, int, Options], None]] = {
    "SGD": sgd,
    "Adagrad": adagrad,
    "RMSprop": rmsprop,
    "Adam": adam,
    "AdamW": adamw,
}
"""By optimizer: takes parameter, gradient, state, the number of the step (from 1) and the options; changes p, state."""


def clip_by_norm(grads: list[Array], max_norm: float) -> None:
    """Scale gradients in place so that their norm is at most `max_norm`."""
    coefficient = clip_coefficient(grads, max_norm)
    if coefficient < 1:
        for g in grads:
            g *= coefficient


def clip_coefficient(grads: list[Array], max_norm: float) -> float:
    """``max_norm / (norm + 1e-6)``, as in torch."""
    norm = np.sqrt(sum(np.sum(g**2, dtype=np.float64) for g in grads))
    return float(max_norm / (norm + 1e-6))
