r"""Schedules: hyper-parameters that depend on the step.

A schedule is a pure function of the 0-based number of steps taken so far. Every optimizer takes one wherever it takes
a number, so the learning rate, the momentum or the weight decay may all move:

>>> from fastopt import schedules
>>> lr = schedules.warmup_cosine(peak=6e-4, warmup=2000, total=100000)
>>> lr(1000)
0.0003
>>> lr([0, 2000, 100000, 10**9])
array([0.    , 0.0006, 0.    , 0.    ])

====================== ===============================================================================
Schedule               Value at step t
====================== ===============================================================================
`constant`             value
`piecewise`            values[i] for boundaries[i-1] <= t < boundaries[i]
`step_decay`           start * factor^floor(t / every)
`exponential_decay`    start * e^(-rate t)
`linear`               start + (end - start) * x,                              x = min(t / total, 1)
`polynomial`           end + (start - end) * (1 - x)^power,                    x = min(t / total, 1)
`cosine`               floor + (peak - floor) / 2 * (1 + cos(pi x)),           x = min(t / total, 1)
`cosine_restarts`      the same with x running from 0 to 1 anew in every cycle, cycle i taking
                       period * multiplier^i steps
`inverse_sqrt`         peak * min(t / warmup, sqrt(warmup / t))
`warmup_cosine`        peak * t / warmup, then the cosine from peak to floor over total - warmup steps
`warmup_stable_decay`  peak * t / warmup, then peak, then linear to floor over the last `decay` steps
`one_cycle`            up to max_lr and down again; its `momentum` goes down and up again
`linear_warmup`        linear from start to then(0), after that then(t - warmup)
`join`                 schedules[i](t - boundaries[i-1]) for boundaries[i-1] <= t < boundaries[i]
`ReduceOnPlateau`      lr * factor^n after n reductions: the only one with state, it has to see the metric
====================== ===============================================================================

All but `ReduceOnPlateau` are frozen and hashable, compare by value, can be pickled, and their `repr` evaluates back to
an equal schedule. Resuming a run therefore needs the step counter and nothing else. An argument that cannot be right
raises a ValueError, one of the wrong type a TypeError; the message names the argument, what was expected and what came.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from itertools import pairwise
from numbers import Integral, Real
from typing import Annotated, Any, Literal, NoReturn, TypeAlias, get_type_hints, overload

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ReduceOnPlateau",
    "Schedule",
    "constant",
    "cosine",
    "cosine_restarts",
    "exponential_decay",
    "inverse_sqrt",
    "join",
    "linear",
    "linear_warmup",
    "one_cycle",
    "piecewise",
    "polynomial",
    "step_decay",
    "warmup_cosine",
    "warmup_stable_decay",
]

Value: TypeAlias = float | NDArray[np.floating[Any]]
"""A formula is written once and evaluated on a float (one step) or on an array (many)."""


# Checks ---------------------------------------------------------------------------------------------------------------
#
# A field says in its annotation what it accepts; `Schedule.__post_init__` reads the annotation and applies the check.
# A check takes the argument's name and value and returns the value as it is to be stored.

Check: TypeAlias = Callable[[str, Any], Any]


def _number(expected: str, accepts: Callable[[float], bool] = lambda number: True) -> Check:
    def check(name: str, value: Any) -> float:
        if not isinstance(value, Real):
            raise TypeError(f"{name} must be {expected}, got {value!r}")
        number = int(value) if isinstance(value, Integral) else float(value)
        if not (math.isfinite(number) and accepts(number)):
            raise ValueError(f"{name} must be {expected}, got {value!r}")
        return number

    return check


def _count(name: str, value: Any) -> int:
    if not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer >= 0, got {value!r}")
    if value < 0:
        raise ValueError(f"{name} must be an integer >= 0, got {value!r}")
    return int(value)


def _choice(*choices: str) -> Check:
    def check(name: str, value: Any) -> str:
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
        return str(value)

    return check


def _each(check_item: Check) -> Check:
    def check(name: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, Sequence | np.ndarray):
            raise TypeError(f"{name} must be a sequence, got {value!r}")
        return tuple(check_item(f"{name}[{i}]", item) for i, item in enumerate(value))

    return check


def _increasing(name: str, value: Any) -> tuple[float, ...]:
    steps: tuple[float, ...] = _each(_positive_steps)(name, value)
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise ValueError(f"{name} must be strictly increasing, got {value!r}")
    return steps


def _schedule(name: str, value: Any) -> Schedule:
    if not isinstance(value, Schedule):
        raise TypeError(f"{name} must be a schedule (`constant(x)` makes one of a number), got {value!r}")
    return value


def _optional(check_present: Check) -> Check:
    return lambda name, value: None if value is None else check_present(name, value)


_finite = _number("a finite number")
_positive_steps = _number("a finite number of steps > 0", lambda steps: steps > 0)

Finite = Annotated[float, _finite]
Positive = Annotated[float, _number("a finite number > 0", lambda number: number > 0)]
NonNegative = Annotated[float, _number("a finite number >= 0", lambda number: number >= 0)]
AtLeastOne = Annotated[float, _number("a finite number >= 1", lambda number: number >= 1)]
DecayFactor = Annotated[float, _number("a number with 0 < factor <= 1", lambda factor: 0 < factor <= 1)]
Shrinking = Annotated[float, _number("a number with 0 < factor < 1", lambda factor: 0 < factor < 1)]
Momentum = Annotated[float, _number("a number with 0 <= momentum < 1", lambda momentum: 0 <= momentum < 1)]
Steps = Annotated[float, _positive_steps]
StepsOrZero = Annotated[float, _number("a finite number of steps >= 0", lambda steps: steps >= 0)]
Boundaries = Annotated[Sequence[float], _increasing]
Count = Annotated[int, _count]


@cache
def _checks(cls: type) -> dict[str, Check]:
    hints = get_type_hints(cls, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if hasattr(hint, "__metadata__")}


# Formulas -------------------------------------------------------------------------------------------------------------
#
# One step and an array of steps must give the same numbers. Hence NumPy's functions rather than `math`'s, which differ
# in the last place, and `np.float_power` rather than `np.power`, which squares when one exponent is 2 but not when a 2
# is among many.


def _clip(x: Value, low: float, high: float) -> Value:
    if isinstance(x, float):
        return low if x < low else high if x > high else x  # np.clip takes 3 us for one number
    return np.clip(x, low, high)


def _progress(t: Value, begin: float, end: float) -> Value:
    """Fraction of the way from step `begin` to step `end`: 0 before, 1 after."""
    if begin == end:
        return (t >= end) * 1.0
    return _clip((t - begin) / (end - begin), 0.0, 1.0)


def _interpolate(start: Value, end: Value, fraction: Value) -> Value:
    """Straight line; this form is exact at both ends."""
    return start * (1.0 - fraction) + end * fraction


def _half_cosine(start: float, end: float, fraction: Value) -> Value:
    return _interpolate(end, start, (1.0 + np.cos(math.pi * fraction)) / 2.0)


def _not_one_more(name: str, pieces: int, boundaries: int) -> str | None:
    if pieces == boundaries + 1:
        return None
    return f"{name} must be one more than boundaries, got {pieces} {name} and {boundaries} boundaries"


# The schedules --------------------------------------------------------------------------------------------------------


class Schedule(ABC):
    """What all schedules have in common: call one with a step, or with an array of steps.

    One of your own is a frozen dataclass derived from this class with a method ``_value(t)``, a formula in NumPy
    functions that holds for a float `t` as well as for a float64 array.
    """

    def __post_init__(self) -> None:
        """Check the arguments one by one, then together."""
        for argument in fields(self):  # type: ignore[arg-type]  # every schedule is a dataclass
            check = _checks(type(self)).get(argument.name)
            if argument.init and check is not None:
                name = f"{type(self).__name__}: {argument.name}"
                object.__setattr__(self, argument.name, check(name, getattr(self, argument.name)))
        if conflict := self._conflict():
            raise ValueError(f"{type(self).__name__}: {conflict}")

    @overload
    def __call__(self, step: float | np.integer[Any] | np.floating[Any]) -> float: ...
    @overload
    def __call__(self, step: NDArray[Any] | Sequence[float]) -> NDArray[np.float64]: ...
    def __call__(self, step: Any) -> Value:
        """Value at a step.

        Parameters
        ----------
        step : int, float or array_like of them
            Number of steps taken so far, 0 or more. Fractions are allowed.

        Returns
        -------
        float or ndarray of float64
            A float for one step; for an array of steps, an array of its shape with exactly the same numbers.

        Raises
        ------
        ValueError
            If a step is negative, infinite or NaN.
        TypeError
            If a step is not a number.
        """
        if isinstance(step, (int, float)):
            if not 0 <= step < math.inf:
                raise ValueError(f"step must be a finite number >= 0, got {step!r}")
            return float(self._value(float(step)))
        steps = np.asarray(step)
        if steps.dtype.kind not in "iuf":
            raise TypeError(f"step must be a number or an array of numbers, got {step!r}")
        if steps.ndim == 0:
            return self(float(steps))
        outside = ~((steps >= 0) & (steps < math.inf))
        if outside.any():
            raise ValueError(f"step must be a finite number >= 0, got {steps[outside][0]!s} in an array of steps")
        return np.full(steps.shape, self._value(steps.astype(np.float64)), dtype=np.float64)

    def _refuse(self, *_: Any) -> NoReturn:
        """Raise `TypeError`: it is not this object, but its values, that one can calculate with."""
        raise TypeError(
            f"{type(self).__name__} is a schedule, which sets an option at every step, and no number; a scheduler (of "
            "torch.optim.lr_scheduler) cannot set the same option: drop one of the two"
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __pow__ = __rpow__ = __neg__ = __float__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse

    def _conflict(self) -> str | None:
        """Say what is wrong between the arguments, each of which is right by itself."""
        return None

    @abstractmethod
    def _value(self, t: Value) -> Value:
        """Value at step `t`, which is finite and not negative; a float stands for the same value at every step."""


@dataclass(frozen=True)
class constant(Schedule):
    """The same value at every step: ``value``.

    Parameters
    ----------
    value : float
        The value.

    Examples
    --------
    >>> constant(0.1)([0, 1000])
    array([0.1, 0.1])
    """

    value: Finite

    def _value(self, t: Value) -> Value:
        return self.value


@dataclass(frozen=True)
class piecewise(Schedule):
    """Constant pieces: ``values[i]`` for ``boundaries[i-1] <= t < boundaries[i]``.

    Parameters
    ----------
    boundaries : sequence of float
        The steps at which the value changes, strictly increasing. At a boundary the new value holds.
    values : sequence of float
        The values, one more than boundaries.

    Examples
    --------
    >>> piecewise([300, 600], [1.0, 0.3, 0.1])([0, 299, 300, 600, 900])
    array([1. , 1. , 0.3, 0.1, 0.1])
    """

    boundaries: Boundaries
    values: Annotated[Sequence[float], _each(_finite)]

    def _conflict(self) -> str | None:
        return _not_one_more("values", len(self.values), len(self.boundaries))

    def _value(self, t: Value) -> Value:
        if isinstance(t, float):
            return self.values[bisect_right(self.boundaries, t)]
        return np.asarray(self.values, dtype=np.float64)[np.searchsorted(self.boundaries, t, side="right")]


@dataclass(frozen=True)
class step_decay(Schedule):
    """A staircase: ``start * factor^floor(t / every)``.

    Parameters
    ----------
    start : float
        Value at step 0.
    factor : float
        What the value is multiplied by at each stair, in (0, 1].
    every : float
        Length of a stair in steps.

    Examples
    --------
    >>> step_decay(1.0, factor=0.5, every=250)([0, 249, 250, 500, 1000])
    array([1.    , 1.    , 0.5   , 0.25  , 0.0625])
    """

    start: Finite
    factor: DecayFactor
    every: Steps

    def _value(self, t: Value) -> Value:
        return self.start * np.float_power(self.factor, t // self.every)


@dataclass(frozen=True)
class exponential_decay(Schedule):
    """Exponential decay: ``start * e^(-rate t)``.

    Parameters
    ----------
    start : float
        Value at step 0.
    rate : float
        Decay rate per step, 0 or more. The value halves every ``log(2) / rate`` steps; to multiply it by `g` at each
        step, take ``rate=-log(g)``.

    Examples
    --------
    >>> exponential_decay(1.0, rate=0.003)([0, 1000])
    array([1.        , 0.04978707])
    """

    start: Finite
    rate: NonNegative

    def _value(self, t: Value) -> Value:
        return self.start * np.exp(-self.rate * t)


@dataclass(frozen=True)
class linear(Schedule):
    """A straight line: ``start + (end - start) * min(t / total, 1)``.

    Parameters
    ----------
    start, end : float
        Values at step 0 and from step `total` on.
    total : float
        Length of the line in steps.

    Examples
    --------
    >>> linear(1.0, 0.1, total=800)([0, 400, 800, 1000])
    array([1.  , 0.55, 0.1 , 0.1 ])
    """

    start: Finite
    end: Finite
    total: Steps

    def _value(self, t: Value) -> Value:
        return _interpolate(self.start, self.end, _progress(t, 0, self.total))


@dataclass(frozen=True)
class polynomial(Schedule):
    """Polynomial decay: ``end + (start - end) * (1 - min(t / total, 1))^power``.

    Parameters
    ----------
    start, end : float
        Values at step 0 and from step `total` on.
    total : float
        Length of the decay in steps.
    power : float, default 1.0
        The exponent, positive. Above 1 the value moves fast first, below 1 fast last.

    Examples
    --------
    >>> polynomial(1.0, 0.0, total=800, power=2)([0, 400, 800, 1000])
    array([1.  , 0.25, 0.  , 0.  ])
    """

    start: Finite
    end: Finite
    total: Steps
    power: Positive = 1.0

    def _value(self, t: Value) -> Value:
        return _interpolate(self.end, self.start, np.float_power(1.0 - _progress(t, 0, self.total), self.power))


@dataclass(frozen=True)
class cosine(Schedule):
    """Half a cosine: ``floor + (peak - floor) / 2 * (1 + cos(pi min(t / total, 1)))``.

    The value is flat from step `total` on. A `floor` above `peak` makes it rise.

    Parameters
    ----------
    peak : float
        Value at step 0.
    total : float
        Length of the half wave in steps.
    floor : float, default 0.0
        Value from step `total` on.

    References
    ----------
    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017 (without the restarts).

    Examples
    --------
    >>> cosine(1.0, total=800, floor=0.1)([0, 400, 800, 1000])
    array([1.  , 0.55, 0.1 , 0.1 ])
    """

    peak: Finite
    total: Steps
    floor: Finite = 0.0

    def _value(self, t: Value) -> Value:
        return _half_cosine(self.peak, self.floor, _progress(t, 0, self.total))


@dataclass(frozen=True)
class cosine_restarts(Schedule):
    """Half cosines one after another, each starting at `peak` again.

    Within a cycle: ``floor + (peak - floor) / 2 * (1 + cos(pi s / T))``, `s` being the steps since the last restart
    and ``T = period * multiplier^i`` the length of cycle `i` = 0, 1, ...

    Parameters
    ----------
    peak : float
        Value at each restart.
    period : float
        Length of the first cycle in steps.
    multiplier : float, default 1
        How many times longer each cycle is than the one before, 1 or more.
    floor : float, default 0.0
        Value that a cycle approaches at its end.

    References
    ----------
    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017.

    Examples
    --------
    >>> cosine_restarts(1.0, period=200, multiplier=2)([0, 100, 200, 400, 1000])
    array([1. , 0.5, 1. , 0.5, 0.5])
    """

    peak: Finite
    period: Steps
    multiplier: AtLeastOne = 1
    floor: Finite = 0.0

    def _value(self, t: Value) -> Value:
        if self.multiplier == 1:
            return _half_cosine(self.peak, self.floor, t % self.period / self.period)
        growth = self.multiplier - 1
        # Cycle i opens where the logarithm is i, which rounding may put just below. Up to step 1e11, 1e-12 is above
        # that rounding and below what one step makes.
        cycle = np.floor(np.log1p(t / self.period * growth) / math.log(self.multiplier) + 1e-12)
        length = self.period * np.float_power(self.multiplier, cycle)
        return _half_cosine(self.peak, self.floor, (t - (length - self.period) / growth) / length)


@dataclass(frozen=True)
class inverse_sqrt(Schedule):
    """Linear warm-up, then decay with the root of the step: ``peak * min(t / warmup, sqrt(warmup / t))``.

    Parameters
    ----------
    peak : float
        The highest value, at step `warmup`. The paper's is ``1 / sqrt(d_model * warmup)``.
    warmup : float
        Length of the warm-up in steps.

    References
    ----------
    Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 5.3.

    Examples
    --------
    >>> inverse_sqrt(1.0, warmup=100)([0, 50, 100, 400, 1000])
    array([0.        , 0.5       , 1.        , 0.5       , 0.31622777])
    """

    peak: Finite
    warmup: Steps

    def _value(self, t: Value) -> Value:
        decay = np.sqrt(self.warmup / _clip(t, self.warmup, math.inf))
        return self.peak * _progress(t, 0, self.warmup) * decay


@dataclass(frozen=True)
class warmup_cosine(Schedule):
    """The usual recipe for transformers: linear warm-up from 0 to `peak`, then half a cosine down to `floor`.

    ``peak * t / warmup`` before step `warmup`, then
    ``floor + (peak - floor) / 2 * (1 + cos(pi (t - warmup) / (total - warmup)))``, flat from step `total` on.

    Parameters
    ----------
    peak : float
        Value at step `warmup`.
    warmup : float
        Length of the warm-up in steps, less than `total`; 0 for none.
    total : float
        Length of the warm-up and the cosine together in steps.
    floor : float, default 0.0
        Value from step `total` on.

    References
    ----------
    Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017 (the warm-up);
    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017 (the cosine).

    Examples
    --------
    >>> warmup_cosine(peak=6e-4, warmup=2000, total=100000)([0, 1000, 2000, 51000, 100000])
    array([0.    , 0.0003, 0.0006, 0.0003, 0.    ])
    """

    peak: Finite
    warmup: StepsOrZero
    total: Steps
    floor: Finite = 0.0

    def _conflict(self) -> str | None:
        if self.warmup < self.total:
            return None
        return f"warmup must be less than total = {self.total}, got {self.warmup}"

    def _value(self, t: Value) -> Value:
        decayed = _half_cosine(self.peak, self.floor, _progress(t, self.warmup, self.total))
        return _progress(t, 0, self.warmup) * decayed


@dataclass(frozen=True)
class warmup_stable_decay(Schedule):
    """Linear warm-up from 0 to `peak`, a plateau, then a straight line down to `floor`.

    ``peak * t / warmup`` before step `warmup`, `peak` until step ``total - decay``, then
    ``peak + (floor - peak) * (t - (total - decay)) / decay``, flat from step `total` on. A checkpoint taken on the
    plateau may be trained further, or decayed at any time.

    Parameters
    ----------
    peak : float
        Value on the plateau.
    warmup : float
        Length of the warm-up in steps; 0 for none.
    total : float
        Length of all three parts together in steps.
    decay : float
        Length of the decay in steps; `warmup` and `decay` together are at most `total`.
    floor : float, default 0.0
        Value from step `total` on.

    References
    ----------
    Zhai et al., "Scaling Vision Transformers", CVPR 2022 (the linear cooldown);
    Hu et al., "MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training Strategies", COLM 2024.

    Examples
    --------
    >>> warmup_stable_decay(1.0, warmup=100, total=900, decay=200)([0, 50, 100, 700, 800, 1000])
    array([0. , 0.5, 1. , 1. , 0.5, 0. ])
    """

    peak: Finite
    warmup: StepsOrZero
    total: Steps
    decay: Steps
    floor: Finite = 0.0

    def _conflict(self) -> str | None:
        if self.warmup + self.decay <= self.total:
            return None
        return f"warmup + decay must be at most total = {self.total}, got {self.warmup} + {self.decay}"

    def _value(self, t: Value) -> Value:
        decayed = _interpolate(self.peak, self.floor, _progress(t, self.total - self.decay, self.total))
        return _progress(t, 0, self.warmup) * decayed


@dataclass(frozen=True)
class linear_warmup(Schedule):
    """A linear warm-up into any schedule.

    ``start + (then(0) - start) * t / warmup`` before step `warmup`, after that ``then(t - warmup)``: the schedule that
    follows counts its own steps from 0.

    Parameters
    ----------
    warmup : float
        Length of the warm-up in steps; 0 for none.
    then : Schedule
        What follows.
    start : float, default 0.0
        Value at step 0.

    References
    ----------
    Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017, section 2.2.

    Examples
    --------
    >>> linear_warmup(4, constant(0.1))([0, 1, 2, 4, 5])
    array([0.   , 0.025, 0.05 , 0.1  , 0.1  ])
    """

    warmup: StepsOrZero
    then: Annotated[Schedule, _schedule]
    start: Finite = 0.0

    def _value(self, t: Value) -> Value:
        then = self.then._value(_clip(t - self.warmup, 0.0, math.inf))
        return _interpolate(self.start, then, _progress(t, 0, self.warmup))


@dataclass(frozen=True)
class join(Schedule):
    """Schedules one after another, each counting its own steps from 0.

    ``schedules[i](t - boundaries[i-1])`` for ``boundaries[i-1] <= t < boundaries[i]``.

    Parameters
    ----------
    schedules : sequence of Schedule
        The schedules, one more than boundaries.
    boundaries : sequence of float
        The steps at which the next schedule takes over, strictly increasing.

    Examples
    --------
    >>> join([constant(1.0), linear(1.0, 0.0, total=4)], [2])([0, 2, 3, 4, 6, 7])
    array([1.  , 1.  , 0.75, 0.5 , 0.  , 0.  ])
    """

    schedules: Annotated[Sequence[Schedule], _each(_schedule)]
    boundaries: Boundaries

    def _conflict(self) -> str | None:
        return _not_one_more("schedules", len(self.schedules), len(self.boundaries))

    def _value(self, t: Value) -> Value:
        starts = (0.0, *self.boundaries)
        if isinstance(t, float):
            piece = bisect_right(self.boundaries, t)
            return self.schedules[piece]._value(t - starts[piece])
        pieces = np.searchsorted(self.boundaries, t, side="right")
        values = np.empty_like(t)
        for i, (schedule, start) in enumerate(zip(self.schedules, starts, strict=True)):
            here = pieces == i
            values[here] = schedule._value(t[here] - start)
        return values


@dataclass(frozen=True)
class one_cycle(Schedule):
    """One rise and one fall of the learning rate, and the opposite of the momentum.

    The learning rate goes from ``max_lr / div_factor`` up to `max_lr` and down to
    ``max_lr / (div_factor * final_div_factor)``; the schedule `momentum` goes from `max_momentum` down to
    `base_momentum` and up again. The turn is at step ``pct_start * total - 1``, the end at step ``total - 1``, the
    last of a run of `total` steps; both are flat after it.

    Parameters
    ----------
    max_lr : float
        The highest learning rate, positive.
    total : float
        Length of the run in steps.
    pct_start : float, default 0.3
        Fraction of the run in which the learning rate rises.
    div_factor : float, default 25.0
        How many times lower than `max_lr` the learning rate starts.
    final_div_factor : float, default 1e4
        How many times lower than at the start it ends.
    max_momentum, base_momentum : float, default 0.95 and 0.85
        Momentum at both ends and at the turn, in [0, 1).
    anneal_strategy : {"cos", "linear"}, default "cos"
        Shape of the rise and of the fall: half a cosine or a straight line.

    Attributes
    ----------
    momentum : Schedule
        The momentum that goes with the learning rate.

    References
    ----------
    Smith and Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates", 2018.

    Examples
    --------
    >>> one_cycle(max_lr=0.1, total=100)([0, 29, 99])
    array([4.e-03, 1.e-01, 4.e-07])

    >>> cycle = one_cycle(max_lr=0.1, total=100)
    >>> cycle(29), cycle.momentum(29)
    (0.1, 0.85)

    ``SGD(params, lr=cycle, momentum=cycle.momentum)`` uses both.
    """

    max_lr: Positive
    total: Steps
    pct_start: Positive = 0.3
    div_factor: Positive = 25.0
    final_div_factor: Positive = 1e4
    max_momentum: Momentum = 0.95
    base_momentum: Momentum = 0.85
    anneal_strategy: Annotated[Literal["cos", "linear"], _choice("cos", "linear")] = "cos"

    def _conflict(self) -> str | None:
        if 0 < self._turn < self.total - 1:
            return None
        return (
            f"pct_start must put the turn, step pct_start * total - 1, between step 0 and the last, "
            f"{self.total - 1}, got {self.pct_start}, which puts it at step {self._turn}"
        )

    def _value(self, t: Value) -> Value:
        return self._lr._value(t)

    @cached_property
    def _lr(self) -> Schedule:
        initial = self.max_lr / self.div_factor
        return self._there_and_back(initial, self.max_lr, initial / self.final_div_factor)

    @property
    def momentum(self) -> Schedule:
        """The momentum that goes with the learning rate."""
        return self._there_and_back(self.max_momentum, self.base_momentum, self.max_momentum)

    @property
    def _turn(self) -> float:
        return self.pct_start * self.total - 1

    def _there_and_back(self, start: float, turn: float, end: float) -> Schedule:
        there = self._anneal(start, turn, self._turn)
        back = self._anneal(turn, end, self.total - 1 - self._turn)
        return join((there, back), (self._turn,))

    def _anneal(self, start: float, end: float, steps: float) -> Schedule:
        return cosine(start, steps, end) if self.anneal_strategy == "cos" else linear(start, end, steps)


@dataclass(eq=False)
class ReduceOnPlateau(Schedule):
    """A value that is reduced when a metric stops improving: the one schedule with state.

    `update` takes the metric, typically once an epoch. When it has not improved for more than `patience` updates in
    a row, the value becomes ``max(value * factor, floor)``; the next `cooldown` updates then count for nothing. As a
    schedule it gives the current value, whatever the step.

    A metric improves when it is better than the best so far by more than `threshold`, absolute or relative to the
    size of the best. A metric that is NaN or infinite never improves: a run that has diverged is on a plateau.

    Parameters
    ----------
    lr : float
        The first value, positive. Any hyper-parameter will do.
    mode : {"min", "max"}, default "min"
        Whether a lower or a higher metric is better.
    factor : float, default 0.1
        What the value is multiplied by, in (0, 1).
    patience : int, default 10
        Number of updates without improvement that are put up with.
    threshold : float, default 1e-4
        How much better than the best so far counts as an improvement.
    threshold_mode : {"rel", "abs"}, default "rel"
        Whether `threshold` is a fraction of the best so far or a difference.
    cooldown : int, default 0
        Number of updates after a reduction in which none is counted as bad.
    floor : float, default 0.0
        The lowest value, at most `lr`.
    eps : float, default 1e-8
        A reduction by no more than this is not made.

    Attributes
    ----------
    value : float
        The current value.
    best : float or None
        The best metric so far.
    num_bad_updates : int
        Updates in a row without improvement.
    cooldown_counter : int
        Updates that are left of the cooldown.

    Examples
    --------
    >>> plateau = ReduceOnPlateau(lr=0.1, factor=0.5, patience=1)
    >>> [plateau.update(loss) for loss in (1.0, 0.8, 0.9, 0.8, 0.7)]
    [0.1, 0.1, 0.1, 0.05, 0.05]

    ``SGD(params, lr=plateau)`` uses it; ``plateau.state_dict()`` belongs into the checkpoint.
    """

    lr: Positive
    mode: Annotated[Literal["min", "max"], _choice("min", "max")] = "min"
    factor: Shrinking = 0.1
    patience: Count = 10
    threshold: NonNegative = 1e-4
    threshold_mode: Annotated[Literal["rel", "abs"], _choice("rel", "abs")] = "rel"
    cooldown: Count = 0
    floor: NonNegative = 0.0
    eps: NonNegative = 1e-8
    value: NonNegative = field(init=False)
    best: Annotated[float | None, _optional(_finite)] = field(init=False, default=None)
    num_bad_updates: Count = field(init=False, default=0)
    cooldown_counter: Count = field(init=False, default=0)

    def __post_init__(self) -> None:
        """Check the arguments and start at the first value."""
        super().__post_init__()
        self.value = float(self.lr)

    def _conflict(self) -> str | None:
        return f"floor must be at most lr = {self.lr}, got {self.floor}" if self.floor > self.lr else None

    def _value(self, t: Value) -> Value:
        return self.value

    def update(self, metric: float) -> float:
        """Take the metric into account and return the value from now on.

        Parameters
        ----------
        metric : float
            What is watched, for instance the validation loss. NaN and infinities count as no improvement.

        Returns
        -------
        float
            The value, reduced if the metric has been on a plateau for longer than `patience`.

        Raises
        ------
        TypeError
            If the metric is not a number.
        """
        try:
            metric = float(metric)
        except (TypeError, ValueError) as error:
            raise TypeError(f"metric must be a number, got {metric!r}") from error
        improved = self._improves(metric)
        if improved:
            self.best = metric
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.num_bad_updates = 0
        else:
            self.num_bad_updates = 0 if improved else self.num_bad_updates + 1
        if self.num_bad_updates > self.patience:
            self._reduce()
        return self.value

    def _improves(self, metric: float) -> bool:
        if not math.isfinite(metric):
            return False
        if self.best is None:
            return True
        margin = self.threshold * abs(self.best) if self.threshold_mode == "rel" else self.threshold
        return metric < self.best - margin if self.mode == "min" else metric > self.best + margin

    def _reduce(self) -> None:
        reduced = max(self.value * self.factor, self.floor)
        if self.value - reduced > self.eps:
            self.value = reduced
        self.cooldown_counter = self.cooldown
        self.num_bad_updates = 0

    def state_dict(self) -> dict[str, float | int | None]:
        """State to save: the attributes that `update` changes, not the arguments."""
        return {name: getattr(self, name) for name in self._state_names()}

    def load_state_dict(self, state: Mapping[str, float | int | None]) -> None:
        """Take over what `state_dict` gave.

        Parameters
        ----------
        state : mapping
            The saved state.

        Raises
        ------
        ValueError, TypeError
            If a name is missing or unknown, or a value cannot be right. Nothing is changed then.
        """
        names = self._state_names()
        if set(state) != set(names):
            raise ValueError(f"state must have exactly the keys {sorted(names)}, got {sorted(state)}")
        checked = {name: _checks(type(self))[name](f"state[{name!r}]", state[name]) for name in names}
        vars(self).update(checked)

    def _state_names(self) -> list[str]:
        return [attribute.name for attribute in fields(self) if not attribute.init]
