"""The base of the optimizers: parameters, validation, state and the one call into C that a step is."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastopt import _core, environment, trees
from fastopt.hyperparameters import Bound, Bounds, Schedule, at_step, is_number, is_scheduled, plain

Array = NDArray[np.float32] | NDArray[np.float64]
Group = dict[str, Any]
Cohort = TypeVar("Cohort", bound=tuple[int, ...])
NONFINITE = ("propagate", "skip", "raise")
NO_CLIPPING = (None, None, "propagate")

TORCH_KEYS = frozenset(
    {"params", "param_names", "foreach", "fused", "capturable", "differentiable", "initial_lr", "swa_lr"}
)
"""What torch and its schedulers keep in a parameter group beside the options."""


class StepInfo(NamedTuple):
    """What a step did."""

    lr: float
    """Learning rate, of the first parameter group."""
    grad_norm: float | None
    """Norm of all gradients before clipping; None where neither `clip_norm` nor `nonfinite` asked for it."""
    clipped: bool
    """Whether the gradients were scaled down to `clip_norm`."""
    skipped: bool
    """Whether a gradient was not finite, so that nothing was changed (`nonfinite="skip"`)."""


class Optimizer:
    """What every optimizer has in common.

    Parameters
    ----------
    params
        What to optimize, in place: an array, a list or dict of arrays (nested as you like), or groups with their own
        options, `[{"params": ..., "lr": ...}, ...]`. Arrays are float32 or float64, C- or Fortran-contiguous.
    options
        Value of every option of the optimizer, for the groups that do not set it. A number may be a schedule:
        a callable that maps the number of steps taken so far to the value.
    clip_norm
        If the norm of all gradients together exceeds this, scale them down to it:
        `g * min(1, clip_norm / (norm + 1e-6))` (Pascanu, Mikolov & Bengio 2013). The gradients are not written.
    clip_value
        Clip every entry of the gradients to `[-clip_value, clip_value]` (after `clip_norm`).
    nonfinite
        What to do about a gradient that is NaN or infinite: "propagate" it, "skip" the step, or "raise"
        `FloatingPointError`. The last two leave parameters, state and step count as they were.

    Notes
    -----
    A subclass describes one optimizer, for every frontend: `bounds`, `rule`, `scalars` and, where they do not fit,
    `initial_state`, `counts_steps` and `check`.
    """

    bounds: ClassVar[Bounds]
    """Bound of each numeric option."""

    counts_steps: ClassVar[bool] = True
    """Whether the update depends on the number of steps, so that it is part of a parameter's state."""

    @staticmethod
    def rule(group: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        """Return the kernel for a group's options and the names of its state arrays."""
        raise NotImplementedError

    @staticmethod
    def scalars(group: Mapping[str, Any], step: int) -> dict[str, float]:
        """Return the kernel's scalars for a parameter's `step`-th step (the first is 1)."""
        raise NotImplementedError

    @staticmethod
    def initial_state(group: Mapping[str, Any]) -> float:
        """Return the value that the state arrays start from."""
        return 0.0

    @classmethod
    def check(cls, group: Mapping[str, Any]) -> None:
        """Raise `ValueError` unless a group's options, schedules evaluated, make sense."""
        for name, bound in cls.bounds.items():
            bound.check(group[name])

    @classmethod
    def all_scalars(cls, group: Mapping[str, Any], step: int, clip_value: float = math.inf) -> dict[str, float]:
        """Return the kernel's scalars together with those that every rule has: sign, clipping and weight decay."""
        decay = group["weight_decay"]
        decoupled = group["decoupled_weight_decay"]
        return {
            "scale": -1.0 if group["maximize"] else 1.0,
            "clip": clip_value,
            "l2": 0.0 if decoupled else decay,
            "decay": 1.0 - group["lr"] * decay if decoupled else 1.0,
            **cls.scalars(group, step),
        }

    def __init__(
        self,
        params: Any,
        options: dict[str, Any],
        *,
        clip_norm: float | Schedule | None = None,
        clip_value: float | Schedule | None = None,
        nonfinite: str = "propagate",
    ) -> None:
        self.defaults = options
        self.clip_norm = clip_norm
        self.clip_value = clip_value
        self.nonfinite = nonfinite
        self.step_count = 0
        self.param_groups: list[Group] = []
        self._state: list[dict[str, Array]] = []
        self._params: list[Array] = []
        self._labels: list[str] = []
        self._shapes: list[trees.Shape] = []
        self._cohorts: list[tuple[int, int]] = []
        self._rows: list[int] = []
        self._grouped = False
        self._lock = threading.Lock()
        clipping_at(0, clip_norm, clip_value, nonfinite)
        self._check_options(options)
        groups, grouped = as_groups(params)
        self._add_groups(groups, grouped)

    @property
    def state(self) -> tuple[Mapping[str, Array], ...]:
        """The state arrays of each parameter by name: what is in them may be changed, not which they are."""
        return tuple(MappingProxyType(state) for state in self._state)

    # ---- parameters ----

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add parameters, with options of their own where the group has them.

        Parameters
        ----------
        param_group
            `{"params": ..., "lr": ..., ...}`; from now on `step` takes a list with one entry a group.

        Raises
        ------
        TypeError, ValueError
            If an option is unknown or out of bounds, or an array unfit or already there; nothing is added then.
        """
        with self._lock:
            self._add_groups([param_group], grouped=True)

    def _add_groups(self, new: Iterable[Mapping[str, Any]], grouped: bool) -> None:
        for index in range(len(self.param_groups)):
            self._evaluated(index)
        groups, params, labels, shapes = [], list(self._params), list(self._labels), list(self._shapes)
        for given in new:
            unknown = given.keys() - self.defaults.keys() - {"params"}
            if unknown or "params" not in given:
                raise ValueError(
                    f"parameter group: expected 'params' and of {list(self.defaults)} what differs, "
                    f"got {[key for key in given if key != 'params' or unknown]}"
                )
            root = f"param_groups[{len(shapes)}]['params']" if grouped else "params"
            leaves, names, shape = trees.flatten(given["params"], root)
            arrays = [as_array(leaf, name) for leaf, name in zip(leaves, names, strict=True)]
            group = {**self.defaults, **given, "params": arrays}
            self._check_options(group)
            groups.append(group)
            params += arrays
            labels += names
            shapes.append(shape)
        pair = _core.Memory(params).collision()
        if pair is not None:
            raise ValueError(f"{labels[min(pair)]} and {labels[max(pair)]} overlap in memory")

        if not params:
            raise ValueError("optimizer got an empty parameter list")

        steps = self._steps()
        for index, group in enumerate(groups, start=len(self.param_groups)):
            steps += [(index, 0)] * len(group["params"])
        self.param_groups += groups
        self._state += [{} for _ in params[len(self._params) :]]
        self._params, self._labels, self._shapes, self._grouped = params, labels, shapes, grouped
        self._set_steps(steps)
        self._make_plan()

    def _make_plan(self) -> None:
        """Cut the parameters into blocks and bind their states; all that a step does not have to do again."""
        self._plan = _core.Plan.of_arrays(self._params)
        self._seen: list[list[Any]] = [[]] * len(self.param_groups)
        self._options: list[Group] = [{}] * len(self.param_groups)
        self._rules = [""] * len(self.param_groups)
        for index in range(len(self.param_groups)):
            self._take_options(index)

    def _steps(self) -> list[tuple[int, int]]:
        """Return each parameter's (group, steps taken)."""
        return [self._cohorts[row] for row in self._rows]

    def _set_steps(self, steps: list[tuple[int, int]]) -> None:
        """Set each parameter's (group, steps taken). Those that share both share a row of scalars."""
        self._rows, self._cohorts = cohorts_of(steps)

    # ---- options ----

    def _check_options(self, group: Mapping[str, Any]) -> Group:
        """Return a group's options as they are at this step, checked."""
        options = {name: at_step(value, self.step_count) for name, value in group.items() if name != "params"}
        self.check(options)
        return options

    def _evaluated(self, index: int) -> Group:
        """Return the options of a group of the optimizer, which may have been edited."""
        group = self.param_groups[index]
        owned = [param for param, (owner, _) in zip(self._params, self._steps(), strict=True) if owner == index]
        if not _core.same_objects(list(group["params"]), owned):
            raise ValueError(f"param_groups[{index}]['params'] was replaced; make a new optimizer or add a group")
        return self._check_options(group)

    def _take_options(self, index: int) -> None:
        """Look at a group's options again: it is new, or was edited."""
        group = self.param_groups[index]
        self._options[index] = self._evaluated(index)
        rule, names = self.rule(group)
        if rule != self._rules[index]:
            self._bind_states(index, rule, names)
        self._seen[index] = list(group.values())
        self._scheduled = any(is_scheduled(value) for group in self.param_groups for value in group.values())

    def _bind_states(self, index: int, rule: str, names: tuple[str, ...]) -> None:
        initial = self.initial_state(self._options[index])
        steps = self._steps()
        for tensor, (owner, _) in enumerate(steps):
            if owner != index:
                continue
            state = self._state[tensor]
            missing = [name for name in names if name not in state]
            for name in missing:
                state[name] = np.full_like(self._params[tensor], initial)
            if missing and not self.counts_steps:
                steps[tensor] = (owner, 0)  # what is counted there is how often the states were updated
            self._plan.set_states(tensor, rule, [state[name] for name in names])
        self._set_steps(steps)
        self._rules[index] = rule

    def _resolve(self) -> list[Group]:
        """Return the groups with their options as they are at this step."""
        for index, group in enumerate(self.param_groups):
            if not _core.same_objects(list(group.values()), self._seen[index]):
                self._take_options(index)
        if self._scheduled:
            self._options = [self._check_options(group) for group in self.param_groups]
        return self._options

    # ---- the step ----

    def step(self, grads: Any, *, zero_grad: bool = False) -> StepInfo:
        """Update the parameters in place, in one pass over memory (two if the norm is needed).

        Parameters
        ----------
        grads
            Gradients in the structure that the parameters were given in; for groups, a list with one entry a group
            or one flat list. Each has its parameter's shape, dtype and memory order; None leaves a parameter out.
        zero_grad
            Zero the gradients in the same pass, also where the step is skipped. Otherwise they are not written.

        Returns
        -------
        StepInfo
            Learning rate, norm of the gradients before clipping, whether they were clipped, whether the step was
            skipped.

        Raises
        ------
        TypeError, ValueError
            If a gradient does not fit its parameter or shares memory with one, or an edited option or the value of
            a schedule is out of bounds. Nothing has been changed then.
        FloatingPointError
            If a gradient is not finite and `nonfinite="raise"`. Nothing has been changed then.
        """
        with self._lock:
            groups = self._resolve()
            clip_norm, clip_value = clipping_at(self.step_count, self.clip_norm, self.clip_value, self.nonfinite)
            gradients = self._gradients(grads)
            missing = self._plan.set_gradients(gradients, self._labels, zero_grad)
            rows, cohorts = (
                self._steps_with(gradients) if missing else (self._rows, [(g, n + 1) for g, n in self._cohorts])
            )
            watch = self.nonfinite != "propagate"
            norm, coefficient, skipped = self._plan.step(
                rows,
                # A cohort that has not stepped has no gradients now either: its scalars are not read.
                [self.all_scalars(groups[group], max(step, 1), clip_value) for group, step in cohorts],
                1.0,
                math.inf if clip_norm is None else clip_norm,
                clip_norm is not None,
                watch,
                zero_grad,
                environment.get_num_threads(),
            )
            if skipped and self.nonfinite == "raise":
                raise FloatingPointError(f"not finite: {', '.join(self._nonfinite(gradients))}")
            if not skipped:
                self._rows, self._cohorts = rows, cohorts
                self.step_count += 1
            elif zero_grad:  # or what accumulates on it would be skipped for ever
                for gradient in gradients:
                    if gradient is not None:
                        gradient[...] = 0
            known = watch or clip_norm is not None
            return StepInfo(groups[0]["lr"], norm if known else None, coefficient != 1.0, skipped)

    def _gradients(self, grads: Any) -> list[Any]:
        """Return one gradient a parameter, in order."""
        if not self._grouped:
            return trees.leaves_of(self._shapes[0], grads, "grads")
        if isinstance(grads, Mapping) or not trees.is_container(grads):
            raise TypeError(f"grads: expected a list with one entry a group, got {type(grads).__name__}")
        entries = list(grads)
        if len(entries) == len(self._params) and not any(trees.is_container(entry) for entry in entries):
            return entries
        if len(entries) != len(self._shapes):
            raise ValueError(
                f"grads: expected one entry for each of {len(self._shapes)} groups or {len(self._params)} gradients, "
                f"got {len(entries)} entries"
            )
        return [
            leaf
            for index, (shape, entry) in enumerate(zip(self._shapes, entries, strict=True))
            for leaf in trees.leaves_of(shape, entry["params"] if is_group(entry) else entry, f"grads[{index}]")
        ]

    def _steps_with(self, gradients: list[Any]) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the rows and cohorts after a step in which parameters without a gradient stay behind."""
        return cohorts_of(
            [
                (group, step + (gradient is not None))
                for (group, step), gradient in zip(self._steps(), gradients, strict=True)
            ]
        )

    def _nonfinite(self, gradients: list[Any]) -> list[str]:
        return [
            f"gradient of {label}"
            for label, gradient in zip(self._labels, gradients, strict=True)
            if gradient is not None and not np.isfinite(gradient).all()
        ]

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        """Return a snapshot of the optimizer, in the layout and with the names of `torch.optim`.

        Returns
        -------
        dict
            `"state"`: for the index of each parameter that has been updated, a dict of copies of its state arrays and
            its number of steps; `"param_groups"`: the options, with the indices of the group's parameters;
            `"step_count"`: the number of steps taken, which is what schedules go by.
        """
        with self._lock:
            state = {
                tensor: {**({"step": step} if self.counts_steps else {}), **copy.deepcopy(self._state[tensor])}
                for tensor, (_, step) in enumerate(self._steps())
                if step > 0 and (self._state[tensor] or self.counts_steps)
            }
            indices = iter(range(len(self._params)))
            groups = [{**group, "params": [next(indices) for _ in group["params"]]} for group in self.param_groups]
            return {"state": state, "param_groups": groups, "step_count": self.step_count}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` of this class, of its `torch.optim` or of its `fastopt.torch` twin returned.

        Raises
        ------
        TypeError, ValueError
            If it does not fit: the number of groups or parameters, an option, the name, shape or dtype of a state.
            Nothing has been changed then.
        """
        with self._lock:
            groups, indices = self._loaded_groups(state_dict)
            states, steps = self._loaded_states(state_dict, groups, indices)
            most = max((step for _, step in steps), default=0)
            step_count = as_count(state_dict.get("step_count", most), "state_dict: step_count")
            for group, loaded in zip(self.param_groups, groups, strict=True):
                group.update(loaded)
            self._state = states
            self.step_count = step_count
            self._set_steps(steps)
            self._make_plan()

    def _loaded_groups(self, state_dict: Mapping[str, Any]) -> tuple[list[Group], list[Any]]:
        """Return each group's options and the indices of all parameters in `state_dict`."""
        expect("state_dict", state_dict, Mapping, "a dict")
        for key, kind, words in (("state", Mapping, "a dict"), ("param_groups", (list, tuple), "a list")):
            if key not in state_dict:
                raise ValueError(f"state_dict: expected the keys 'state' and 'param_groups', got {list(state_dict)}")
            expect(f"state_dict[{key!r}]", state_dict[key], kind, words)
        saved = state_dict["param_groups"]
        if len(saved) != len(self.param_groups):
            raise ValueError(f"state_dict: expected {len(self.param_groups)} parameter groups, got {len(saved)}")
        groups, indices = [], []
        for number, (group, given) in enumerate(zip(self.param_groups, saved, strict=True)):
            expect(f"state_dict: group {number}", given, Mapping, "a dict")
            expect(f"state_dict: params of group {number}", given.get("params"), (list, tuple), "a list")
            if len(given["params"]) != len(group["params"]):
                raise ValueError(
                    f"state_dict: expected {len(group['params'])} parameters in group {number}, "
                    f"got {len(given['params'])}"
                )
            unknown = given.keys() - self.defaults.keys() - TORCH_KEYS
            if unknown or "lr" not in given:
                raise ValueError(f"state_dict: group {number} is not of {type(self).__name__}: {sorted(given)}")
            loaded = {**group, **{name: given[name] for name in self.defaults if name in given}}
            self._check_options(loaded)
            groups.append(loaded)
            indices += given["params"]
        return groups, indices

    def _loaded_states(
        self, state_dict: Mapping[str, Any], groups: list[Group], indices: list[Any]
    ) -> tuple[list[dict[str, Array]], list[tuple[int, int]]]:
        """Return each parameter's state arrays and (group, steps taken)."""
        saved = state_dict["state"]
        strangers = saved.keys() - set(indices)
        if strangers:
            raise ValueError(f"state_dict: state for unknown parameters {sorted(strangers, key=str)}")
        states: list[dict[str, Array]] = []
        steps: list[tuple[int, int]] = []
        for tensor, (owner, _) in enumerate(self._steps()):
            _, names = self.rule(groups[owner])
            given = saved.get(indices[tensor])
            if not given:
                states.append({})
                steps.append((owner, 0))
                continue
            label = self._labels[tensor]
            expect(f"state_dict: state of {label}", given, Mapping, "a dict")
            expected = {*names, "step"} if self.counts_steps else {*names}
            if not expected <= given.keys():
                raise ValueError(f"state_dict: state of {label}: expected {sorted(expected)}, got {sorted(given)}")
            # Also the arrays that no option asks for at present: it may be switched on again. (torch has None there.)
            arrays = given.keys() - {"step"} - {name for name in given if given[name] is None and name not in names}
            states.append({name: self._loaded_array(tensor, name, given[name]) for name in sorted(arrays)})
            steps.append((owner, as_count(given["step"], f"state_dict: step of {label}") if self.counts_steps else 1))
        return states, steps

    def _loaded_array(self, tensor: int, name: str, value: Any) -> Array:
        param, label = self._params[tensor], f"state_dict: {name} of {self._labels[tensor]}"
        array = np.asarray(value)
        if array.dtype != param.dtype:
            raise TypeError(f"{label}: expected the parameter's dtype {param.dtype}, got {array.dtype}")
        if array.shape != param.shape:
            raise ValueError(f"{label}: expected the parameter's shape {param.shape}, got {array.shape}")
        copied: Array = np.empty_like(param)
        copied[...] = array
        return copied

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            remade = ("_lock", "_plan", "_seen", "_options")
            return {name: value for name, value in self.__dict__.items() if name not in remade}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
        start = 0
        for group in self.param_groups:
            # Unpickled groups have their parameters twice: make them the same arrays again.
            group["params"] = self._params[start : start + len(group["params"])]
            start += len(group["params"])
        self._make_plan()

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for index, group in enumerate(self.param_groups):
            count = sum(param.size for param in group["params"])
            lines.append(f"Parameter Group {index}: {len(group['params'])} arrays, {count} elements")
            lines += [f"    {name}: {group[name]}" for name in sorted(group) if name != "params"]
        lines += [
            f"{name}: {value}"
            for name, value in (("clip_norm", self.clip_norm), ("clip_value", self.clip_value))
            if value is not None
        ]
        return "\n".join([*lines, f"nonfinite: {self.nonfinite}", f"steps taken: {self.step_count}", ")"])


def clipping_at(
    step: int, clip_norm: float | Schedule | None, clip_value: float | Schedule | None, nonfinite: str
) -> tuple[float | None, float]:
    """Return the bounds of clipping after `step` steps, checked: by norm (None: not asked for) and by value."""
    if (clip_norm, clip_value, nonfinite) == NO_CLIPPING:
        return None, math.inf
    if nonfinite not in NONFINITE:
        raise ValueError(f"Invalid nonfinite: expected one of {NONFINITE}, got {nonfinite!r}")
    norm, value = at_step(clip_norm, step), at_step(clip_value, step)
    for name, bound in (("clip_norm", norm), ("clip_value", value)):
        if bound is not None and not (isinstance(bound, float) and bound == math.inf):
            Bound(f"{name} value").check(bound)
    return norm, math.inf if value is None else value


def cohorts_of(keys: list[Cohort]) -> tuple[list[int], list[Cohort]]:
    """Return the distinct keys, (group, steps taken), and for each parameter the row of its own among them."""
    rows = {key: row for row, key in enumerate(dict.fromkeys(keys))}
    return [rows[key] for key in keys], list(rows)


def is_group(value: Any) -> bool:
    """Whether the value is a parameter group in torch's form."""
    return isinstance(value, Mapping) and "params" in value


def as_groups(params: Any) -> tuple[list[Mapping[str, Any]], bool]:
    """Return `params` as parameter groups, and whether it was given as such."""
    if not isinstance(params, Mapping) and trees.is_container(params):
        params = list(params)
        if params and all(is_group(entry) for entry in params):
            return params, True
    return [{"params": params}], False


def expect(label: str, value: Any, kind: type | tuple[type, ...], words: str) -> None:
    """Raise `TypeError` unless the value is of that kind."""
    if not isinstance(value, kind):
        raise TypeError(f"{label}: expected {words}, got {type(value).__name__}")


def as_count(value: Any, label: str) -> int:
    """Return a number of steps, checked; torch's is a tensor of one float."""
    number = plain(value)
    if not is_number(number) or number < 0 or number != int(number):
        raise ValueError(f"{label}: expected a whole number of at least 0, got {value!r}")
    return int(number)


def as_array(value: Any, label: str) -> Array:
    """Return the array that shares the value's memory, checked."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{label}: expected a NumPy array without a mask, got a masked one")
    shares = trees.is_buffer(value) and not isinstance(value, (np.ndarray, np.generic))
    array = np.asarray(value) if shares else value
    _core.check_array(array, label, True)
    checked: Array = array
    return checked
