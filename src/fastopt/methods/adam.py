"""Adam, AdamW and SparseAdam."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastopt.methods.base import (
    DECOUPLED,
    EPSILON_ROOT,
    LAZY,
    MAXIMIZE,
    MOMENT,
    ROW_SQUARE,
    ROWWISE,
    SQUARE,
    Careful,
    Decays,
    Flag,
    Method,
    Quantity,
    epsilon,
    learning_rate,
)


class Adam(Careful):
    """Adam: a moving average of the gradient, divided by the root of a moving average of its square.

    ``m = beta1*m + (1-beta1)*g``, ``v = beta2*v + (1-beta2)*g**2``,
    ``p -= lr * m/(1-beta1**t) / (sqrt(v/(1-beta2**t) + eps_root) + eps)``, t = 1, 2, ...

    `amsgrad` takes the largest v so far in place of v.

    References
    ----------
    Kingma & Ba 2015, "Adam: a method for stochastic optimization". Reddi, Kale & Kumar 2018, "On the convergence of
    Adam and beyond" (amsgrad).
    """

    use = "The first thing to try for most networks without weight decay; with decay, take `AdamW`."

    twin = "Adam"
    twin_flags = ("*", "foreach", "capturable", "differentiable", "fused")
    states = {"exp_avg": MOMENT, "exp_avg_sq": SQUARE, "max_exp_avg_sq": SQUARE, "row_exp_avg_sq": ROW_SQUARE}

    lr = learning_rate(1e-3)
    betas = Decays((0.9, 0.999), "Decay of the moving averages of g and of its square, in [0, 1).")
    eps = epsilon(1e-8)
    weight_decay = Quantity(0.0, "At least 0.")
    amsgrad = Flag(False, "Whether rates may only fall.")
    maximize = MAXIMIZE
    decoupled_weight_decay = DECOUPLED
    eps_root = EPSILON_ROOT
    lazy = LAZY
    rowwise = ROWWISE

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        if options["rowwise"]:
            return "adam_rowwise", ("exp_avg", "row_exp_avg_sq")
        if options["amsgrad"]:
            return "amsgrad", ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        return "adam", ("exp_avg", "exp_avg_sq")

    @classmethod
    def check_together(cls, options: Mapping[str, Any]) -> None:
        super().check_together(options)
        for name in ("amsgrad", "cautious", "cautious_decay"):
            if options["rowwise"] and options[name]:
                raise ValueError(f"rowwise=True excludes {name}=True")


class SparseAdam(Method):
    """Adam for gradients of some rows: all others, and their states, are left alone.

    ``m = beta1*m + (1-beta1)*g``, ``v = beta2*v + (1-beta2)*g**2``,
    ``p -= lr * sqrt(1-beta2**t)/(1-beta1**t) * m / (sqrt(v) + eps)``, t = 1, 2, ..., the number of all steps.

    `eps` is the paper's epsilon hat, which the correction of v scales too. A dense gradient is one of all rows; for
    torch it is an error, as there. ``AdamW(lazy=True)`` has weight decay besides.

    References
    ----------
    Kingma & Ba 2015, "Adam: a method for stochastic optimization".
    """

    twin = "SparseAdam"
    refusal_of_dense = "SparseAdam does not support dense gradients, please consider Adam instead"
    use = "In the place of torch's class, for embeddings; `AdamW` with `lazy` decays the touched rows besides."

    states = {"exp_avg": MOMENT, "exp_avg_sq": SQUARE}

    lr = learning_rate(1e-3)
    betas = Decays((0.9, 0.999), "Decay of the moving averages of g and of its square, in [0, 1).")
    eps = epsilon(1e-8)
    maximize = MAXIMIZE.but(keyword_only=False)
    eps_hat = Flag(True, fixed=True)
    lazy = Flag(True, fixed=True)

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "adam", ("exp_avg", "exp_avg_sq")


class AdamW(Adam):
    """Adam with decoupled weight decay: all parameters shrink alike, ``p *= 1 - lr*weight_decay``, before the update.

    The update is `Adam`'s.

    References
    ----------
    Loshchilov & Hutter 2019, "Decoupled weight decay regularization".
    """

    use = "The default: transformers and most other networks, with warm-up and a falling rate."

    twin = "AdamW"

    weight_decay = Quantity(1e-2, "At least 0.")
    decoupled_weight_decay = Flag(True, fixed=True)
