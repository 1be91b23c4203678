"""The step during the backward pass: each parameter as soon as its gradient is complete, while it is in the cache."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from fastopt import _core
from fastopt.backends.torch import Tensors
from fastopt.engine import Buffers, Group
from fastopt.torch.optimizer import Optimizer

Owner = TypeVar("Owner")


class InBackward:
    """What `step_in_backward` returns."""

    def __init__(self, optimizer: Optimizer, steps: list[StepOfOne]) -> None:
        self._optimizer = optimizer
        self._steps = steps
        self._handles: list[RemovableHandle] = [
            step.param.register_post_accumulate_grad_hook(hook_of(step, StepOfOne.__call__))  # type: ignore[no-untyped-call]
            for step in steps
        ]
        optimizer._in_backward = (*optimizer._in_backward, *steps)

    def remove(self) -> None:
        """Go back to stepping after the backward pass."""
        for handle in self._handles:
            handle.remove()
        self._optimizer._in_backward = tuple(step for step in self._optimizer._in_backward if step not in self._steps)
        for step in self._steps:
            step.engine.undo()


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
        Its `remove()` undoes this. While there is neither this nor the optimizer any more, gradients just accumulate.

    Raises
    ------
    TypeError
        If the optimizer is not one of `fastopt.torch`.
    ValueError
        If what it does depends on all parameters together (`Prodigy`, `ScheduleFreeAdamW`); or if it clips by norm or
        watches for gradients that are not finite: both need all gradients at once.
    RuntimeError
        If a parameter is not supported (device, layout, dtype).

    Notes
    -----
    The step takes a gradient as it leaves the backward pass. What changes gradients afterwards comes too late: a
    `torch.amp.GradScaler`, and the averaging of `DistributedDataParallel`. (`fully_shard` averages before.)
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer: expected one of fastopt.torch, got {type(optimizer).__name__}")
    steps = [
        StepOfOne(optimizer, number, position)
        for number, group in enumerate(optimizer.param_groups)
        for position, param in enumerate(group["params"])
        if param.requires_grad
    ]
    try:
        for step in steps:
            check_is_of_one(step.engine)
            check_needs_no_norm(step.engine.options())
            step.engine.bind_all()
    except BaseException:
        for step in steps:
            step.engine.undo()
        raise
    return InBackward(optimizer, steps)


def hook_of(owner: Owner, call: Callable[[Owner, Tensor], None]) -> Callable[[Tensor], None]:
    """Return what a parameter is to call, as long as the owner is there.

    Python's garbage collector does not see what a parameter's hooks hold: a hook that held the optimizer, which holds
    the parameter, would keep both for ever.
    """
    known = weakref.ref(owner)

    def hook(param: Tensor) -> None:
        found = known()
        if found is not None:
            call(found, param)

    return hook


class TensorOfOne(Tensors):
    """The step of one parameter, which frees the gradient."""

    def calls(self, grads: list[Any], bound: dict[int, Buffers], zero: bool) -> tuple[bool, list[Any], list[Any]]:
        """Add that the gradient is freed: no interrupt comes between the step and this."""
        zero, after, after_zeroing = super().calls(grads, bound, zero)
        return zero, [*after, (setattr, self.params[0], "grad", None)], after_zeroing


class StepOfOne:
    """Steps one parameter. The optimizer keeps it."""

    def __init__(self, optimizer: Optimizer, number: int, position: int) -> None:
        self.optimizer = weakref.ref(optimizer)
        self.number = number
        self.position = position
        group = optimizer.param_groups[number]
        self.param: Tensor = group["params"][position]
        self.engine = TensorOfOne(optimizer, [(group, [self.param])])

    def __call__(self, param: Tensor) -> None:
        """Step, and free the gradient."""
        optimizer = self.optimizer()
        if optimizer is None:
            return
        with optimizer._turn.to_step:
            self.follow(optimizer)
            check_needs_no_norm(self.engine.options())
            optimizer.last_step = optimizer._stepped(self.engine, None)
            if optimizer.last_step.skipped:
                param.grad = None

    def follow(self, optimizer: Optimizer) -> None:
        """Find the parameter's group: groups may have been put elsewhere, or replaced, as in loading a checkpoint."""
        groups, (known,) = optimizer.param_groups, self.engine.groups
        if self.number < len(groups) and groups[self.number] is known:
            params = known["params"]
            if self.position < len(params) and params[self.position] is self.param:
                return
        for number, group in enumerate(groups):
            for position, param in enumerate(group["params"]):
                if param is self.param:
                    self.number, self.position = number, position
                    if group is not known:
                        self.engine = TensorOfOne(optimizer, [(group, [param])])
                    return
        raise RuntimeError("step_in_backward: a parameter is none of the optimizer's any more; remove() this first")


def check_is_of_one(engine: TensorOfOne) -> None:
    """Raise `ValueError` if a parameter's step depends on all the others'."""
    engine.options()
    if engine.method.advances or any(_core.SCOPES.get(rule) == "plan" for rule, _ in engine.rules):
        raise ValueError(
            f"step_in_backward: what {engine.method.__name__} does depends on all parameters together, but each is "
            "stepped by itself; step after the backward pass"
        )


def check_needs_no_norm(whole: Group) -> None:
    """Raise `ValueError` if a step needs all gradients, or those of several backward passes."""
    if whole["accumulate"] != 1:
        raise ValueError("step_in_backward: with accumulate a step needs the gradients of several backward passes")
    if whole["clip_norm"] is not None or whole["nonfinite"] != "propagate":
        raise ValueError(
            "step_in_backward: clip_norm and nonfinite need all gradients at once, but each is freed in the backward "
            "pass; use clip_value, or step after the backward pass"
        )
