"""The step during the backward pass: each parameter as soon as its gradient is complete, while it is in the cache."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from fastopt.torch.optimizer import Optimizer
from fastopt.torch.stepper import Stepper


class InBackward:
    """What `step_in_backward` returns."""

    def __init__(self, steppers: list[Stepper], handles: list[RemovableHandle]) -> None:
        self._steppers = steppers
        self._handles = handles

    def remove(self) -> None:
        """Go back to stepping after the backward pass."""
        for handle in self._handles:
            handle.remove()
        for stepper in self._steppers:
            stepper.undo()


def step_in_backward(optimizer: Optimizer) -> InBackward:
    """Update each parameter in the backward pass, as soon as its gradient is complete, and free the gradient.

    The gradients are never all there at once, which saves their memory, and each is still in the cache when it is used.
    Training loops stay as they are: `optimizer.step()` finds nothing left to do, but counts for schedulers and
    schedules; `optimizer.zero_grad()` finds nothing to zero.

    The states are made now, not by the first step: what is allocated for good between gradients that come and go leaves
    gaps that the next gradients do not fit into.

    Parameters
    ----------
    optimizer
        Of `fastopt.torch`; its options may change between backward passes. One backward pass makes one step: gradients
        cannot be accumulated over several.

    Returns
    -------
    InBackward
        Its `remove()` undoes this.

    Raises
    ------
    TypeError
        If the optimizer is not one of `fastopt.torch`.
    ValueError
        If it clips by norm or watches for gradients that are not finite: both need all gradients at once.
    RuntimeError
        If a parameter is not supported (device, layout, dtype).

    Notes
    -----
    The step takes a gradient as it leaves the backward pass. What changes gradients afterwards comes too late: a
    `torch.amp.GradScaler`, and the averaging of `DistributedDataParallel`. (`fully_shard` averages before.)
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: expected one of fastopt.torch, got {type(optimizer).__name__}")
    check_needs_no_norm(optimizer)
    steppers = [
        Stepper(optimizer, [(number, [param])])
        for number, params in optimizer._parts()
        for param in params
        if param.requires_grad
    ]
    try:
        for stepper in steppers:
            stepper.prepare_ahead()
    except Exception:
        for stepper in steppers:
            stepper.undo()
        raise
    handles = [
        stepper.params[0].register_post_accumulate_grad_hook(stepping(optimizer, stepper))  # type: ignore[no-untyped-call]
        for stepper in steppers
    ]
    return InBackward(steppers, handles)


def stepping(optimizer: Optimizer, stepper: Stepper) -> Callable[[Tensor], None]:
    """Return the hook that steps one parameter."""

    def hook(param: Tensor) -> None:
        check_needs_no_norm(optimizer)
        optimizer.last_step = stepper.step()
        param.grad = None

    return hook


def check_needs_no_norm(optimizer: Optimizer) -> None:
    """Raise `ValueError` if a step needs all gradients."""
    if optimizer.clip_norm is not None or optimizer.nonfinite != "propagate":
        raise ValueError(
            "step_in_backward: clip_norm and nonfinite need all gradients at once, but each is freed in the backward "
            "pass; use clip_value, or step after the backward pass"
        )
