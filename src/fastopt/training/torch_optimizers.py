"""What follows a backward pass in torch: fastopt's optimizer, or torch's own as people write it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.optim
from torch import nn

import fastopt.torch
from fastopt import StepInfo
from fastopt.schedules import Schedule
from fastopt.training.config import Config
from fastopt.training.recipes import RIVALS, build_optimizer, build_schedule, rival

Group = dict[str, Any]


class Fastopt:
    """An optimizer of `fastopt.torch`, which clips within its step.

    Parameters
    ----------
    config : Config
        Says which, and its settings.
    groups : list of dict
        Parameter groups, of named parameters.
    total_steps : int
        Steps of the whole run.
    **options
        Further options of the optimizer.

    Attributes
    ----------
    inner
        The optimizer itself.
    """

    def __init__(self, config: Config, groups: list[Group], total_steps: int, **options: Any) -> None:
        self.inner = build_optimizer(
            config,
            fastopt.torch.optimizers.registry(),
            groups,
            total_steps,
            clip_norm=config.max_norm,
            nonfinite="raise",
            **options,
        )

    def step(self, of: int = 1) -> StepInfo:
        """Add the gradients to the mean of so many and drop them; clip and step once it has them all."""
        if self.inner.accumulate != of:
            self.inner.accumulate = of
        self.inner.step()
        self.inner.zero_grad()
        info: StepInfo = self.inner.last_step
        return info

    def state_dict(self) -> dict[str, Any]:
        """Return the state in the layout of fastopt's optimizers on NumPy arrays."""
        return {**self.inner.state_dict(), "state": _as_numpy(self.inner)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.inner.load_state_dict(state_dict)


class Torch:
    """An optimizer of `torch.optim`, with clipping by norm before and zeroing after it.

    Parameters
    ----------
    config, groups, total_steps, **options
        As for :class:`Fastopt`.

    Attributes
    ----------
    inner
        The optimizer itself.
    """

    def __init__(self, config: Config, groups: list[Group], total_steps: int, **options: Any) -> None:
        arguments = RIVALS[rival(config.optimizer)]
        self._schedule: Schedule = build_schedule(config, total_steps)
        self._max_norm = config.max_norm
        self.inner = build_optimizer(
            config, vars(torch.optim), groups, total_steps, lr=config.lr, **arguments, **options
        )
        self._parameters = [parameter for group in self.inner.param_groups for parameter in group["params"]]
        self._step_count = self._added = 0

    def step(self, of: int = 1) -> StepInfo:
        """Leave the gradients to be added to, as torch does; divide their sum, clip, step and drop it at the last."""
        lr = self._schedule(self._step_count)
        self._added += 1
        if self._added < of:
            return StepInfo(lr, None, False, False)
        self._added = 0
        if of > 1:
            torch._foreach_div_([parameter.grad for parameter in self._parameters if parameter.grad is not None], of)
        norm = nn.utils.clip_grad_norm_(self._parameters, self._max_norm).item()
        if not np.isfinite(norm):
            raise FloatingPointError(f"the norm of the gradients is {norm}")
        for group in self.inner.param_groups:
            group["lr"] = lr
        self.inner.step()
        self.inner.zero_grad()
        self._step_count += 1
        return StepInfo(lr, norm, norm > self._max_norm, False)

    def state_dict(self) -> dict[str, Any]:
        """Return the state in the layout of fastopt's optimizers on NumPy arrays."""
        return {**self.inner.state_dict(), "state": _as_numpy(self.inner), "step_count": self._step_count}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        state = {
            index: {name: torch.as_tensor(value) for name, value in entries.items()}
            for index, entries in state_dict["state"].items()
        }
        self.inner.load_state_dict({"state": state, "param_groups": state_dict["param_groups"]})
        self._step_count = state_dict["step_count"]


def _as_numpy(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """Return each parameter's state: arrays that share its memory, and numbers."""
    return {
        index: {name: value.numpy() if value.ndim else value.item() for name, value in entries.items()}
        for index, entries in optimizer.state_dict()["state"].items()
    }
