"""AdaBelief."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastopt.methods.base import FIXED_DECAY, MAXIMIZE, MOMENT, SQUARE, Decays, Flag, Method, Quantity, learning_rate


class AdaBelief(Method):
    """AdaBelief: Adam that divides by how much the gradient differs from its average, not by how large it is.

    ``m = beta1*m + (1-beta1)*g``, ``s = beta2*s + (1-beta2)*(g-m)**2 + eps``, and then, with the r and n of `RAdam`,
    ``p -= lr * r * m/(1-beta1**t) * sqrt(1-beta2**t) / (sqrt(s) + eps)`` where n >= 5, and until then
    ``p -= lr * m/(1-beta1**t)``, t = 1, 2, ... If it is not to `rectify`, as `Adam`,
    ``p -= lr * m/(1-beta1**t) / (sqrt(s/(1-beta2**t)) + eps)``, where `amsgrad` takes the largest s so far.

    As in the package timm: what is rectified is never divided by the largest.

    References
    ----------
    Zhuang, Tang, Ding, Tatikonda, Dvornek, Papademetris & Duncan 2020, "AdaBelief optimizer: adapting stepsizes by the
    belief in observed gradients".
    """

    use = "Networks where `SGD` generalises better than `Adam` and is too slow; sensitive to `eps`."

    states = {"exp_avg": MOMENT, "exp_avg_var": SQUARE, "max_exp_avg_var": SQUARE}

    lr = learning_rate(1e-3)
    betas = Decays((0.9, 0.999), "Decay of m and of s, in [0, 1).")
    eps = Quantity(1e-16, "Added to s, and to its root, at least 0.", words="epsilon value")
    weight_decay = Quantity(0.0, "At least 0.")
    amsgrad = Flag(False, "Whether rates may only fall, where it does not `rectify`.")
    decoupled_weight_decay = Flag(True, "Whether `weight_decay` shrinks the parameters, and is no part of g.")
    fixed_decay = FIXED_DECAY
    rectify = Flag(True, "Whether the rate is `RAdam`'s.")
    degenerated_to_sgd = Flag(True, "Whether the first steps, which cannot be rectified, are taken along m.")
    maximize = MAXIMIZE

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        if options["amsgrad"]:
            return "adabelief_amsgrad", ("exp_avg", "exp_avg_var", "max_exp_avg_var")
        return "adabelief", ("exp_avg", "exp_avg_var")
