"""ADOPT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastopt.methods.base import MAXIMIZE, MOMENT, SQUARE, Decays, Flag, Maybe, Method, Quantity, learning_rate


class ADOPT(Method):
    """ADOPT: Adam in another order, which converges with any beta2: g is divided by the squares of the steps before.

    In the first step ``v = g**2``, and nothing else. Then ``n = g / max(sqrt(v), eps)``, clipped to
    ``[-c, c]`` with ``c = (t-1)**clip_exp``, ``m = beta1*m + (1-beta1)*n``, ``p -= lr*m``,
    ``v = beta2*v + (1-beta2)*g**2``, t = 2, 3, ...

    As in the package timm. (The paper's exponent is 1/4.)

    References
    ----------
    Taniguchi, Harada, Minegishi, Oshima, Jeong, Nagahara, Iiyama, Suzuki, Iwasawa & Matsuo 2024, "ADOPT: modified Adam
    can converge with any beta2 with the optimal rate".
    """

    use = "Where `Adam` does not settle at any beta2, as with rare large gradients; otherwise on a par with `AdamW`."

    states = {"exp_avg": MOMENT, "exp_avg_sq": SQUARE}

    lr = learning_rate(1e-3)
    betas = Decays((0.9, 0.9999), "Decay of m and of v, in [0, 1).")
    eps = Quantity(1e-6, "The least that g is divided by, at least 0.", words="epsilon value")
    clip_exp = Maybe(0.333, "The power by which the bound of n grows; None: it has none.", low=float("-inf"))
    weight_decay = Quantity(0.0, "At least 0.")
    decoupled_weight_decay = Flag(False, "Whether `weight_decay` shrinks the parameters, and is no part of g.")
    maximize = MAXIMIZE

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "adopt", ("exp_avg", "exp_avg_sq")
