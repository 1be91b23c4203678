"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastopt.methods.base import (
    CAUTIOUS,
    CAUTIOUS_DECAY,
    CORRECTED_DECAY,
    DECOUPLED,
    EPSILON_ROOT,
    LAZY,
    MAXIMIZE,
    MOMENT,
    PEAK_LR,
    ROW_SQUARE,
    ROWWISE,
    SQUARE,
    TIMM,
    Decays,
    Flag,
    Method,
    Quantity,
    check_careful_decay,
    epsilon,
    learning_rate,
)


class Adam(Method):
    """Adam: a moving average of the gradient, divided by the root of a moving average of its square.

    ``m = beta1*m + (1-beta1)*g``, ``v = beta2*v + (1-beta2)*g**2``,
    ``p -= lr * m/(1-beta1**t) / (sqrt(v/(1-beta2**t) + eps_root) + eps)``, t = 1, 2, ...

    `amsgrad` takes the largest v so far in place of v.

    References
    ----------
    Kingma & Ba 2015, "Adam: a method for stochastic optimization". Reddi, Kale & Kumar 2018, "On the convergence of
    Adam and beyond" (amsgrad).
    """

    twin = "Adam"
    twin_flags = ("*", "foreach", "capturable", "differentiable", "fused")
    states = {"exp_avg": MOMENT, "exp_avg_sq": SQUARE, "max_exp_avg_sq": SQUARE, "row_exp_avg_sq": ROW_SQUARE}

    renamed = TIMM

    lr = learning_rate(1e-3)
    betas = Decays((0.9, 0.999), "Decay of the moving averages of g and of its square, in [0, 1).")
    eps = epsilon(1e-8)
    weight_decay = Quantity(0.0, "At least 0.")
    amsgrad = Flag(False, "Whether rates may only fall.")
    maximize = MAXIMIZE
    decoupled_weight_decay = DECOUPLED
    eps_root = EPSILON_ROOT
    lazy = LAZY
    cautious = CAUTIOUS
    cautious_decay = CAUTIOUS_DECAY
    corrected_weight_decay = CORRECTED_DECAY
    peak_lr = PEAK_LR
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
        check_careful_decay(options)
        for name in ("amsgrad", "cautious", "cautious_decay"):
            if options["rowwise"] and options[name]:
                raise ValueError(f"rowwise=True excludes {name}=True")


class AdamW(Adam):
    """Adam with decoupled weight decay: all parameters shrink alike, ``p *= 1 - lr*weight_decay``, before the update.

    The update is `Adam`'s.

    References
    ----------
    Loshchilov & Hutter 2019, "Decoupled weight decay regularization".
    """

    twin = "AdamW"

    weight_decay = Quantity(1e-2, "At least 0.")
    decoupled_weight_decay = Flag(True, fixed=True)
