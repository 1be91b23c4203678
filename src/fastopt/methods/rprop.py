"""Rprop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastopt.methods.base import MAXIMIZE, Method, Numbers, State, learning_rate


class Rprop(Method):
    """Rprop: of the gradient the sign alone, with a step size for each entry. For full batches.

    The size starts as lr, and is multiplied by ``etas[1]`` where the gradient has kept its sign, by ``etas[0]`` where
    that has changed, but stays within `step_sizes`. ``p -= sign(g) * size``, where g counts as 0 (in this step, and as
    the one before in the next) if its sign has changed.

    As in `torch.optim`. (In the paper a step that overshot is taken back.)

    References
    ----------
    Riedmiller & Braun 1993, "A direct adaptive method for faster backpropagation learning: the RPROP algorithm".
    """

    use = "Full batches only, of small and noiseless problems: with mini-batches the signs are noise."

    twin = "Rprop"
    twin_flags = ("*", "capturable", "foreach", "differentiable")
    states = {"prev": State(), "step_size": State("lr")}

    lr = learning_rate(1e-2)
    etas = Numbers((0.5, 1.2), "What sizes are multiplied by, ``0 < etas[0] < 1 < etas[1]``.")
    step_sizes = Numbers((1e-6, 50.0), "The smallest and the largest size.")
    maximize = MAXIMIZE

    @staticmethod
    def rule(options: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        return "rprop", ("prev", "step_size")

    @classmethod
    def check_together(cls, options: Mapping[str, Any]) -> None:
        shrinking, growing = options["etas"]
        if not 0 < shrinking < 1 < growing:
            raise ValueError(f"Invalid eta values: {shrinking}, {growing}")
