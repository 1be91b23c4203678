"""The base of the optimizers for torch: torch's bookkeeping around the kernels' step."""

from __future__ import annotations

import functools
import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
import torch.optim.optimizer as torch_optimizer
from torch import Tensor

from fastopt._turn import Turn
from fastopt.backends.torch import Tensors, complaint, decoded
from fastopt.engine import MEAN, Face, StepInfo, WholeOption, scales_of
from fastopt.hyperparameters import as_count, at_step, is_scheduled
from fastopt.methods.base import WHOLE_OF_TORCH, Method
from fastopt.modes import TwoModes
from fastopt.torch.averaging import lerp_

REFUSED = ("capturable", "differentiable")
"""Options of torch that say how a step is run, in ways that this one cannot be."""


class Uncast:
    """A state on its way through torch's `load_state_dict`, which would cast a tensor to the parameter's dtype."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def restored(self, name: str, param: Tensor) -> Any:
        """Return a copy beside the parameter, so that no two optimizers share a state; a "step" has no shape."""
        if name == "step" and isinstance(self.value, Tensor):
            return self.value.detach().clone().reshape(())
        if isinstance(self.value, np.ndarray):
            return torch.tensor(self.value, device=param.device)
        if isinstance(self.value, Tensor):
            return self.value.detach().to(param.device, copy=True)
        return self.value


class Optimizer(Face, torch.optim.Optimizer):
    """What every optimizer for torch has in common. Its classes are made from their descriptions (`fastopt.methods`).

    Parameters
    ----------
    params, args, options
        As in `torch.optim`. `foreach` and `fused` change nothing; `capturable` and `differentiable` are refused.
        A number may be a schedule: a callable that maps the number of steps taken so far to the value.
    clip_norm, clip_value, nonfinite, state_dtype, ema
        As in `fastopt.Optimizer`.
    zero_grad_in_step
        Zero the gradients in the step's own pass over memory; `zero_grad(set_to_none=False)` is not needed then.

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

    whole = WHOLE_OF_TORCH
    zero_grad_in_step = WholeOption("zero_grad_in_step")
    master = WholeOption("master")
    rounding = WholeOption("rounding")

    twin: ClassVar[type[torch.optim.Optimizer] | None]
    """The class of torch that this derives from."""

    extras: ClassVar[dict[str, Any]]
    """Options, with their defaults, that torch's class has not."""

    __signature__: ClassVar[inspect.Signature]

    _in_backward: tuple[Any, ...] = ()
    """What steps parameters in the backward pass: see `step_in_backward`. Copies and pickles have none."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "method" not in vars(cls) and "__init__" in vars(cls):  # someone's own subclass of one of ours
            cls.__signature__ = inspect.Signature(list(inspect.signature(cls.__init__).parameters.values())[1:])

    def __init__(self, *args: Any, **options: Any) -> None:
        cls = type(self)
        signature = next(vars(base)["signature"] for base in cls.__mro__ if "signature" in vars(base))
        try:
            bound = signature.bind(*args, **options)
        except TypeError as error:
            raise TypeError(f"{cls.__name__}.__init__() {error}") from None
        self.step_count = 0
        self.last_step: StepInfo | None = None
        self._engine: Tensors | None = None
        self._copies: dict[Tensor, Tensor] = {}
        self._turn = Turn()
        given = bound.arguments
        self._whole = {name: given.pop(name, option.default) for name, option in self.whole.items()}
        self._check_whole(self._whole)
        extras = {name: given.pop(name, default) for name, default in self.extras.items()}
        # torch checks the values that schedules start from; then the schedules take their places.
        schedules = {name: value for name, value in given.items() if name != "params" and is_scheduled(value)}
        for name, value in schedules.items():
            given[name] = self.method.options[name].at(value, 0) if name in self.method.options else value
        self._over_defaults = {**extras, **schedules}
        if self.twin is None:
            defaults = {name: given.get(name, default) for name, default in self.method.defaults().items()}
            torch.optim.Optimizer.__init__(self, given["params"], defaults)
        else:
            self.twin.__init__(self, *bound.args, **bound.kwargs)
        for group in self.param_groups:
            # Adagrad's first states are of the parameter's dtype, rounded, and shape; ours come with the first step.
            _, names = self.method.rule(self.method.at(group, 0))
            for param in group["params"]:
                unused = self.method.states.keys() & self.state.get(param, {}).keys() - set(names)
                if unused or self._whole["state_dtype"] is not None:
                    self.state.pop(param, None)

    # ---- torch's bookkeeping ----

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as `torch.optim` does; its options are checked too."""
        self.defaults.update(self._over_defaults)
        self.method.complete(self.defaults)
        whole = dict(self._whole)
        if isinstance(param_group, dict):
            for name, value in self._shared().items():
                param_group.setdefault(name, value)
            group = {**self.defaults, **param_group}
            self._check_options(group)
            self._take_whole(group)
        try:
            super().add_param_group(param_group)
        except BaseException:
            self._whole = whole
            raise
        self._write_whole(self.param_groups[-1])

    def _check_options(self, group: Mapping[str, Any]) -> None:
        """Raise `ValueError` unless the options make sense: torch's as in torch (a finite number will do)."""
        self._refuse(group)
        values = self.method.at(group, self.step_count)
        self.method.check(values, edited=self.twin is not None)
        for name in self.extras:
            self.method.options[name].check(name, values[name])
        self.method.check_together(values)

    def _refuse(self, group: Mapping[str, Any]) -> None:
        """Raise `ValueError` if the step is to be run as this one cannot be."""
        for name in REFUSED:
            if group.get(name):
                raise ValueError(f"{name}=True is not supported by fastopt: its step is neither captured nor recorded")

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_whole", "_over_defaults", "step_count", "last_step")
        with self._turn:
            return {**super().__getstate__(), **{name: getattr(self, name) for name in kept}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._engine = None
        self.__dict__.setdefault("_turn", Turn())
        self.__dict__.setdefault("_copies", {})
        for param, entry in state["state"].items():
            if isinstance(entry, dict):
                entry.update((name, v.restored(name, param)) for name, v in entry.items() if isinstance(v, Uncast))
        # (torch looks for a number of steps in every entry: those of gradients added up for a first step have none.)
        means = {param: entry for param, entry in state["state"].items() if is_unstepped(entry)}
        for param in means:
            del state["state"][param]
        super().__setstate__(state)
        self.state.update(means)
        for group in self.param_groups:
            for name, default in self.defaults.items():
                group.setdefault(name, default)
            for name in REFUSED:
                if name in group:
                    group[name] = False
            self._write_whole(group)

    def _entries(self) -> Iterable[Mapping[str, Any]]:
        return [entry for entry in self.state.values() if isinstance(entry, dict)]

    def state_dict(self, *, compressed: bool = False) -> dict[str, Any]:
        """Return the state as `torch.optim` does; where an option is a schedule, `"step_count"` says how far it is.

        Parameters
        ----------
        compressed
            Whether states in 8 bits are given as they are, codes and, under "<name>::scales", a scale for every 32
            elements in memory; otherwise as float32, which `torch.optim` understands.
        """
        with self._turn:
            state_dict: dict[str, Any] = super().state_dict()
            state = {
                key: self._lasting(entry) if isinstance(entry, dict) else entry
                for key, entry in state_dict["state"].items()
            }
            state_dict["state"] = state if compressed else {key: plain_entry(entry) for key, entry in state.items()}
            ours = {*self.method.options, *self.whole}
            if any(is_scheduled(value) for group in self.param_groups for name, value in group.items() if name in ours):
                state_dict["step_count"] = self.step_count
            return state_dict

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state dict of this class, of its `torch.optim` or of its NumPy twin.

        As in torch, but a state keeps its dtype and becomes this optimizer's own copy.

        Raises
        ------
        ValueError, KeyError
            As torch raises, and if a number of steps is none. Nothing has been changed then.
        """
        with self._turn:
            state_dict = dict(state_dict)
            hooks = self._optimizer_load_state_dict_pre_hooks
            for hook in hooks.values():
                state_dict = hook(self, state_dict) or state_dict
            state_dict = {**self.method.translated(state_dict)}
            step_count = self._loaded_step_count(state_dict)
            protected = {
                key: {name: Uncast(value) for name, value in entry.items()} if isinstance(entry, dict) else entry
                for key, entry in state_dict["state"].items()
            }
            before = {
                name: self.__dict__.get(name) for name in ("state", "param_groups", "defaults", "step_count", "_whole")
            }
            self._optimizer_load_state_dict_pre_hooks = OrderedDict()
            try:
                self.step_count = step_count
                super().load_state_dict({**state_dict, "state": protected})
                self._whole = self._whole_options(self.param_groups)
                self._check_whole(self._whole)
                for group in self.param_groups:
                    values = self.method.at(group, step_count)
                    self.method.check(values, edited=True)
            except BaseException:
                self.__dict__.update(before)
                raise
            finally:
                self._optimizer_load_state_dict_pre_hooks = hooks

    def _loaded_step_count(self, state_dict: Mapping[str, Any]) -> int:
        """Return the number of steps taken, checked; where nothing says it, this optimizer's own."""
        entries = [entry for entry in state_dict["state"].values() if isinstance(entry, dict)]
        steps = [as_count(entry["step"], "state_dict: step") for entry in entries if "step" in entry]
        if "step_count" in state_dict:
            return as_count(state_dict["step_count"], "state_dict: step_count")
        return max(steps, default=self.step_count)

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
            If an edited option, or the value of a schedule, is no finite number.
        FloatingPointError
            If a gradient is not finite and `nonfinite="raise"`. Nothing has been changed in any of these cases.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with self._turn.to_step:
            self.last_step = self._stepped(self._current_engine(), None if self._is_a_trial() else self)
        return loss

    _lerp = staticmethod(lerp_)

    def _current_engine(self) -> Tensors:
        """Return the engine of the groups of now."""
        if self._engine is None or not self._engine.is_current(self.param_groups):
            self._engine = Tensors(self, [(group, group["params"]) for group in self.param_groups])
        return self._engine

    def write_copies(self, copies: Mapping[Tensor, Tensor]) -> None:
        """Have each step write a copy of parameters in another precision, in the same pass over memory.

        The copies are written now, too. They replace those of an earlier call, and are not part of a state dict.

        Parameters
        ----------
        copies
            Parameter -> tensor of its shape: float32, bfloat16, float16, or float64 beside float64.

        Raises
        ------
        TypeError, ValueError
            If a key is none of the parameters, or a copy does not fit.
        """
        with self._turn.to_step:
            known = {param for group in self.param_groups for param in group["params"]}
            for param, copy in copies.items():
                if param not in known:
                    raise ValueError("copies: expected parameters of this optimizer as keys, got another tensor")
                label = f"copy of {self._label(param)}"
                if not isinstance(copy, Tensor):
                    raise TypeError(f"{label}: expected a tensor, got {type(copy).__name__}")
                if copy.shape != param.shape:
                    raise ValueError(f"{label}: expected shape {tuple(param.shape)}, got {tuple(copy.shape)}")
                why = complaint(copy)
                if why or copy.is_complex() != param.is_complex():
                    raise TypeError(f"{label} {why or f'is of dtype {copy.dtype}, beside {param.dtype}'}")
            with torch.no_grad():
                for param, copy in copies.items():
                    copy.copy_(param)
            self._copies = dict(copies)
            self._engine = None

    def _stepped(self, engine: Tensors, counter: Optimizer | None) -> StepInfo:
        """Step with the gradients of now, unless a `torch.amp.GradScaler` found that some are not finite."""
        if float(getattr(self, "found_inf", None) or 0.0):
            if engine.options()["zero_grad_in_step"]:
                with torch.no_grad():
                    for param in engine.params:
                        if param.grad is not None:
                            param.grad.zero_()
            lr = at_step(self.param_groups[0]["lr"], self.step_count) if self.param_groups else math.nan
            return StepInfo(lr, None, False, True)
        unscale = 1.0 / float(getattr(self, "grad_scale", None) or 1.0)
        recording = torch.is_grad_enabled()
        try:
            return engine.step([None] * len(engine.params), unscale=unscale, counter=counter)
        except BaseException:
            torch.set_grad_enabled(recording)  # (an interrupt within `no_grad().__enter__` is not undone by torch)
            raise

    def _is_a_trial(self) -> bool:
        """Whether a step is taken only to have the states made, so that it is none for the schedules.

        `torch.distributed.checkpoint` does so, and puts rates of zero in the place of schedules for it.
        """
        return (
            not self.state
            and is_scheduled(self.defaults.get("lr"))
            and all(not is_scheduled(group["lr"]) and group["lr"] == 0 for group in self.param_groups)
        )

    def _label(self, param: Tensor) -> str:
        """Return what to call a parameter in messages: its name, if it has one."""
        for number, group in enumerate(self.param_groups):
            for position, other in enumerate(group["params"]):
                if other is param:
                    names = group.get("param_names")
                    return (
                        f"parameter {names[position]!r}" if names else f"param_groups[{number}]['params'][{position}]"
                    )
        return "a parameter"


def is_unstepped(entry: Any) -> bool:
    """Whether what is kept for a parameter is no more than a mean of gradients, for its first step."""
    return isinstance(entry, dict) and entry.keys() == {MEAN}


def plain_entry(entry: Any) -> Any:
    """Return what is kept for a parameter with states in 8 bits as float32; the same object if there are none."""
    coded = [name for name in entry if scales_of(name) in entry] if isinstance(entry, dict) else []
    if not coded:
        return entry
    scales = set(map(scales_of, coded))
    return {
        name: decoded(value, entry[scales_of(name)]) if name in coded else value
        for name, value in entry.items()
        if name not in scales
    }


def signature_beside(twin: type[torch.optim.Optimizer], method: type[Method]) -> inspect.Signature:
    """Return torch's signature, with the options after it that torch has not."""
    known = inspect.signature(twin).parameters
    beyond = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option.default, annotation=option.annotation)
        for name, option in (method.whole(WHOLE_OF_TORCH) | method.options).items()
        if name not in known and not option.fixed
    ]
    return inspect.Signature([*known.values(), *beyond])


def constructor(signature: inspect.Signature) -> Callable[..., None]:
    """Return an `__init__` with this signature: the command line of Lightning reads that, and not the class's."""

    def __init__(self: Optimizer, *args: Any, **options: Any) -> None:
        Optimizer.__init__(self, *args, **options)

    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    __init__.__signature__ = inspect.Signature([own, *signature.parameters.values()])  # type: ignore[attr-defined]
    return __init__


def made_from(method: type[Method]) -> type[Optimizer]:
    """Return the class that a description is for torch: a drop-in twin of torch's, if that has it."""
    name = vars(method).get("twin")  # (a description that derives from another is another optimizer)
    twin = None if name is None else getattr(torch.optim, name)
    signature = method.signature(WHOLE_OF_TORCH) if twin is None else signature_beside(twin, method)
    known = signature.parameters if twin is None else inspect.signature(twin).parameters
    names = {
        "method": method,
        "whole": method.whole(WHOLE_OF_TORCH),
        "twin": twin,
        "signature": signature,
        "__signature__": signature,
        "__init__": constructor(signature),
        "extras": {name: option.default for name, option in method.options.items() if name not in known},
        "__doc__": method.documentation(WHOLE_OF_TORCH),
        "__module__": "fastopt.torch.optimizers",
    }
    bases = (Optimizer,) if twin is None else (Optimizer, twin)
    return type(method.__name__, (TwoModes, *bases) if "train_mode" in method.options else bases, names)
