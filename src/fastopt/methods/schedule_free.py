"""Schedule-Free AdamW and SGD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastopt.methods.base import MAXIMIZE, SQUARE, Decays, Flag, Method, Quantity, State, learning_rate


def kept(default: float) -> Quantity:
    """Return a number that the step writes."""
    return Quantity(default, fixed=True, low=float("-inf"))


class ScheduleFree(Method):
    """What both have in common."""

    described = False
    counts_steps = False
    advances = ("k", "weight_sum", "lr_max", "scheduled_lr")

    k = kept(0)
    train_mode = Flag(True, fixed=True)
    weight_sum = kept(0.0)
    lr_max = kept(-1.0)
    scheduled_lr = kept(0.0)

    @classmethod
    def check_groups(cls, groups: Sequence[Mapping[str, Any]]) -> None:
        if not all(group["train_mode"] for group in groups):
            raise RuntimeError("the parameters are where they are used, not where they are trained: call train() first")


WARMUP_STEPS = Quantity(0, "Over how many steps the rate rises to `lr`.")
POWER = Quantity(0.0, "How fast the weights of the average grow with the number of the step: ``weight = k**r * ...``.")
WEIGHT_LR_POWER = Quantity(2.0, "... and with the rate: ``... * (largest rate so far)**weight_lr_power``.")


class ScheduleFreeSGD(ScheduleFree):
    """Gradient descent that needs no schedule: gradients are taken between the iterates z and their average x.

    ``z -= lr*g``, ``x = (1-c)*x + c*z``, ``p = (1-momentum)*z + momentum*x``, c being the weight of the step among all.
    `eval()` brings the parameters from p to x, `train()` back. As in Meta's package schedulefree (`SGDScheduleFree`),
    but one that was just made is in training already.

    References
    ----------
    Defazio, Yang, Mehta, Mishchenko, Khaled & Cutkosky 2024, "The road less scheduled".
    """

    use = "Where the length of the training is not known in advance and `SGD` is the choice; evaluate after `eval()`."

    states = {"z": State(start=None)}

    lr = learning_rate(1.0)
    momentum = Quantity(0.9, "How much of x is in p, in (0, 1).", high=1.0)
    weight_decay = Quantity(0.0, "At least 0.")
    warmup_steps = WARMUP_STEPS
    r = POWER
    weight_lr_power = WEIGHT_LR_POWER
    maximize = MAXIMIZE

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "schedule_free_sgd", ("z",)

    @staticmethod
    def place_of_use(options: Mapping[str, Any]) -> tuple[str, float]:
        return "z", options["momentum"]

    @classmethod
    def check_together(cls, options: Mapping[str, Any]) -> None:
        if not options["momentum"] > 0:
            raise ValueError(f"Invalid momentum value: {options['momentum']}; it must be above 0")


class ScheduleFreeAdamW(ScheduleFree):
    """AdamW that needs no schedule: gradients are taken between the iterates z and their average x.

    ``v = beta2*v + (1-beta2)*g**2``, ``u = g / (sqrt(v/(1-beta2**k)) + eps) + weight_decay*p``,
    ``z -= lr*u``, ``x = (1-c)*x + c*z``, ``p = (1-beta1)*z + beta1*x``, c being the weight of the step among all.
    `eval()` brings the parameters from p to x, `train()` back. As in Meta's package schedulefree (`AdamWScheduleFree`),
    but one that was just made is in training already.

    References
    ----------
    Defazio, Yang, Mehta, Mishchenko, Khaled & Cutkosky 2024, "The road less scheduled".
    """

    use = (
        "Where the length of the training is not known in advance, or every point should be as good as the end of a "
        "schedule; evaluate after `eval()`."
    )

    states = {"z": State(start=None), "exp_avg_sq": SQUARE}

    lr = learning_rate(0.0025)
    betas = Decays((0.9, 0.999), "How much of x is in p, in (0, 1), and decay of the moving average of g's square.")
    eps = Quantity(1e-8, "Added to the root, at least 0.", words="epsilon value")
    weight_decay = Quantity(0.0, "At least 0.")
    warmup_steps = WARMUP_STEPS
    r = POWER
    weight_lr_power = WEIGHT_LR_POWER
    maximize = MAXIMIZE

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "schedule_free_adamw", ("z", "exp_avg_sq")

    @staticmethod
    def place_of_use(options: Mapping[str, Any]) -> tuple[str, float]:
        return "z", options["betas"][0]

    @classmethod
    def check_together(cls, options: Mapping[str, Any]) -> None:
        if not options["betas"][0] > 0:
            raise ValueError(f"Invalid beta parameter at index 0: {options['betas'][0]}; it must be above 0")
