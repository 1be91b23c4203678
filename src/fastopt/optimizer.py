"""The base of the optimizers for NumPy: parameters in any structure, groups, snapshots."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt import _arrays, _core, methods, trees
from fastopt._turn import Turn
from fastopt.averaging import lerp_
from fastopt.backends import numpy as backend
from fastopt.backends.numpy import Arrays
from fastopt.engine import ADDED, MEAN, Face, Group, StepInfo, scales_of
from fastopt.hyperparameters import as_count, is_number, plain
from fastopt.methods.base import WHOLE, Method
from fastopt.modes import TwoModes

Array = NDArray[np.float32] | NDArray[np.float64]


class Optimizer(Face):
    """What every optimizer has in common.

    Parameters
    ----------
    params
        What to optimize, in place: an array, a list or dict of arrays (nested as you like), or groups with their own
        options, `[{"params": ..., "lr": ...}, ...]`. Arrays are float32 or float64, C- or Fortran-contiguous.
    args, options
        Of the optimizer, for the groups that do not set them. A number may be a schedule: a callable that maps the
        number of steps taken so far to the value. `clip_norm`, `clip_value` and `nonfinite` are of the whole optimizer.

    Attributes
    ----------
    param_groups : list of dict
        The options and arrays of each group. Options may be edited between steps.
    defaults : dict
        The options of groups that do not set them.
    step_count : int
        How many steps were taken, which is what schedules go by.

    Notes
    -----
    The class of one optimizer is made from its description (`fastopt.methods`), its `method`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        try:
            bound = self.method.signature().bind(*args, **options)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}.__init__() {error}") from None
        bound.apply_defaults()
        given = dict(bound.arguments)
        params = given.pop("params")
        self.step_count = 0
        self.param_groups: list[Group] = []
        self._whole = {name: given.pop(name) for name in self.whole}
        self.defaults = {**self.method.defaults(), **given}
        self.method.complete(self.defaults)
        self._state: list[dict[str, Array]] = []
        self._steps = np.zeros(0)
        self._copies: list[Array | None] = []
        self._params: list[Array] = []
        self._labels: list[str] = []
        self._shapes: list[trees.Shape] = []
        self._grouped = False
        self._turn = Turn()
        self._check_whole(self._whole)
        self._check_options(self.defaults)
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
        with self._turn:
            self._add_groups([param_group], grouped=True)

    def _add_groups(self, new: Iterable[Mapping[str, Any]], grouped: bool) -> None:
        whole, before = dict(self._whole), list(self.param_groups)
        params, labels, shapes = list(self._params), list(self._labels), list(self._shapes)
        try:
            for given in new:
                unknown = given.keys() - self.defaults.keys() - self.whole.keys() - {"params"}
                if unknown or "params" not in given:
                    raise ValueError(
                        f"parameter group: expected 'params' and of {list(self.defaults)} what differs, "
                        f"got {[key for key in given if key != 'params' or unknown]}"
                    )
                root = f"param_groups[{len(shapes)}]['params']" if grouped else "params"
                leaves, names, shape = trees.flatten(given["params"], root)
                arrays = [_arrays.as_array(leaf, name, True) for leaf, name in zip(leaves, names, strict=True)]
                group = {**self.defaults, **self._shared(), **given, "params": arrays}
                self._check_options(group)
                self._take_whole(group)
                self._write_whole(group)
                self.param_groups = [*self.param_groups, group]
                params += arrays
                labels += names
                shapes.append(shape)
            pair = _arrays.Memory(params).collision()
            if pair is not None:
                raise ValueError(f"{labels[pair[0]]} and {labels[pair[1]]} overlap in memory")
            if not params:
                raise ValueError("optimizer got an empty parameter list")
            added = len(params) - len(self._params)
            state = [*self._state, *({} for _ in range(added))]
            self._take_over(params, labels, shapes, grouped, state, np.append(self._steps, np.zeros(added)))
        except BaseException:
            self.param_groups, self._whole = before, whole
            raise

    def _take_over(
        self,
        params: list[Array],
        labels: list[str],
        shapes: list[trees.Shape],
        grouped: bool,
        state: list[dict[str, Array]],
        steps: NDArray[np.float64],
    ) -> None:
        """Become the optimizer of these, if all of them are fit."""
        names = ("_params", "_labels", "_shapes", "_grouped", "_state", "_steps", "_copies", "_engine")
        before = {name: getattr(self, name) for name in names if hasattr(self, name)}
        try:
            self._params, self._labels, self._shapes, self._grouped = params, labels, shapes, grouped
            self._state, self._steps = state, steps
            self._copies = [*self._copies, *[None] * (len(params) - len(self._copies))]
            self._bind()
        except BaseException:
            self.__dict__.update(before)
            raise

    def _bind(self) -> None:
        """Make the states and the plan; all that a step does not have to do again."""
        self._places = [(_arrays.place(param)[0], param.size) for param in self._params]
        self._engine = Arrays(self, [(group, group["params"]) for group in self.param_groups])
        self._engine.bind_all()
        self._engine.made.clear()

    _lerp = staticmethod(lerp_)

    def _current_engine(self) -> Arrays:
        """Return the engine of the groups of now."""
        self._check_members()
        return self._engine

    def write_copies(self, copies: Any) -> None:
        """Have each step write a copy of the parameters in another precision, in the same pass over memory.

        The copies are written now, too. They replace those of an earlier call, and are not part of a snapshot.

        Parameters
        ----------
        copies
            Arrays in the structure that `step` takes gradients in, None for parameters without a copy. Each has its
            parameter's shape and memory order, and is float32, float16, bfloat16 (of the package ml_dtypes, or its bits
            as uint16) or, beside float64, float64.

        Raises
        ------
        TypeError, ValueError
            If a copy does not fit its parameter or shares memory with one; nothing is written then.
        """
        with self._turn.to_step:
            engine = self._current_engine()
            arrays: list[Any] = []
            for param, label, copy in zip(self._params, self._labels, self._gradients(copies), strict=True):
                fit = None if copy is None else _arrays.beside(copy, param, f"copy of {label}", True, True)
                if fit is not None and engine.memory.owner(fit) is not None:
                    raise ValueError(f"copy of {label}: overlaps a parameter in memory")
                arrays.append(fit)
            self._copies = arrays
            for param, fit in zip(self._params, arrays, strict=True):
                if fit is not None:
                    _core.convert(_arrays.place(fit), _arrays.place(param), param.size)
            for owner in range(len(self.param_groups)):
                engine.release(owner)

    def _check_options(self, group: Mapping[str, Any]) -> None:
        """Raise `ValueError` unless a group's options as they are at this step make sense."""
        self.method.check(self.method.at(group, self.step_count))

    # ---- the step ----

    def step(self, grads: Any, *, zero_grad: bool = False) -> StepInfo:
        """Update the parameters in place, in one pass over memory (two if the norm is needed).

        Parameters
        ----------
        grads
            Gradients in the structure that the parameters were given in; for groups, a list with one entry a group
            or one flat list. Each has its parameter's shape, dtype and memory order, or is `Rows` or a sparse matrix of
            SciPy; None leaves a parameter out.
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
        with self._turn.to_step:
            return self._current_engine().step(self._gradients(grads), zero=zero_grad, counter=self)

    def _check_members(self) -> None:
        """Raise if arrays of a group were replaced."""
        if _core.members_are(self.param_groups, self._params, self._engine.owners):
            return
        start = 0
        for index, group in enumerate(self.param_groups):
            arrays = list(group["params"])
            if not _core.same_objects(arrays, self._params[start : start + len(arrays)]):
                raise ValueError(f"param_groups[{index}]['params'] was replaced; make a new optimizer or add a group")
            start += len(arrays)
        raise ValueError("param_groups: groups were taken away; make a new optimizer")

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

    # ---- state ----

    def _entries(self) -> Iterable[Mapping[str, Any]]:
        return self._state

    def state_dict(self, *, compressed: bool = False) -> dict[str, Any]:
        """Return a snapshot of the optimizer, in the layout and with the names of `torch.optim`.

        Parameters
        ----------
        compressed
            Whether states in 8 bits are given as they are, codes and, under "<name>::scales", a scale for every 32
            elements in memory; otherwise as float32, which any optimizer understands.

        Returns
        -------
        dict
            `"state"`: for the index of each parameter that has been updated, a dict of copies of its state arrays and
            its number of steps; `"param_groups"`: the options, with the indices of the group's parameters;
            `"step_count"`: the number of steps taken, which is what schedules go by; `"optimizer"`: the class's name.
        """
        with self._turn:
            counts = self.method.counts_steps
            state = {}
            for tensor, (step, entry) in enumerate(zip(self._steps, map(self._lasting, self._state), strict=True)):
                if step == 0:  # (of a parameter that was not stepped yet, its states are not worth a word)
                    entry = {name: entry[name] for name in entry if name == MEAN}
                if entry or (step > 0 and counts):
                    count = {"step": int(step)} if step > 0 and counts else {}
                    state[tensor] = {**count, **snapshot_of(entry, compressed)}
            indices = iter(range(len(self._params)))
            groups = [{**group, "params": [next(indices) for _ in group["params"]]} for group in self.param_groups]
            return {
                "state": state,
                "param_groups": groups,
                "step_count": self.step_count,
                "optimizer": self.method.__name__,
            }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` of this class, of its `torch.optim` or of its `fastopt.torch` twin returned.

        Raises
        ------
        TypeError, ValueError
            If it does not fit: the optimizer, the number of groups or parameters, an option, the name, shape or dtype
            of a state. Nothing has been changed then.
        """
        with self._turn:
            before = [dict(group) for group in self.param_groups], self.step_count
            state_dict = self._understood(state_dict)
            groups, indices = self._loaded_groups(state_dict)
            try:
                self.step_count = self._loaded_step_count(state_dict)
                for group in groups:
                    self._check_options(group)
                states, steps = self._loaded_states(state_dict, groups, indices)
                for group, loaded in zip(self.param_groups, groups, strict=True):
                    group.clear()
                    group.update(loaded)
                self._take_over(self._params, self._labels, self._shapes, self._grouped, states, steps)
            except BaseException:
                for group, old in zip(self.param_groups, before[0], strict=True):
                    group.clear()
                    group.update(old)
                self.step_count = before[1]
                raise

    def _understood(self, state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return `state_dict` as one of this library's, if it has the form of one."""
        expect("state_dict", state_dict, Mapping, "a dict")
        for key, kind, words in (("state", Mapping, "a dict"), ("param_groups", (list, tuple), "a list")):
            if key not in state_dict:
                raise ValueError(f"state_dict: expected the keys 'state' and 'param_groups', got {list(state_dict)}")
            expect(f"state_dict[{key!r}]", state_dict[key], kind, words)
        for number, given in enumerate(state_dict["param_groups"]):
            expect(f"state_dict: group {number}", given, Mapping, "a dict")
            expect(f"state_dict: params of group {number}", given.get("params"), (list, tuple), "a list")
        return self.method.translated(state_dict)

    def _loaded_groups(self, state_dict: Mapping[str, Any]) -> tuple[list[Group], list[Any]]:
        """Return each group's options and the indices of all parameters in `state_dict`."""
        name = state_dict.get("optimizer", self.method.__name__)
        other = methods.registry().get(name)
        alike = other is not None and (issubclass(other, self.method) or issubclass(self.method, other))  # Adam, AdamW
        if name != self.method.__name__ and not alike:
            raise ValueError(f"state_dict: is of {name}, not of {self.method.__name__}")
        saved = state_dict["param_groups"]
        if len(saved) != len(self.param_groups):
            raise ValueError(f"state_dict: expected {len(self.param_groups)} parameter groups, got {len(saved)}")
        groups, indices = [], []
        for number, (group, given) in enumerate(zip(self.param_groups, saved, strict=True)):
            if len(given["params"]) != len(group["params"]):
                raise ValueError(
                    f"state_dict: expected {len(group['params'])} parameters in group {number}, "
                    f"got {len(given['params'])}"
                )
            # (Schedulers and users keep entries of their own there: what is none of this class is nobody's option.)
            foreign = {name for name in options_of_all() if name in given} - self.defaults.keys()
            if foreign or "lr" not in given:
                raise ValueError(f"state_dict: group {number} is not of {type(self).__name__}: {sorted(given)}")
            known = {**self.method.options, **self.whole}
            loaded = {**group, **{name: given[name] for name in known if name in given}}
            loaded.pop(ADDED, None)
            if ADDED in given:
                loaded[ADDED] = as_count(given[ADDED], f"state_dict: {ADDED}")
            groups.append(loaded)
            indices += given["params"]
        return groups, indices

    def _loaded_step_count(self, state_dict: Mapping[str, Any]) -> int:
        """Return the number of steps taken; where nothing says it, this optimizer's own."""
        if "step_count" in state_dict:
            return as_count(state_dict["step_count"], "state_dict: step_count")
        if not self.method.counts_steps:
            return self.step_count
        entries = [entry for entry in state_dict["state"].values() if isinstance(entry, Mapping)]
        return max((as_count(entry["step"], "state_dict: step") for entry in entries if "step" in entry), default=0)

    def _loaded_states(
        self, state_dict: Mapping[str, Any], groups: list[Group], indices: list[Any]
    ) -> tuple[list[dict[str, Array]], NDArray[np.float64]]:
        """Return each parameter's state arrays, and how many steps they have taken."""
        saved = state_dict["state"]
        strangers = saved.keys() - set(indices)
        if strangers:
            raise ValueError(f"state_dict: state for unknown parameters {sorted(strangers, key=str)}")
        owners = [group for group in groups for _ in group["params"]]
        states: list[dict[str, Array]] = []
        steps = np.zeros(len(self._params))
        for tensor, group in enumerate(owners):
            states.append({})
            given = saved.get(indices[tensor])
            if not given:
                continue
            label = self._labels[tensor]
            expect(f"state_dict: state of {label}", given, Mapping, "a dict")
            options, shape = self.method.at(group, self.step_count), self._params[tensor].shape
            rule, names = self.method.rule_for(options, shape, lambda label=label: label)  # type: ignore[misc]
            numbers = self.method.numbers.keys()
            expected = {*names, *numbers, "step"} if self.method.counts_steps else {*names, *numbers}
            unstepped = given.keys() == {MEAN}
            if not unstepped and not expected <= given.keys():
                raise ValueError(f"state_dict: state of {label}: expected {sorted(expected)}, got {sorted(given)}")
            # Also the arrays that no option asks for at present: it may be switched on again. (torch has None there.)
            idle = {name for name in given if given[name] is None and name not in names}
            in_double = given.keys() & {"log_decay", "row_log_decay", *self.method.row_numbers(rule, options)}
            arrays = given.keys() - {"step", *numbers} - idle - in_double
            scales = {scales_of(name) for name in arrays} & arrays
            for name in sorted(arrays - scales):
                states[-1].update(self._loaded_array(tensor, name, given[name], given.get(scales_of(name))))
            if unstepped:
                continue
            for name in in_double:
                shape = () if name == "log_decay" else self._params[tensor].shape[:1]
                array = np.array(given[name], dtype=float)
                if array.shape != shape:
                    raise ValueError(f"state_dict: {name} of {label}: expected shape {shape}, got {array.shape}")
                states[-1][name] = array
            for name in numbers:
                number = plain(given[name])
                if not is_number(number):
                    raise TypeError(f"state_dict: {name} of {label}: expected a number, got {given[name]!r}")
                states[-1][name] = np.array(float(number))
            counts = self.method.counts_steps
            steps[tensor] = as_count(given["step"], f"state_dict: step of {label}") if counts else 1
        return states, steps

    def _loaded_array(self, tensor: int, name: str, value: Any, scales: Any) -> dict[str, Any]:
        param, label = self._params[tensor], f"state_dict: {name} of {self._labels[tensor]}"
        if scales is not None:
            codes, scales = (np.asarray(given).copy(order="K") for given in (value, scales))
            backend.check_codes(codes, scales, param, label)
            if codes.flags.c_contiguous == param.flags.c_contiguous or codes.ndim < 2:
                return {name: codes, scales_of(name): scales}
            value = backend.decoded(codes, scales)
        in_torch = str(getattr(value, "dtype", "")) == "torch.bfloat16"  # which NumPy cannot read
        array = np.asarray(value.float() if in_torch else value)
        shape = self.method.state_shape(name, param.shape)
        if array.shape != shape:
            whose = "the parameter's shape" if shape == param.shape else "shape"
            raise ValueError(f"{label}: expected {whose} {shape}, got {array.shape}")
        if shape != param.shape:
            return {name: _arrays.as_array(array.copy(), label, True, True)}
        copied: Array = np.empty_like(param, dtype=array.dtype)
        copied[...] = array
        return {name: _arrays.beside(copied, param, label, True, True)}

    def __getstate__(self) -> dict[str, Any]:
        with self._turn:
            return {
                name: value for name, value in self.__dict__.items() if name not in ("_engine", "_places", "_copies")
            }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._copies = [None] * len(self._params)
        start = 0
        for group in self.param_groups:
            # Unpickled groups have their parameters twice: make them the same arrays again.
            group["params"] = self._params[start : start + len(group["params"])]
            start += len(group["params"])
        self._bind()

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for index, group in enumerate(self.param_groups):
            count = sum(param.size for param in group["params"])
            lines.append(f"Parameter Group {index}: {len(group['params'])} arrays, {count} elements")
            lines += [f"    {name}: {group[name]}" for name in sorted(group) if name != "params"]
        return "\n".join([*lines, f"steps taken: {self.step_count}", ")"])


def snapshot_of(entry: Mapping[str, Any], compressed: bool) -> dict[str, Any]:
    """Return copies of what is kept for a parameter; unless `compressed`, states in 8 bits as float32."""
    snapshot = {}
    for name, value in entry.items():
        scales = entry.get(scales_of(name))
        if scales is not None and not compressed:
            snapshot[name] = backend.decoded(value, scales)
        elif compressed or not name.endswith(scales_of("")):
            snapshot[name] = copy.deepcopy(value)
    return snapshot


NOT_HERE = {"history_size"}
"""One option of each optimizer that torch has and this library has not."""


def options_of_all() -> set[str]:
    """Return the names of all options of all optimizers, by which a snapshot of another one is told."""
    return {name for method in methods.registry().values() for name in method.options} | NOT_HERE


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


def made_from(method: type[Method]) -> type[Optimizer]:
    """Return the class that a description is for NumPy."""
    names = {
        "method": method,
        "whole": method.whole(WHOLE),
        "__doc__": method.documentation(),
        "__signature__": method.signature(),
    }
    bases = (TwoModes, Optimizer) if "train_mode" in method.options else (Optimizer,)
    return type(method.__name__, bases, {**names, "__module__": "fastopt.optimizers"})
