"""LAMB."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastopt.methods.base import (
    DECOUPLED,
    MAXIMIZE,
    MOMENT,
    SQUARE,
    Careful,
    Decays,
    Flag,
    Quantity,
    learning_rate,
)


class LAMB(Careful):
    """Adam with a rate for each tensor, so that all change by the same part of their norm, for large batches.

    ``m = beta1*m + (1-beta1)*g``, ``v = beta2*v + (1-beta2)*g**2``,
    ``w = m/(1-beta1**t) / (sqrt(v/(1-beta2**t)) + eps) + weight_decay*p``,
    ``p -= lr * ratio * w`` with ``ratio = |p|/|w|``, 1 where a norm is 0.

    As in the package timm, whose `max_grad_norm`, 1 by default, is `clip_norm` here (to the norm 1e-6 is added, as
    torch does), and whose `decoupled_decay` and `caution` are `decoupled_weight_decay` and `cautious`; but t is a
    parameter's own.

    References
    ----------
    You, Li, Reddi, Hseu, Kumar, Bhojanapalli, Song, Demmel, Keutzer & Hsieh 2020, "Large batch optimization for deep
    learning: training BERT in 76 minutes".
    """

    use = "Transformers with batches of tens of thousands of rows; with ordinary batches `AdamW` is as good and faster."

    states = {"exp_avg": MOMENT, "exp_avg_sq": SQUARE}
    whole_defaults = {"clip_norm": 1.0}
    renamed = {"decoupled_decay": "decoupled_weight_decay", "max_grad_norm": "clip_norm", **Careful.renamed}

    lr = learning_rate(1e-3)
    bias_correction = Flag(True, "Whether m and v are divided by ``1 - beta**t``.")
    betas = Decays((0.9, 0.999), "Decay of the moving averages of g and of its square, in [0, 1).")
    eps = Quantity(1e-6, "Added to the root, at least 0.", words="epsilon value")
    weight_decay = Quantity(0.01, "At least 0.")
    grad_averaging = Flag(True, "Whether g counts as ``(1-beta1)*g`` in m, or as it is.")
    trust_clip = Flag(False, "Whether the ratio is at most 1 (LAMBC).")
    always_adapt = Flag(False, "Whether there is a ratio also where `weight_decay` is 0; otherwise it is 1 there.")
    maximize = MAXIMIZE
    decoupled_weight_decay = DECOUPLED

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "lamb", ("exp_avg", "exp_avg_sq")
