"""Hyper-parameters: what values they may have, and schedules in their place."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from numbers import Real
from types import NoneType
from typing import Any, NamedTuple

Schedule = Callable[[int], float]
"""A hyper-parameter as a function of the number of steps taken so far."""

Number = float | Schedule
"""A number, or a schedule in its place."""

SIMPLE = frozenset({float, int, bool, str, NoneType})
"""Types of which a value is what it is, neither a schedule nor a library's scalar. Nearly all are of these, and options
are looked at in each step of a schedule, so that it matters to find that out first."""


class Bound(NamedTuple):
    """The finite numbers from `low` up to `high` (itself excluded), and what to say of any other."""

    message: str
    low: float = 0.0
    high: float = math.inf

    def check(self, value: Any) -> None:
        """Raise `ValueError` in the words of `torch.optim` unless the value is within the bound."""
        if not (type(value) is float or is_number(value)) or not self.low <= value < self.high:
            raise ValueError(f"Invalid {self.message}: {value}")

    def anywhere(self) -> Bound:
        """Return the bound that any finite number is within."""
        return Bound(self.message, low=-math.inf)


def is_number(value: Any) -> bool:
    """Whether the value is a real number in the range of double precision (`bool` and strings are none)."""
    value = plain(value)
    return isinstance(value, Real) and not isinstance(value, bool) and bool(abs(value) <= sys.float_info.max)  # type: ignore[operator]


def plain(value: Any) -> Any:
    """Return the Python number in a scalar of NumPy or torch, or in torch's tensor of one element; else the value.

    What is computed with it is in double precision then, whatever the scalar was in.
    """
    if type(value) in SIMPLE or not hasattr(value, "item"):
        return value
    single = getattr(value, "ndim", None) == 0 or (hasattr(value, "numel") and value.numel() == 1)
    return value.item() if single else value


def as_count(value: Any, label: str) -> int:
    """Return a number of steps, checked; torch's is a tensor of one float."""
    number = plain(value)
    if not is_number(number) or number < 0 or number != int(number):
        raise ValueError(f"{label}: expected a whole number of at least 0, got {value!r}")
    return int(number)


def is_scheduled(value: Any) -> bool:
    """Whether the value, or an entry of it (as in `betas`), is a schedule."""
    if isinstance(value, (tuple, list)):
        return any(callable(entry) for entry in value)
    return callable(value)


def is_fixed(value: Any) -> bool:
    """Whether an option cannot change without being replaced: no schedule, no array, no list edited in place."""
    if type(value) in SIMPLE:
        return True
    if type(value) is tuple:
        return all(map(is_fixed, value))
    return not (callable(value) or hasattr(value, "item") or isinstance(value, Iterable))


def at_step(value: Any, step: int) -> Any:
    """Return the value of a hyper-parameter after `step` steps, schedules evaluated."""
    if type(value) in SIMPLE:
        return value
    return plain(value(step) if callable(value) else value)
