"""The one mechanism of a step, for every optimizer and every framework.

A face (`fastopt.AdamW`, `fastopt.torch.AdamW`) keeps parameter groups and states, where users and schedulers read and
edit them. The `Engine` finds out what they are now, points the kernels' plan at it, and calls the kernels once. What it
remembers from step to step is compared with the truth in the face before it is used.
"""

from __future__ import annotations

import math
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, cast

from fastopt import _core
from fastopt._turn import Turn
from fastopt.hyperparameters import as_count, at_step, is_fixed
from fastopt.methods.base import STORED_AS, WHOLE, Method, Option, StateDtype
from fastopt.products import Call, Calls, Products

Group = dict[str, Any]

RATES = ("lr", "weight_decay")
"""Numbers that are edited all the time, and that neither choose the rule nor exclude anything."""

AVERAGE = "ema"
"""The state that is a moving average of the parameter."""

ASIDE = "before_ema"
"""The state that is the parameter itself while its average is in its place."""

MEAN = "mean_gradient"
"""The state that is the mean of the gradients since the last step (the option `accumulate`)."""

ADDED = "gradients_added"
"""The entry of groups that says of how many: absent where there are none."""

REMAINDER = "remainder"
"""The entry that has what is left of a parameter in two pieces (the option `master`)."""

MASTER = "master"
"""The entry that has a parameter in float32, which the parameter is a rounded copy of (the same option)."""


WHOLE_GROUPS = "expected a multiple of 32 in row order (lazy=True with states in 8 bits or a master)"
"""What is wrong with rows that cannot be stepped alone."""


def scales_of(name: str) -> str:
    """Return the name of the entry that has the scales of a state in 8 bits."""
    return f"{name}::scales"


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


# ---- what an optimizer has in common, whatever the framework ----


class WholeOption:
    """An option of the whole optimizer as its attribute: the truth is in the parameter groups."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, face: Any, owner: type | None = None) -> Any:
        """Return what the groups say."""
        return self if face is None else face._whole_options(face.param_groups)[self.name]

    def __set__(self, face: Any, value: Any) -> None:
        """Say it in every group."""
        face._check_whole({self.name: value})
        face._whole[self.name] = value
        for group in face.param_groups:
            group.pop(self.name, None)
            face._write_whole(group)


class Face:
    """Options of the whole optimizer, and one step at a time."""

    method: ClassVar[type[Method]]
    """The optimizer's description."""

    whole: ClassVar[Mapping[str, Option]] = WHOLE

    clip_norm = WholeOption("clip_norm")
    clip_value = WholeOption("clip_value")
    nonfinite = WholeOption("nonfinite")
    state_dtype = WholeOption("state_dtype")
    ema = WholeOption("ema")
    accumulate = WholeOption("accumulate")

    param_groups: list[Group]
    step_count: int
    _whole: dict[str, Any]
    _turn: Turn

    def swap_ema(self) -> None:
        """Put the moving averages in the parameters' places, or the parameters back.

        In between no step can be taken. A snapshot (`state_dict`) has both.

        Raises
        ------
        RuntimeError
            If there is no moving average.
        """
        with self._turn.to_step:
            self._current_engine().swap_average()

    def ema_state(self) -> list[Any]:
        """Return the moving averages of the parameters, in their order; one that has taken no step is its own average.

        They are the optimizer's own, not copies.
        """
        engine = self._current_engine()
        averages = [engine.found(slot, AVERAGE) for slot in range(len(engine.params))]
        return [param if mean is None else mean for mean, param in zip(averages, engine.params, strict=True)]

    def state_bytes(self) -> int:
        """Return how many bytes the optimizer's state takes: all that is kept for the parameters from step to step.

        That is what a snapshot has (moments, scales, masters, moving averages, counts in torch). Not counted is working
        memory that the step has besides: for products of matrices (`Muon`) an array as large as all matrices together
        and a smaller one; for gradients and parameters that the kernels cannot use where they are, copies in each step.
        """
        return sum(
            int(array.nbytes) for entry in self._entries() for array in entry.values() if hasattr(array, "nbytes")
        )

    def _lasting(self, entry: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what is kept for a parameter without what the next step does not need: a mean already stepped by."""
        if MEAN not in entry or any(group.get(ADDED) for group in self.param_groups):
            return entry
        return {name: value for name, value in entry.items() if name != MEAN}

    def _entries(self) -> Iterable[Mapping[str, Any]]:
        """Return what is kept beside the parameters, for each that has something."""
        raise NotImplementedError

    def _current_engine(self) -> Engine:
        """Return the engine of the groups of now."""
        raise NotImplementedError

    @staticmethod
    def _lerp(targets: list[Any], sources: list[Any], weight: float) -> None:
        """Move the targets towards the sources."""
        raise NotImplementedError

    def _check_whole(self, values: Mapping[str, Any]) -> None:
        """Raise `ValueError` unless these options of the whole optimizer make sense at this step."""
        for name, value in values.items():
            self.whole[name].check(name, at_step(value, self.step_count))

    def _write_whole(self, group: Group) -> None:
        """Put the options of the whole optimizer into a group, where they are not the default."""
        for name, option in self.whole.items():
            if name not in group and not same_value(self._whole[name], option.default):
                group[name] = self._whole[name]

    def _shared(self) -> Group:
        """Return what a group that is added has from the others: numbers that all have alike, once there are steps."""
        return {name: self.param_groups[0][name] for name in self.method.shared} if self.step_count else {}

    def _take_whole(self, group: Mapping[str, Any]) -> None:
        """Take the options of the whole optimizer that the first group brings; any other group must agree with them."""
        given = {name: group[name] for name in self.whole if name in group}
        self._check_whole(given)
        for name, value in given.items():
            if not self.param_groups and same_value(self._whole[name], self.whole[name].default):
                self._whole[name] = value
            elif not same_value(value, self._whole[name]):
                raise ValueError(
                    f"{name}: is of the whole optimizer, expected {self._whole[name]!r} in every group, got {value!r}"
                )

    def _whole_options(self, groups: list[Group]) -> dict[str, Any]:
        """Return the options of the whole optimizer, as these groups have them."""
        if not groups:
            return dict(self._whole)
        whole = {}
        for name, option in self.whole.items():
            whole[name], *others = [group.get(name, option.default) for group in groups]
            for other in others:
                if not same_value(other, whole[name]):
                    raise ValueError(
                        f"{name}: is of the whole optimizer, expected the same in every group, got {whole[name]!r} and "
                        f"{other!r}"
                    )
        return whole


def same_value(a: Any, b: Any) -> bool:
    """Whether two options are the same."""
    return a is b or (type(a) is type(b) and bool(a == b))


# ---- the engine ----


class RowPlaces(NamedTuple):
    """Where the rows of a table are that have a gradient, and their values, as `_core.Plan.set_rows` takes them."""

    numbers: tuple[int, bool, int]
    values: tuple[int, int]
    width: int
    threads: int


class Buffers(NamedTuple):
    """A parameter, its gradient and its states as the kernels are to see them, each (address, storage)."""

    length: int
    param: tuple[int, int]
    grad: tuple[int, int] | RowPlaces | None
    states: list[tuple[int, int]]
    kept: Any
    """What keeps them alive for the step."""
    stay: bool
    """Whether parameter and states can be used where they are, so that the plan can stay bound to them."""
    write_back: Sequence[Call] = ()
    """Where they cannot: what copies back after the step."""


class Request(NamedTuple):
    """What a step is to do with the gradients that the plan has been pointed at."""

    unscale: float
    clip_norm: float
    """Infinity: do not clip."""
    clip_value: float
    want_norm: bool
    nonfinite: str
    zero: bool
    average_weight: float
    """The parameters' in their moving averages."""
    after: list[Call]
    """What belongs to a step that was taken."""
    always: list[Call]
    """What is called after a skipped step too."""
    counter: Any
    """Of this object the attribute `step_count` counts the steps taken."""
    between: list[Call]
    """What is done to the updates that rules hand over."""


class Engine(ABC):
    """The step of some parameters of an optimizer. The backends say what it has to know of a framework's buffers.

    Parameters
    ----------
    face
        The optimizer.
    parts
        Of its groups, each with those of its parameters that are stepped here.
    """

    plan: _core.Plan
    watch: Any
    """What the plan is bound to: notices what has changed."""

    calls_of_framework: ClassVar[type[Calls]]
    """How the framework computes with its arrays."""

    strict: ClassVar[bool] = True
    """Whether options that were edited in a group, or come from a schedule, must be within their bounds."""

    def __init__(self, face: Any, parts: list[tuple[Group, list[Any]]]) -> None:
        self.face = weakref.proxy(face)  # which has the engine: dropped, it lets go of its arrays at once
        self.method: type[Method] = face.method
        self.rates = {name: _core.OPTIONS[name] for name in RATES if name in face.method.options}
        self.groups = [group for group, _ in parts]
        self.params = [param for _, params in parts for param in params]
        self.owners = [owner for owner, (_, params) in enumerate(parts) for _ in params]
        numbers = iter(range(len(self.params)))
        self.slots = [[next(numbers) for _ in params] for _, params in parts]
        self.plan = _core.Plan(self.owners, len(parts))
        self.seen: list[list[Any]] = [[] for _ in parts]
        self.values: list[Group] = [{} for _ in parts]
        self.rules: list[tuple[str, tuple[str, ...]]] = [("", ()) for _ in parts]
        if self.method.advances:
            columns = {name: _core.OPTIONS[name] for name in self.method.advances}
            self.plan.keep(columns, self.groups, self.seen, self.values)
        self.whole: Group = {}
        self.take_whole()
        self.made: list[tuple[int, str, Any]] = []
        self.products = Products(self.calls_of_framework)

    # ---- what the backends say ----

    @abstractmethod
    def look(self, grads: list[Any], zero: bool, given: bool) -> list[int]:
        """Point the plan at the gradients, all in the list then; return the parameters that have to be bound anew.

        `given`: they are in the list already, wherever those of the framework are.
        """

    @abstractmethod
    def gradients(self, grads: list[Any]) -> list[Any]:
        """Return the gradients of a step, one a parameter, or None."""

    @abstractmethod
    def zeroing(self, grads: list[Any]) -> list[Call]:
        """Return the calls that zero gradients."""

    @abstractmethod
    def label(self, slot: int) -> str:
        """Return what to call a parameter in messages."""

    @abstractmethod
    def check(self, slot: int) -> None:
        """Raise unless a parameter can be stepped on."""

    @abstractmethod
    def entry(self, slot: int) -> dict[str, Any]:
        """Return the dict that has a parameter's states."""

    def matrix(self, slot: int) -> tuple[int, int] | None:
        """Return rows, and elements of a row, of the matrices of a parameter whose states go by these."""
        _, names = self.rule_of(slot)
        of_rows = [state for name in names if (state := self.method.states[name]).of != "elements"]
        return of_rows[0].matrix(self.params[slot].shape) if of_rows else None

    @abstractmethod
    def found(self, slot: int, name: str) -> Any:
        """Return what is kept for a parameter under a name, or None."""

    @abstractmethod
    def dtype_name(self, slot: int) -> str:
        """Return the name of a parameter's dtype, or that of its parts if it is complex."""

    @abstractmethod
    def start_state(self, slot: int, name: str, storage: str, value: float | None) -> dict[str, Any]:
        """Return the entries of a new state, itself and what lies beside it; None makes it a copy of the parameter."""

    @abstractmethod
    def fit_state(self, slot: int, name: str, storage: str, entry: dict[str, Any]) -> dict[str, Any]:
        """Return a state's entries as the kernels can use them; raise if it can be none of this parameter."""

    @abstractmethod
    def address(self, array: Any) -> int:
        """Return where the memory of what lies beside a state begins."""

    @abstractmethod
    def count_place(self, slot: int, entry: dict[str, Any], fresh: bool) -> tuple[int, bool]:
        """Return where a parameter's steps are counted, and whether in float32. `fresh`: a state was made just now."""

    @abstractmethod
    def start_number(self, slot: int, value: float) -> Any:
        """Return a new number, which steps write."""

    @abstractmethod
    def number_place(self, slot: int, entry: dict[str, Any], name: str) -> tuple[int, bool]:
        """Return where a number of an entry is, and whether in float32; one that cannot be written is replaced."""

    @abstractmethod
    def start_decay(self, slot: int, value: Any) -> Any:
        """Return this number in double for each row of a parameter; None: one of zero for the parameter."""

    @abstractmethod
    def decay_place(self, slot: int, name: str, numbers: Any) -> int:
        """Return the address of a number for each row of a parameter; raise if they are none."""

    @abstractmethod
    def buffers(self, slot: int, grad: Any, states: list[Any], zero: bool) -> Buffers:
        """Return what the kernels are to see; raise if the gradient does not fit the parameter."""

    @abstractmethod
    def has_rows(self, slot: int, grad: Any) -> bool:
        """Whether a gradient is of some rows, or an earlier one was whose decays are kept."""

    @abstractmethod
    def has_stepped(self, slot: int, name: str) -> bool:
        """Whether a parameter has taken a step, so that its state of this name is there."""

    @abstractmethod
    def duplicate(self, slot: int) -> Any:
        """Return a copy of a parameter."""

    @abstractmethod
    def assign(self, slot: int, values: Any) -> None:
        """Write a parameter."""

    @abstractmethod
    def is_finite(self, grad: Any) -> bool:
        """Whether all entries of a gradient are finite."""

    @abstractmethod
    def threads(self) -> int:
        """Return how many threads a step may use at most."""

    @abstractmethod
    def is_transposed(self, slot: int) -> bool:
        """Whether a matrix lies in memory column by column."""

    def rule_of(self, slot: int) -> tuple[str, tuple[str, ...]]:
        """Return the rule by which a parameter is stepped, and the names of its states."""
        options = self.values[self.owners[slot]]
        return self.method.rule_for(options, self.params[slot].shape, partial(self.label, slot))

    def start_options(self, slot: int) -> Mapping[str, Any]:
        """Return the options that say what states start as."""
        return self.values[self.owners[slot]]

    def param_place(self, slot: int, place: tuple[int, int], entry: dict[str, Any]) -> tuple[int, ...]:
        """Return a parameter's (address, storage) with the address of what lies beside it, made now if need be."""
        return place

    def copy_of(self, slot: int) -> Any:
        """Return what a parameter is copied to in each step, or None."""
        return None

    def storage(self, slot: int, name: str) -> str:
        """Return how a state is to be stored."""
        own, wanted = self.dtype_name(slot), StateDtype.named(self.whole["state_dtype"])
        if own == "float64":
            return own
        if name in (AVERAGE, MEAN):
            return "float32"
        return own if wanted is None else STORED_AS[wanted][self.method.states[name].kind]

    def forget(self, slot: int, name: str, made: Any) -> None:
        """Take back an entry that was made for a step that was not taken, unless it has been replaced."""
        entry = self.entry(slot)
        if entry.get(name) is made:
            del entry[name]

    def calls(self, grads: list[Any], bound: dict[int, Buffers], zero: bool) -> tuple[bool, list[Any], list[Any]]:
        """Return whether the kernels can zero the gradients, and what has to be called: after a step, after zeroing."""
        return zero, [], []

    # ---- options ----

    def options(self) -> Group:
        """Look at the groups; return the options of the whole optimizer as they are at this step."""
        low = 0.0 if self.strict else -math.inf
        for owner in self.plan.follow(self.groups, self.seen, self.values, self.rates, low):
            self.whole_is_known = False  # (an error or an interrupt may come before it is)
            self.take_options(owner, self.groups[owner], list(self.groups[owner].values()))
        if not self.whole_is_known:
            self.take_whole()
        if self.whole_is_fixed:
            return self.whole
        self.face._check_whole(self.whole)
        return {name: at_step(value, self.face.step_count) for name, value in self.whole.items()}

    def take_options(self, owner: int, group: Group, given: list[Any]) -> None:
        """Look at a group's options: it is new, was edited, or has schedules."""
        values = self.method.at(group, self.face.step_count)
        self.method.check(values, edited=not self.strict)
        if values != self.values[owner]:
            rule, before = self.method.rule(values), self.values[owner]
            if rule != self.rules[owner] or any(values[name] != before.get(name) for name in self.method.between):
                self.release(owner)
            numbers = {
                key: number
                for name, option in self.method.options.items()
                for key, number in option.numbers(name, values[name]).items()
                if key in _core.OPTIONS
            }
            self.values[owner] = {}  # what they are is uncertain until all of them are set
            self.plan.set_options(owner, tuple(map(_core.OPTIONS.__getitem__, numbers)), list(numbers.values()))
            self.rules[owner] = rule
            self.values[owner] = values
        # What can change without being replaced is looked at each time.
        fixed = all(is_fixed(group[name]) for name in (*self.method.options, *self.face.whole) if name in group)
        self.seen[owner] = given if fixed else []

    def take_whole(self) -> None:
        """Look at the options of the whole optimizer."""
        before = self.kept_whole() if self.whole else None
        times = self.whole.get("accumulate")
        self.whole = self.face._whole_options(self.groups)
        if times not in (None, self.whole["accumulate"]):  # what was added up for another number of times is dropped
            for group in self.groups:
                group.pop(ADDED, None)
        if before is not None and before != self.kept_whole():
            for owner in range(len(self.groups)):
                self.release(owner)
        self.whole_is_fixed = all(map(is_fixed, self.whole.values()))
        if self.whole_is_fixed:
            self.face._check_whole(self.whole)
        self.whole_is_known = True

    def kept_whole(self) -> tuple[Any, ...]:
        """Return what decides which states there are besides the rule's, and how all are stored."""
        how = (self.whole.get("master"), self.whole.get("rounding"))
        return StateDtype.named(self.whole["state_dtype"]), self.whole["ema"] is not None, *how

    def release(self, owner: int) -> None:
        """Bind a group's parameters anew when they are needed next."""
        for slot in self.slots[owner]:
            self.watch.release(slot)

    # ---- the step ----

    def step(
        self, grads: list[Any], *, zero: bool | None = None, unscale: float = 1.0, counter: Any = None
    ) -> StepInfo:
        """Step with the gradients in the list, one a parameter; None leaves a parameter out.

        `unscale` multiplies the gradients, `zero` says whether to zero them in the same pass (None: the option
        `zero_grad_in_step` does); of the object `counter` the attribute `step_count` counts the steps taken. Unless the
        gradients are enough for a step (`accumulate`), they are only added to those before.
        """
        whole = self.options()
        if self.method.advances:
            self.method.check_groups(self.values)
        zero = bool(whole["zero_grad_in_step"]) if zero is None else zero
        if whole["accumulate"] == 1:
            return self.take(grads, whole, zero, unscale, counter)
        added = self.add(grads, whole["accumulate"], zero, unscale)
        if added < whole["accumulate"]:
            return StepInfo(self.rate(), None, False, False)
        means = [self.found(slot, MEAN) for slot in range(len(self.params))]
        info = None
        try:
            info = self.take(means, whole, False, 1.0, counter, given=True)
        finally:
            for group in self.groups:
                group.pop(ADDED, None)
            if info is None or info.skipped:
                self.forget_means(range(len(self.params)))
        return info

    def rate(self) -> float:
        """Return the learning rate of the first group."""
        return self.values[0]["lr"] if self.values else math.nan

    def forget_means(self, slots: Iterable[int]) -> None:
        """Let go of what gradients were added up in."""
        for slot in slots:
            mean = self.found(slot, MEAN)
            if mean is not None:
                self.forget(slot, MEAN, mean)

    def add(self, grads: list[Any], most: int, zero: bool, unscale: float) -> int:
        """Add the gradients to those since the last step, in one pass: the mean of them moves towards these.

        Return of how many it is the mean then. A parameter without a gradient counts as one with a gradient of zero,
        unless it has had none at all.
        """
        added = max((as_count(group.get(ADDED, 0), ADDED) for group in self.groups), default=0)
        added = 1 if added >= most else added + 1
        own = self.gradients(grads)
        grads = own if unscale == 1 else [None if grad is None else grad * unscale for grad in own]
        sums = _core.Plan([0] * len(self.params), 1)
        try:
            bound = {slot: self.bind(slot, grads[slot], zero) for slot in self.look(grads, zero, True)}
            for slot, buffers in bound.items():
                if isinstance(buffers.grad, RowPlaces):
                    raise TypeError(
                        f"gradient of {self.label(slot)}: is of some rows, which accumulate={most} does not add"
                    )
            means = {slot: self.mean_of(slot) for slot, grad in enumerate(grads) if grad is not None}
            kept = [self.buffers(slot, None, [mean], False) for slot, mean in means.items()]
            for slot, buffers in zip(means, kept, strict=True):
                sums.bind(slot, "sgd", buffers.length, buffers.states[0], [])
        finally:
            self.undo()
        missing = [slot for slot, grad in enumerate(grads) if grad is None]
        if added == 1:
            self.forget_means(missing)
        fewer = [mean for mean in (self.found(slot, MEAN) for slot in missing) if mean is not None]
        call = self.calls_of_framework.call
        after = [call("multiply", mean, (added - 1) / added, out=mean) for mean in fewer]
        after += [(group.__setitem__, ADDED, added) for group in self.groups]
        after += self.zeroing(own) if zero else []
        self.plan.add_to(sums, 1 / added, self.threads(), after)
        return added

    def mean_of(self, slot: int) -> Any:
        """Return the mean of a parameter's gradients so far, made now if need be."""
        entry, storage = self.entry(slot), self.storage(slot, MEAN)
        if entry.get(MEAN) is None:
            entry.update(self.start_state(slot, MEAN, storage, 0.0))
        else:
            entry.update(self.fit_state(slot, MEAN, storage, entry))
        return entry[MEAN]

    def take(
        self,
        grads: list[Any],
        whole: Group,
        zero: bool,
        unscale: float,
        counter: Any,
        given: bool = False,
    ) -> StepInfo:
        """Take a step."""
        clip_norm, nonfinite = whole["clip_norm"], whole["nonfinite"]
        try:
            bound = {slot: self.bind(slot, grads[slot], zero) for slot in self.look(grads, zero, given)}
            zero_in_pass, after, after_zeroing = self.calls(grads, bound, zero)
            skips = nonfinite == "skip"
            request = Request(
                unscale,
                math.inf if clip_norm is None else clip_norm,
                math.inf if whole["clip_value"] is None else whole["clip_value"],
                clip_norm is not None,
                nonfinite,
                zero_in_pass,
                0.0 if whole["ema"] is None else 1.0 - whole["ema"],
                after if skips else [*after, *after_zeroing],
                after_zeroing if skips else [],
                counter,
                self.products.calls(self, grads),
            )
            norm, coefficient, skipped = self.run(grads, request)
        except BaseException:
            self.undo()
            raise
        if skipped:
            self.undo()
            if nonfinite == "raise":
                raise FloatingPointError(f"not finite: {self.nonfinite(grads)}")
        known = clip_norm is not None or nonfinite != "propagate"
        return StepInfo(self.rate(), norm if known else None, coefficient != 1.0, skipped)

    def run(self, grads: list[Any], request: Request) -> tuple[float, float, bool]:
        """Call the kernels; return the norm before clipping, the clip coefficient and whether the step was skipped."""
        return self.plan.step(self.threads(), self.made, *request)

    def bind(self, slot: int, grad: Any, zero: bool = False) -> Buffers:
        """Check a parameter, its gradient and its states, made where there are none; point the plan at them."""
        self.watch.release(slot)
        self.check(slot)
        options = self.values[self.owners[slot]]
        rule, names = self.rule_of(slot)
        kept, in_rows = self.method.numbers, self.method.row_numbers(rule, options)
        arrays = names if self.whole["ema"] is None else (*names, AVERAGE)
        catches_up = self.catches_up(slot, grad)
        entry = self.entry(slot) if self.has_entry(slot, bool(arrays or kept or catches_up)) else {}
        swapped = entry.get(ASIDE) is not None
        if swapped and grad is not None:
            raise RuntimeError(f"{self.label(slot)}: its moving average is in its place; swap_ema() puts it back")
        fresh = [name for name in names if entry.get(name) is None]
        numbers = [self.count_place(slot, entry, bool(fresh))]
        stored = {name: self.storage(slot, name) for name in arrays}
        for name in (*kept, *arrays):  # (torch's order)
            if entry.get(name) is None:
                start = None if name == AVERAGE else self.method.start(name, self.start_options(slot))
                if name in kept:
                    made = {name: self.start_number(slot, cast(float, start))}
                else:
                    made = self.start_state(slot, name, stored[name], start)
                self.enter(slot, entry, made)
            elif name in arrays:
                fit = self.fit_state(slot, name, stored[name], entry)
                if any(entry.get(key) is not value for key, value in fit.items()):
                    entry.update(fit)
                if stored[name] not in _core.BESIDE:
                    entry.pop(scales_of(name), None)
        numbers += [self.number_place(slot, entry, name) for name in kept]
        for name in in_rows:
            if entry.get(name) is None:
                self.enter(slot, entry, {name: self.start_decay(slot, 0.0)})
            self.decay_place(slot, name, entry[name])
        states, copy = [entry[name] for name in arrays], self.copy_of(slot)
        buffers = self.buffers(slot, grad, states if copy is None else [*states, copy], zero)
        places: list[tuple[int, ...]] = [
            (at, _core.STORAGES[stored[name]]) for name, (at, _) in zip(arrays, buffers.states, strict=False)
        ]
        beside = {scales_of(name): entry[scales_of(name)] for name in names if stored[name] in _core.BESIDE}
        for k, name in enumerate(names):
            if scales_of(name) in beside:
                places[k] = (*places[k], self.address(beside[scales_of(name)]))
        param = self.param_place(slot, buffers.param, entry)
        beside |= {name: entry[name] for name in (REMAINDER, MASTER) if entry.get(name) is not None}
        table = self.table(slot, entry, buffers.length) if catches_up else None
        states_of_rule = places[: len(names)]
        if rule in _core.HANDED_OVER:
            states_of_rule.append(self.products.place(self, slot))
        self.plan.bind(slot, rule, buffers.length, param, states_of_rule, numbers, table, self.matrix(slot))
        self.plan.bind_tails(
            slot, places[-1] if AVERAGE in arrays else None, None if copy is None else buffers.states[-1]
        )
        if isinstance(buffers.grad, RowPlaces):
            self.set_rows(slot, buffers.grad)
        else:
            self.plan.set_gradient(slot, buffers.grad)
        if buffers.stay and table is None and not swapped:
            counted = ("step",) if "step" in entry else ()
            self.watch.hold(slot, self.params[slot], entry or None, (*arrays, *counted, *kept), states, beside)
        return buffers

    def enter(self, slot: int, entry: dict[str, Any], made: dict[str, Any]) -> None:
        """Put into an entry what was made for a step; `undo` takes it back."""
        for name, value in made.items():
            entry[name] = value
            self.made.append((slot, name, value))

    def rows_are_whole(self, width: int, in_order: bool) -> bool:
        """Whether rows of a width can be stepped alone: in what lies beside elements they are rows, of whole groups."""
        master = self.whole.get("master")
        grouped = self.whole["state_dtype"] == "8bit" or master in _core.BESIDE
        return (in_order or not (grouped or master)) and not (grouped and width % _core.GROUP)

    def has_entry(self, slot: int, has_states: bool) -> bool:
        """Whether something is kept for a parameter."""
        return has_states or self.method.counts_steps

    def catches_up(self, slot: int, grad: Any) -> bool:
        """Whether a parameter's rows have decays of their own: from the first gradient of some rows on."""
        return self.method.catches_up(self.values[self.owners[slot]]) and self.has_rows(slot, grad)

    def table(self, slot: int, entry: dict[str, Any], length: int) -> tuple[int, int, tuple[int, bool]]:
        """Return where it is kept which decays a parameter's rows have had, made now if need be.

        `log_decay` is the logarithm of the product of all decays so far, `row_log_decay` of those that a row has had.
        """
        for name in ("log_decay", "row_log_decay"):
            if entry.get(name) is None:
                made = self.start_decay(slot, None if name == "log_decay" else entry["log_decay"])
                self.enter(slot, entry, {name: made})
        width = length // max([1, *self.params[slot].shape[:1]])
        return (
            width,
            self.decay_place(slot, "row_log_decay", entry["row_log_decay"]),
            self.number_place(slot, entry, "log_decay"),
        )

    def set_rows(self, slot: int, rows: RowPlaces) -> None:
        """Say which rows of a parameter have a gradient."""
        try:
            self.plan.set_rows(slot, *rows)
        except IndexError as error:
            raise IndexError(f"gradient of {self.label(slot)}: {error}") from None

    def swap_average(self) -> None:
        """Put the moving averages in the parameters' places, or the parameters back."""
        swapped = [slot for slot in range(len(self.params)) if self.found(slot, ASIDE) is not None]
        averaged = [slot for slot in range(len(self.params)) if self.found(slot, AVERAGE) is not None]
        if not swapped and not averaged:
            raise RuntimeError("there is no moving average: the option `ema` keeps one of the parameters")
        for owner in range(len(self.groups)):
            self.release(owner)
        if swapped:
            for slot in swapped:
                self.assign(slot, self.entry(slot).pop(ASIDE))
            return
        for slot, values in [(slot, self.duplicate(slot)) for slot in averaged]:
            self.entry(slot)[ASIDE] = values
            self.assign(slot, self.entry(slot)[AVERAGE])

    def bind_all(self) -> None:
        """Make the states and bind the plan before there are gradients, so that the first step allocates nothing.

        What was made is in `made`: `undo` takes it back.
        """
        self.options()
        try:
            for slot in range(len(self.params)):
                self.bind(slot, None)
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """Take back the states that were made for a step that was not taken."""
        while self.made:
            slot, name, made = self.made[-1]
            self.watch.release(slot)
            self.forget(slot, name, made)
            self.made.pop()

    def nonfinite(self, grads: list[Any]) -> str:
        """Return what to call the gradients that are not finite."""
        names = [
            f"gradient of {self.label(slot)}"
            for slot, grad in enumerate(grads)
            if grad is not None and not self.is_finite(grad)
        ]
        return ", ".join(names) or "a gradient in another process"
