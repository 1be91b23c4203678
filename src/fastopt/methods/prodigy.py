"""Prodigy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastopt.methods.base import (
    MAXIMIZE,
    MOMENT,
    SQUARE,
    Decays,
    Flag,
    Limit,
    Maybe,
    Method,
    Quantity,
    State,
    learning_rate,
)


def kept(start: str = "") -> Maybe:
    """Return a number that the step writes, and that starts as an option says, or else as 0."""
    return Maybe(None if start else 0.0, fixed=True, low=-math.inf, start=start)


class Prodigy(Method):
    """Adam that finds its own rate d, from how far the parameters have come from where they started, p0.

    With ``rate = d*lr``, times the corrections of bias if `use_bias_correction` says so, and sums over all parameters:
    ``numerator = beta3*numerator + sum(d/d0 * rate * g*(p0-p))``, ``s = beta3*s + d/d0 * rate * g``,
    ``m = beta1*m + (1-beta1)*d*g``, ``v = beta2*v + (1-beta2)*(d*g)**2``,
    ``d = min(max(d, d_coef * numerator / sum(|s|)), d*growth_rate)``, ``p -= rate * m / (sqrt(v) + d*eps)``.

    All groups have one `lr`, or 0, which leaves a group as it is. As in the package prodigyopt, whose `decouple` is
    `decoupled_weight_decay` here, and which there is no `slice_p` of.

    References
    ----------
    Mishchenko & Defazio 2024, "Prodigy: an expeditiously adaptive parameter-free learner".
    """

    use = (
        "Fine-tuning where no rate is known and none is to be searched for, with a cosine schedule; twice AdamW's "
        "states and a pass more."
    )

    states = {"exp_avg": MOMENT, "exp_avg_sq": SQUARE, "s": MOMENT, "p0": State(start=None)}
    advances = ("k", "d", "d_max", "d_numerator", "d_denom", "d_hat")
    shared = advances
    renamed = {"decouple": "decoupled_weight_decay"}

    lr = learning_rate(1.0)
    betas = Decays((0.9, 0.999), "Decay of the moving averages of d*g and of its square, in [0, 1).")
    beta3 = Maybe(None, "Decay of the sums that d is found by; by default the root of beta2.", high=1.0)
    eps = Quantity(1e-8, "Times d, added to the root, at least 0.", words="epsilon value")
    weight_decay = Quantity(0.0, "At least 0.")
    decoupled_weight_decay = Flag(
        True,
        "Whether `weight_decay` shrinks the parameters, ``p *= 1 - rate*weight_decay``, instead of adding "
        "``weight_decay*p`` to the gradient.",
    )
    use_bias_correction = Flag(False, "Whether the rate is corrected as Adam's.")
    safeguard_warmup = Flag(False, "Whether s is without `lr`, for schedules that begin with a small one.")
    d0 = Quantity(1e-6, "What d starts as, above 0.")
    d_coef = Quantity(1.0, "Factor of what d is found to be.")
    growth_rate = Limit(math.inf, "The most that d grows by in a step.")
    maximize = MAXIMIZE
    k = Quantity(0, fixed=True)
    d = kept("d0")
    d_max = kept("d0")
    d_numerator = kept()
    d_denom = kept()
    d_hat = kept()

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "prodigy", ("exp_avg", "exp_avg_sq", "s", "p0")

    @classmethod
    def check_together(cls, options: Mapping[str, Any]) -> None:
        if not options["d0"] > 0:
            raise ValueError(f"Invalid d0 value: {options['d0']}; it must be above 0")

    @classmethod
    def check_groups(cls, groups: Sequence[Mapping[str, Any]]) -> None:
        for name in ("lr", "d", "d_max", "d_numerator"):
            found = {group[name] for group in groups if name != "lr" or group["lr"] != 0}
            if len(found) > 1:
                raise ValueError(f"{name}: expected the same in every group, got {sorted(found)}")

    @classmethod
    def translated(cls, state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
        """Bring the arrays of prodigyopt, which are flat, or a number where they are zero, to the parameter's shape."""
        state_dict = super().translated(state_dict)
        state = {index: dict(entry) for index, entry in state_dict["state"].items()}
        for entry in state.values():
            if not {"exp_avg_sq", "s", "p0"} <= entry.keys():
                continue
            zeros, s, p0 = entry["exp_avg_sq"] * 0, entry["s"], entry["p0"]
            if math.prod(s.shape) != math.prod(zeros.shape):
                raise ValueError("state_dict: is of a Prodigy with slice_p, which there is none of here")
            entry["s"], entry["p0"] = s.reshape(zeros.shape), p0.reshape(zeros.shape) if p0.ndim else zeros + p0
            entry.setdefault("exp_avg", zeros)
        return {**state_dict, "state": state}
