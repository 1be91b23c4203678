"""The base of the optimizers for torch: torch's bookkeeping around the kernels' step."""

from __future__ import annotations

import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.optim.optimizer as torch_optimizer
from torch import Tensor

from fastopt.hyperparameters import SIMPLE, Schedule, at_step, is_scheduled
from fastopt.optimizer import Optimizer as Method
from fastopt.optimizer import StepInfo, clipping_at
from fastopt.torch.stepper import Group, Stepper

BEYOND_TORCH = ("clip_norm", "clip_value", "nonfinite", "zero_grad_in_step", "state_dtype")

REFUSED = ("capturable", "differentiable")
"""Options of torch that say how a step is run, in ways that this one cannot be."""


class Uncast:
    """A state on its way through torch's `load_state_dict`, which would cast a tensor to the parameter's dtype."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def restored(self, param: Tensor) -> Any:
        """Return a copy beside the parameter, so that no two optimizers share a state."""
        if isinstance(self.value, np.ndarray):
            return torch.tensor(self.value, device=param.device)
        if isinstance(self.value, Tensor):
            return self.value.detach().to(param.device, copy=True)
        return self.value


class Optimizer(torch.optim.Optimizer):
    """Makes a drop-in twin of a class of `torch.optim`: derive from this and from it, and name the `method`.

    Parameters
    ----------
    params, args, options
        As in `torch.optim`. `foreach` and `fused` change nothing; `capturable` and `differentiable` are refused.
        A number may be a schedule: a callable that maps the number of steps taken so far to the value.
    clip_norm, clip_value, nonfinite
        As in `fastopt.Optimizer`.
    zero_grad_in_step
        Zero the gradients in the step's own pass over memory; `zero_grad(set_to_none=False)` is not needed then.
    state_dtype
        `torch.float32` keeps the states of bfloat16 and float16 parameters in float32; the default is the
        parameter's dtype, as in torch.

    Attributes
    ----------
    last_step : StepInfo or None
        Learning rate of the first group, norm of the gradients before clipping, whether they were clipped, whether the
        step was skipped.
    step_count : int
        How many steps were taken, which is what schedules go by.

    Raises
    ------
    ValueError, TypeError
        As `torch.optim` raises, and for an option beyond torch that is out of bounds.
    """

    method: ClassVar[type[Method]]
    """The optimizer's description, shared with the NumPy frontend."""

    takes_sparse: ClassVar[bool] = False
    """Whether gradients may be sparse, as in the `torch.optim` class."""

    _step_supports_amp_scaling = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "method" not in vars(cls):  # someone's own subclass of one of ours
            if "__init__" in vars(cls):
                own_parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
                cls.__signature__ = inspect.Signature(own_parameters)
            return
        torch_class = next(base for base in cls.__mro__ if base.__module__.startswith("torch.optim."))
        cls._torch_signature = inspect.signature(torch_class)
        options = inspect.signature(cls.method).parameters.values()
        cls._extras = {
            option.name: option.default
            for option in options
            if option.kind is not option.VAR_KEYWORD and option.name not in cls._torch_signature.parameters
        }
        own = inspect.signature(Optimizer.__init__).parameters
        keyword_only = [own[name] for name in BEYOND_TORCH] + [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
            for name, default in cls._extras.items()
        ]
        cls.__signature__ = cls._torch_signature.replace(
            parameters=[*cls._torch_signature.parameters.values(), *keyword_only]
        )

    _torch_signature: ClassVar[inspect.Signature]
    _extras: ClassVar[dict[str, Any]]
    """Options, with their defaults, that the NumPy frontend has and torch has not."""
    __signature__: ClassVar[inspect.Signature]

    def __init__(
        self,
        params: Any,
        *args: Any,
        clip_norm: float | Schedule | None = None,
        clip_value: float | Schedule | None = None,
        nonfinite: str = "propagate",
        zero_grad_in_step: bool = False,
        state_dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        if state_dtype not in (None, torch.float32):
            raise ValueError(f"Invalid state_dtype: expected None or torch.float32, got {state_dtype}")
        clipping_at(0, clip_norm, clip_value, nonfinite)
        self.clip_norm = clip_norm
        self.clip_value = clip_value
        self.nonfinite = nonfinite
        self.zero_grad_in_step = zero_grad_in_step
        self.state_dtype = state_dtype
        self.last_step: StepInfo | None = None
        self.step_count = 0
        self._stepper: Stepper | None = None
        given = {name: options.pop(name, default) for name, default in self._extras.items()}
        try:
            bound = self._torch_signature.bind(params, *args, **options)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}.__init__() {error}") from None
        # torch checks the values that schedules start from; then the schedules take their places.
        schedules = {name: value for name, value in bound.arguments.items() if is_scheduled(value)}
        self._over_defaults = {**given, **schedules}
        bound.arguments.update((name, at_step(value, 0)) for name, value in schedules.items())
        super().__init__(*bound.args, **bound.kwargs)
        if state_dtype is not None:
            # Adagrad's first states are in the parameter's dtype, rounded; others come with the first step.
            self.state.clear()

    # ---- torch's bookkeeping ----

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as `torch.optim` does; its options are checked too."""
        self.defaults.update(self._over_defaults)
        if isinstance(param_group, dict):
            self._checked_options({**self.defaults, **param_group})
        super().add_param_group(param_group)
        params = self.param_groups[-1]["params"]
        if len(set(params)) < len(params):
            del self.param_groups[-1]
            raise ValueError("some parameters appear more than once in a parameter group")

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            **{name: getattr(self, name) for name in BEYOND_TORCH},
            "step_count": self.step_count,
            "last_step": self.last_step,
            "_over_defaults": self._over_defaults,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._stepper = None
        for param, entry in state["state"].items():
            if isinstance(entry, dict):
                entry.update((name, v.restored(param)) for name, v in entry.items() if isinstance(v, Uncast))
        super().__setstate__(state)
        for group in self.param_groups:
            for name, default in self.defaults.items():
                group.setdefault(name, default)
            for name in REFUSED:
                if name in group:
                    group[name] = False

    def state_dict(self) -> dict[str, Any]:
        """Return the state as `torch.optim` does; where an option is a schedule, `"step_count"` says how far it is."""
        state_dict: dict[str, Any] = super().state_dict()
        if any(is_scheduled(group[name]) for group in self.param_groups for name in self.defaults):
            state_dict["step_count"] = self.step_count
        return state_dict

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state dict of this class, of its `torch.optim` or of its NumPy twin.

        As in torch, but a state keeps its dtype and becomes this optimizer's own copy.
        """
        state_dict = dict(state_dict)
        hooks = self._optimizer_load_state_dict_pre_hooks
        for hook in hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        protected = {
            key: {name: Uncast(value) for name, value in entry.items()} if isinstance(entry, dict) else entry
            for key, entry in state_dict["state"].items()
        }
        self._optimizer_load_state_dict_pre_hooks = OrderedDict()
        try:
            super().load_state_dict({**state_dict, "state": protected})
        finally:
            self._optimizer_load_state_dict_pre_hooks = hooks
        entries = [entry for entry in state_dict["state"].values() if isinstance(entry, dict)]
        steps = [float(entry["step"]) for entry in entries if "step" in entry]
        self.step_count = state_dict.get("step_count", int(max(steps, default=self.step_count)))

    # ---- the step ----

    @staticmethod
    def profile_hook_step(func: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `step` as torch does, for its hooks and its profiler; but where there is neither, skip the wrapper.

        (It costs more than a small step.)
        """
        watched = torch.optim.Optimizer.profile_hook_step(func)

        @functools.wraps(func)
        def step(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
            if (
                torch.autograd.profiler._is_profiler_enabled
                or self._optimizer_step_pre_hooks
                or self._optimizer_step_post_hooks
                or torch_optimizer._global_optimizer_pre_hooks
                or torch_optimizer._global_optimizer_post_hooks
            ):
                return watched(self, *args, **kwargs)
            result = func(self, *args, **kwargs)
            self._optimizer_step_code()
            return result

        return step

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters that have a gradient.

        Parameters
        ----------
        closure
            Computes the loss and the gradients anew; optional.

        Returns
        -------
        The closure's result, or None.

        Raises
        ------
        RuntimeError
            If a parameter or gradient is not supported (device, layout, dtype).
        ValueError
            If an edited option, or the value of a schedule, is out of bounds.
        FloatingPointError
            If a gradient is not finite and `nonfinite="raise"`. Nothing has been changed in any of these cases.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._stepper is None or not self._stepper.is_current():
            self._stepper = Stepper(self, self._parts())
        self.last_step = self._stepper.step()
        if not self.last_step.skipped:
            self.step_count += 1
        return loss

    def _parts(self) -> list[tuple[int, list[Tensor]]]:
        """Return the parameters of every group, with its number."""
        return [(number, group["params"]) for number, group in enumerate(self.param_groups)]

    def _checked_options(self, group: Mapping[str, Any]) -> Group:
        """Return a group's options as numbers, at this step.

        (The group may have entries of others too: a scheduler's, the user's.)
        """
        for name in REFUSED:
            if group.get(name):
                raise ValueError(f"{name}=True is not supported by fastopt: its step is neither captured nor recorded")
        options = {name: group[name] for name in self.defaults}
        for name, value in options.items():
            if type(value) not in SIMPLE:
                options[name] = as_number(at_step(value, self.step_count))
        self.method.check(options)
        return options

    def _is_moving(self, group: Mapping[str, Any]) -> bool:
        """Whether an option of the group can change without being replaced."""
        return any(type(group[name]) not in SIMPLE and is_moving(group[name]) for name in self.defaults)

    def _label(self, param: Tensor) -> str:
        """Return what to call a parameter in messages: its name, if it has one."""
        number, position = next(
            (number, position)
            for number, params in self._parts()
            for position, other in enumerate(params)
            if other is param
        )
        names = self.param_groups[number].get("param_names")
        return f"parameter {names[position]!r}" if names else f"param_groups[{number}]['params'][{position}]"


def is_moving(value: Any) -> bool:
    """Whether an option can change without being replaced: a schedule, a tensor, a pair with such."""
    if isinstance(value, (tuple, list)):
        return any(map(is_moving, value))
    return callable(value) or isinstance(value, Tensor)


def as_number(value: Any) -> Any:
    """Return the number in a 1-element tensor, anything else as it is."""
    if isinstance(value, Tensor):
        return value.item()
    if isinstance(value, (tuple, list)):
        return tuple(as_number(entry) for entry in value)
    return value
