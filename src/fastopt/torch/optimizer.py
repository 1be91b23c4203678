"""The base of the optimizers for torch: torch's bookkeeping around the kernels' step."""

from __future__ import annotations

import functools
import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.optim.optimizer as torch_optimizer
from torch import Tensor
from torch.autograd.graph import increment_version

from fastopt import _core
from fastopt.clipping import clip_coefficient
from fastopt.hyperparameters import Schedule, at_step, is_scheduled
from fastopt.optimizer import Optimizer as Method
from fastopt.optimizer import StepInfo, clipping_at, cohorts_of
from fastopt.torch.clipping import thread_count
from fastopt.torch.work import DTensor, Work, check, dtype_index, is_plain, work_on

Group = dict[str, Any]

BEYOND_TORCH = ("clip_norm", "clip_value", "nonfinite", "zero_grad_in_step", "state_dtype")

gradient_of = attrgetter("grad")
dtype_of = attrgetter("dtype")


class Uncast:
    """A state on its way through torch's `load_state_dict`, which would cast a tensor to the parameter's dtype."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def restored(self) -> Any:
        """Return a copy, so that no two optimizers share a state."""
        if isinstance(self.value, Tensor):
            return self.value.clone(memory_format=torch.preserve_format)
        return torch.from_numpy(self.value.copy()) if isinstance(self.value, np.ndarray) else self.value


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

    Raises
    ------
    ValueError, TypeError
        As `torch.optim` raises, and for an option beyond torch that is out of bounds.
    """

    method: ClassVar[type[Method]]
    """The optimizer's description, shared with the NumPy frontend."""

    _step_supports_amp_scaling = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
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
        bound = self._torch_signature.bind(params, *args, **options)
        for name in ("capturable", "differentiable"):
            if bound.arguments.get(name):
                raise ValueError(f"{name}=True is not supported by fastopt: its step is neither captured nor recorded")
        # torch checks the values that schedules start from; then the schedules take their places.
        schedules = {name: value for name, value in bound.arguments.items() if is_scheduled(value)}
        self._over_defaults = {**given, **schedules}
        bound.arguments.update((name, at_step(value, 0)) for name, value in schedules.items())
        super().__init__(*bound.args, **bound.kwargs)
        if state_dtype is not None:
            for state in self.state.values():
                state.update((name, value.to(state_dtype)) for name, value in state.items() if name != "step")

    # ---- torch's bookkeeping ----

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as `torch.optim` does; its options are checked too."""
        self.defaults.update(self._over_defaults)
        if isinstance(param_group, dict):
            self.method.check(self._resolved({**self.defaults, **param_group}))
        super().add_param_group(param_group)
        self._stepper = None

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
        for entry in state["state"].values():
            if isinstance(entry, dict):
                entry.update((name, value.restored()) for name, value in entry.items() if isinstance(value, Uncast))
        super().__setstate__(state)
        for group in self.param_groups:
            for name, default in self.defaults.items():
                group.setdefault(name, default)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as `torch.optim` does; where an option is a schedule, `"step_count"` says how far it is."""
        state_dict: dict[str, Any] = super().state_dict()
        if any(is_scheduled(value) for group in self.param_groups for value in group.values()):
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
        self.step_count = state_dict.get("step_count", self.step_count)

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
            self._stepper = Stepper(self, self._members())
        self.last_step = self._stepper.step()
        if not self.last_step.skipped:
            self.step_count += 1
        return loss

    def _members(self) -> list[tuple[int, Tensor]]:
        """Return every parameter, with the index of its group."""
        return [(index, param) for index, group in enumerate(self.param_groups) for param in group["params"]]

    def _resolved(self, group: Mapping[str, Any]) -> Group:
        """Return a group's options as numbers, at this step."""
        return {name: as_number(at_step(value, self.step_count)) for name, value in group.items() if name != "params"}

    def _label(self, member: int) -> str:
        """Return what to call a parameter in messages: its name, if it has one."""
        for index, group in enumerate(self.param_groups):
            if member < len(group["params"]):
                named = group.get("param_names")
                return f"parameter {named[member]!r}" if named else f"param_groups[{index}]['params'][{member}]"
            member -= len(group["params"])
        raise IndexError(member)


def as_number(value: Any) -> Any:
    """Return the number in a 1-element tensor, anything else as it is."""
    if isinstance(value, Tensor):
        return value.item()
    if isinstance(value, (tuple, list)):
        return tuple(as_number(entry) for entry in value)
    return value


def is_moving(group: Group) -> bool:
    """Whether an option of the group can change without being replaced: a schedule or a tensor, also inside `betas`."""
    entries = [value for name, value in group.items() if name != "params"]
    entries += [entry for value in entries if isinstance(value, (tuple, list)) for entry in value]
    return any(callable(entry) or isinstance(entry, Tensor) for entry in entries)


class Stepper:
    """Some parameters of an optimizer, and what their step does not have to find out again each time.

    The truth is in the optimizer's `param_groups` and `state`. What is remembered of it is compared with it before each
    step, so that whatever a user, a hook or a wrapper replaces there is noticed.
    """

    def __init__(self, optimizer: Optimizer, members: list[tuple[int, Tensor]]) -> None:
        self.optimizer = optimizer
        self.method = optimizer.method
        self.owners = [owner for owner, _ in members]
        self.params = [param for _, param in members]
        self.sharded = any(isinstance(param, DTensor) for param in self.params)
        # Every parameter's "step" is an entry of one tensor, so that counting is one addition.
        double = torch.get_default_dtype() == torch.float64
        self.steps = torch.zeros(len(members), dtype=torch.float64 if double else torch.float32)
        self.step_views = list(self.steps)
        self.version = -1
        self.counts = [0] * len(members)
        self.rows: list[int] = []
        self.cohorts: list[tuple[int, int]] = []
        self.resident: Resident | None = None
        self.seen: list[Group] = []
        self.values: list[Group] = []

    def is_current(self) -> bool:
        """Whether these are still all parameters of the optimizer."""
        groups = self.optimizer.param_groups
        params = groups[0]["params"] if len(groups) == 1 else [param for g in groups for param in g["params"]]
        return _core.same_objects(params, self.params)

    def step(self) -> StepInfo:
        """Step with the gradients that the parameters have now."""
        optimizer = self.optimizer
        values = self.options()
        clip_norm, clip_value = clipping_at(
            optimizer.step_count, optimizer.clip_norm, optimizer.clip_value, optimizer.nonfinite
        )
        lr = values[0]["lr"]
        grads = list(map(gradient_of, self.params))
        missing = _core.count_none(grads)
        if missing == len(grads):
            return StepInfo(lr, None, False, False)
        if float(getattr(optimizer, "found_inf", 0.0)):
            return StepInfo(lr, None, False, True)
        unscale = 1.0 / float(getattr(optimizer, "grad_scale", None) or 1.0)

        rules = [self.method.rule(group) for group in optimizer.param_groups]
        prepared = self.prepare(rules, grads)
        rows, cohorts = self.count(prepared.members, missing)
        watch = optimizer.nonfinite != "propagate"
        known = watch or clip_norm is not None
        norm, coefficient, skipped = math.nan, 1.0, False
        if self.sharded and known:
            norm = unscale * norm_of_shards(grads)
            skipped = watch and not math.isfinite(norm)
            if clip_norm is not None:
                coefficient = clip_coefficient(norm, clip_norm)
            clip_norm, watch = None, False
        if not skipped:
            norm_here, coefficient_here, skipped = prepared.plan.step(
                rows,
                [self.method.all_scalars(values[group], max(step, 1), clip_value) for group, step in cohorts],
                unscale * coefficient,
                math.inf if clip_norm is None else clip_norm,
                clip_norm is not None,
                watch,
                optimizer.zero_grad_in_step and prepared.in_place,
                thread_count(),
            )
            if not self.sharded:
                norm, coefficient = norm_here, coefficient_here
        if skipped and optimizer.nonfinite == "raise":
            raise FloatingPointError(f"not finite: {', '.join(self.nonfinite(grads))}")
        if not skipped:
            self.conclude(prepared, grads, missing, rows, cohorts)
        return StepInfo(lr, norm if known else None, coefficient != 1.0, skipped)

    # ---- options and states ----

    def options(self) -> list[Group]:
        """Return every group's options as numbers, checked."""
        groups = self.optimizer.param_groups
        if groups != self.seen:
            self.values = [self.optimizer._resolved(group) for group in groups]
            for values in self.values:
                self.method.check(values)
            # Schedules and tensors change without being replaced: those groups are looked at each time.
            self.seen = [] if any(map(is_moving, groups)) else [dict(group) for group in groups]
        return self.values

    def states_of(self, member: int, names: tuple[str, ...]) -> list[Tensor]:
        """Return a parameter's states, made now if they are not there yet."""
        param = self.params[member]
        state = self.optimizer.state[param]
        if self.method.counts_steps and state.get("step") is not self.step_views[member]:
            self.steps[member] = float(state.get("step", 0.0))
            state["step"] = self.step_views[member]
            self.version = -1
        initial = self.method.initial_state(self.optimizer.param_groups[self.owners[member]])
        for name in names:
            if state.get(name) is None:
                check(param, self.optimizer._label(member))
                state[name] = torch.full_like(
                    param.detach(),
                    complex(initial, initial) if param.is_complex() else initial,
                    dtype=self.optimizer.state_dtype if param.dtype.itemsize == 2 else None,
                )
                self.counts[member] = 0
                self.version = -1
            elif not self.method.counts_steps and self.counts[member] == 0:
                self.counts[member] = 1
        return [state[name] for name in names]

    # ---- preparation ----

    def prepare(self, rules: list[Any], grads: list[Any]) -> Prepared:
        """Return the plan of this step, the resident one if it still holds."""
        if self.resident is not None and self.resident.holds(self, rules, grads):
            return self.resident.take(grads)
        self.resident = None
        states = {
            member: self.states_of(member, rules[self.owners[member]][1])
            for member, grad in enumerate(grads)
            if grad is not None
        }
        if (
            all(grad is None or grad.layout == torch.strided for grad in grads)
            and all(map(is_plain, self.params))
            and all(
                is_plain(state) and state.stride() == self.params[member].stride()
                for member, several in states.items()
                for state in several
            )
        ):
            self.resident = Resident(self, rules, states)
            return self.resident.take(grads)
        return self.prepare_once(rules, grads, states)

    def prepare_once(self, rules: list[Any], grads: list[Any], states: dict[int, list[Tensor]]) -> Prepared:
        """Return a plan for this step only, over views and copies where the tensors are not plain."""
        labels = {member: self.optimizer._label(member) for member in states}
        works = {
            member: work_on(self.params[member], grads[member], several, labels[member])
            for member, several in states.items()
        }
        plan = _core.Plan(
            [work.param.numel() for work in works.values()],
            [dtype_index(work.param, work.states, labels[member]) for member, work in works.items()],
        )
        for position, (member, work) in enumerate(works.items()):
            plan.set_state_addresses(position, rules[self.owners[member]][0], list(map(Tensor.data_ptr, work.states)))
        plan.set_params([work.param.data_ptr() for work in works.values()])
        plan.set_gradient_addresses([work.grad.data_ptr() for work in works.values()])
        return Prepared(plan, list(works), in_place=False, works=list(works.values()))

    # ---- counting ----

    def count(self, members: list[int] | None, missing: int) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the rows and cohorts of this step, for the members given (None: for all)."""
        if self.version != self.steps._version:
            if self.method.counts_steps:
                self.counts = [int(step) for step in self.steps.tolist()]
            self.rows = []
        if members is None and not missing:
            if not self.rows:
                self.rows, self.cohorts = cohorts_of(list(zip(self.owners, self.counts, strict=True)))
            return self.rows, [(group, step + 1) for group, step in self.cohorts]
        self.rows = []
        return cohorts_of(
            [(self.owners[m], self.counts[m] + 1) for m in (range(len(self.counts)) if members is None else members)]
        )

    def conclude(
        self, prepared: Prepared, grads: list[Any], missing: int, rows: list[int], cohorts: list[tuple[int, int]]
    ) -> None:
        """Do what remains after the pass: copies back, version counters, step counts."""
        if prepared.works:
            with torch.no_grad():
                for work in prepared.works:
                    for copy_back in work.write_back:
                        copy_back()
        present = [member for member, grad in enumerate(grads) if grad is not None] if missing else None
        increment_version(self.params if present is None else [self.params[m] for m in present])
        if self.optimizer.zero_grad_in_step:
            given = [grad for grad in grads if grad is not None]
            if prepared.in_place:
                increment_version(given)
            else:
                for grad in given:
                    grad.zero_()
        if present is None:
            self.steps.add_(1)
            self.counts = [count + 1 for count in self.counts]
        else:
            self.steps[present] += 1
            for member in present:
                self.counts[member] += 1
        if rows is self.rows:
            self.cohorts = cohorts
        self.version = self.steps._version

    def nonfinite(self, grads: list[Any]) -> list[str]:
        """Return what to call the gradients that are not finite."""
        return [
            f"gradient of {self.optimizer._label(member)}"
            for member, grad in enumerate(grads)
            if grad is not None and not torch.isfinite(grad.coalesce().values() if grad.is_sparse else grad).all()
        ]


def norm_of_shards(grads: list[Any]) -> float:
    """Return the norm of all gradients of all processes that share them."""
    norm = torch.nn.utils.get_total_norm([grad for grad in grads if grad is not None])
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


class Prepared(NamedTuple):
    """A plan with everything set but the scalars."""

    plan: _core.Plan
    members: list[int] | None
    """Members of the stepper that the plan is over, None for all."""
    in_place: bool
    """Whether the plan has the gradients themselves."""
    works: list[Work]
    """Where not: what it has, to be kept until the step is over."""


class Resident:
    """The plan over plain tensors, kept from step to step."""

    def __init__(self, stepper: Stepper, rules: list[Any], states: dict[int, list[Tensor]]) -> None:
        params = stepper.params
        self.rules = rules
        self.params = params
        self.addresses = list(map(Tensor.data_ptr, params))
        self.dtypes = list(map(dtype_of, params))
        self.strides = list(map(Tensor.stride, params))
        self.contiguous = all(map(Tensor.is_contiguous, params))
        self.bound = [member in states for member in range(len(params))]
        self.all_bound = all(self.bound)
        self.dicts = list(stepper.optimizer.state.values())
        # Which entry of which dict has to stay the tensor that the plan points into.
        self.entries: dict[str, tuple[list[Any], list[Any]]] = {}
        self.plan = _core.Plan(
            list(map(Tensor.numel, params)),
            [
                dtype_index(p, states.get(member, []), stepper.optimizer._label(member))
                for member, p in enumerate(params)
            ],
        )
        self.plan.set_params(self.addresses)
        for member, several in states.items():
            rule, names = rules[stepper.owners[member]]
            self.plan.set_state_addresses(member, rule, list(map(Tensor.data_ptr, several)))
            named = dict(zip(names, several, strict=True))
            if stepper.method.counts_steps:
                named["step"] = stepper.step_views[member]
            for name, tensor in named.items():
                dicts, tensors = self.entries.setdefault(name, ([], []))
                dicts.append(stepper.optimizer.state[params[member]])
                tensors.append(tensor)
        # The plan knows addresses only: these keep the memory, whatever becomes of the tensors.
        self.alive = [tensor.detach() for several in states.values() for tensor in several]
        self.grads: list[Any] = []
        self.grad_addresses: list[int] = []
        self.brought: list[Any] = []
        self.in_place = True

    def holds(self, stepper: Stepper, rules: list[Any], grads: list[Any]) -> bool:
        """Whether parameters and states are where they were, and the gradients have a place beside them."""
        return (
            rules == self.rules
            and list(map(Tensor.data_ptr, self.params)) == self.addresses
            and _core.same_objects(list(stepper.optimizer.state.values()), self.dicts)
            and all(_core.entries_are(dicts, name, tensors) for name, (dicts, tensors) in self.entries.items())
            and (self.all_bound or not any(g is not None and not b for g, b in zip(grads, self.bound, strict=True)))
            and (_core.same_objects(grads, self.grads) or all(g is None or g.layout == torch.strided for g in grads))
        )

    def take(self, grads: list[Any]) -> Prepared:
        """Point the plan at these gradients; copies of those that lie differently in memory."""
        addresses = [0 if grad is None else grad.data_ptr() for grad in grads]
        if addresses != self.grad_addresses or not self.in_place or not _core.same_objects(grads, self.grads):
            self.grads = grads
            self.grad_addresses = addresses
            self.brought = [
                grad if grad is None or self.fits(member, grad) else torch.empty_like(self.params[member]).copy_(grad)
                for member, grad in enumerate(grads)
            ]
            self.in_place = _core.same_objects(self.brought, grads)
            if not self.in_place:
                addresses = [0 if grad is None else grad.data_ptr() for grad in self.brought]
            self.plan.set_gradient_addresses(addresses)
        return Prepared(self.plan, None, self.in_place, [])

    def fits(self, member: int, grad: Tensor) -> bool:
        """Whether a gradient lies in memory as its parameter does."""
        alike = grad.is_contiguous() if self.contiguous else grad.stride() == self.strides[member]
        return alike and grad.dtype == self.dtypes[member]
