"""The contestants without other libraries: the floor, fastopt on NumPy arrays, the textbook's NumPy.

`rivals` has the others, `field` the list of all.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np

from fastopt import _core
from fastopt.benchmark import textbook
from fastopt.benchmark.tasks import MAX_NORM, Array, Arrays, Task, state_bytes


class Contestant(ABC):
    """A way to take the steps of a task, on memory of its own.

    Parameters
    ----------
    task
        What to do.
    arrays
        Parameters and gradients to start from; they are copied.
    """

    name: ClassVar[str]
    modules: ClassVar[tuple[str, ...]] = ()
    """What has to be installed."""
    precision: float = 0.0
    """Relative error by design of a parameter's update, as a vector: for states of few bits."""
    state_dtype: ClassVar[str | None] = None
    """What our states are stored in, None for the parameters' dtype."""
    answers: ClassVar[bool] = True
    """Whether it is an optimizer, whose parameters can be checked."""

    step: Callable[[], Any]
    """Takes one whole step, with as little around it as its users have."""

    @classmethod
    def obstacle(cls, task: Task) -> str | None:
        """Return why it cannot take part, None if it can."""
        missing = [name for name in cls.modules if find_spec(name) is None]
        return f"{missing[0]} is not installed" if missing else task.method.obstacle(task.work)

    @abstractmethod
    def __init__(self, task: Task, arrays: Arrays) -> None: ...

    @abstractmethod
    def load_gradients(self, grads: list[Array]) -> None:
        """Overwrite the gradients."""

    @abstractmethod
    def values(self) -> list[Array]:
        """Return the parameters as NumPy arrays."""


class OnArrays(Contestant):
    """Works on NumPy arrays."""

    def __init__(self, task: Task, arrays: Arrays) -> None:
        self.params = [array.copy() for array in arrays.params]
        self.grads = [array.copy() for array in arrays.grads]

    def load_gradients(self, grads: list[Array]) -> None:
        """Overwrite the gradients."""
        for own, given in zip(self.grads, grads, strict=True):
            own[...] = given

    def values(self) -> list[Array]:
        """Return the parameters."""
        return self.params


class Floor(OnArrays):
    """What a step costs at least: the same streams are read and written, in the same blocks, and nothing else."""

    name = "floor"
    answers = False

    def __init__(self, task: Task, arrays: Arrays) -> None:
        super().__init__(task, arrays)
        if task.dtype == "bfloat16":
            self.params, self.grads = map(upper_halves, (self.params, self.grads))
        self.states = [
            [np.zeros_like(param) for _ in range(task.method.states(shape))]
            for param, shape in zip(self.params, task.work.shapes, strict=True)
        ]
        storage = _core.STORAGES[task.dtype]
        plan = _core.Plan([0] * len(self.params), 1)
        for index, (param, several) in enumerate(zip(self.params, self.states, strict=True)):
            places = [(array.ctypes.data, storage) for array in (param, *several)]
            plan.bind(index, f"floor{len(several)}", param.size, places[0], places[1:])
            plan.set_gradient(index, (self.grads[index].ctypes.data, storage))
        self.step = partial(
            plan.step, task.threads, [], 1.0, math.inf, math.inf, False, "propagate", False, 0.0, [], [], None
        )

    def load_gradients(self, grads: list[Array]) -> None:
        """Overwrite the gradients."""
        super().load_gradients(upper_halves(grads) if self.grads[0].dtype == np.uint16 else grads)


def upper_halves(arrays: list[Array]) -> list[Array]:
    """Return float32 numbers as bfloat16, which NumPy has not: as integers."""
    return [(array.view(np.uint32) >> 16).astype(np.uint16) for array in arrays]


class Fastopt(OnArrays):
    """`fastopt`'s optimizers, clipping and zeroing in the step."""

    name = "fastopt"

    @classmethod
    def obstacle(cls, task: Task) -> str | None:
        """NumPy has no bfloat16."""
        return "NumPy has no bfloat16" if task.dtype == "bfloat16" else super().obstacle(task)

    def __init__(self, task: Task, arrays: Arrays) -> None:
        super().__init__(task, arrays)
        clipping: dict[str, Any] = {"clip_norm": MAX_NORM} if task.clips else {}
        options = {**task.method.options, **clipping, "state_dtype": self.state_dtype}
        optimizer = task.method.cls(alone(self.params), **options)
        zeroing = {"zero_grad": True} if task.zeroes else {}
        self.step = partial(optimizer.step, alone(self.grads), **zeroing)


class FastoptStored(Fastopt):
    """`fastopt`'s optimizers with states in fewer bits than their parameters."""

    precision = 0.1

    @classmethod
    def obstacle(cls, task: Task) -> str | None:
        """Return why it cannot take part: not if it would be the same as `fastopt`."""
        if task.dtype == "float64":
            return "states of float64 parameters are float64"
        return super().obstacle(task) or (None if cls.stores(task) else f"{task.method} has no states to store so")

    @classmethod
    def stores(cls, task: Task) -> bool:
        """Whether fewer bytes are kept."""
        method = task.method
        plain, stored = (state_bytes(method.cls, dtype, **method.options) for dtype in (None, cls.state_dtype))
        return stored < plain


class FastoptBfloat16(FastoptStored):
    """... in bfloat16."""

    name = "fastopt bfloat16"
    state_dtype = "bfloat16"


class Fastopt8bit(FastoptStored):
    """... in 8 bits."""

    name = "fastopt 8bit"
    state_dtype = "8bit"


def alone(arrays: list[Any]) -> Any:
    """Return a single array for a list of one, as people pass it."""
    return arrays[0] if len(arrays) == 1 else arrays


class Textbook(OnArrays):
    """The formulas in NumPy."""

    name = "NumPy"

    @classmethod
    def obstacle(cls, task: Task) -> str | None:
        """Return why it cannot take part."""
        if task.method.optimizer not in textbook.STEPS:
            return f"has no {task.method}"
        return Fastopt.obstacle(task)

    def __init__(self, task: Task, arrays: Arrays) -> None:
        super().__init__(task, arrays)
        self.task = task
        self.options = task.method.all_options
        self.update = textbook.STEPS[task.method.optimizer]
        self.states: list[textbook.State] = [{} for _ in self.params]
        self.steps = 0
        self.step = self.take_step

    def take_step(self) -> None:
        """Step all parameters."""
        self.steps += 1
        if self.task.clips:
            textbook.clip_by_norm(self.grads, MAX_NORM)
        for param, grad, state in zip(self.params, self.grads, self.states, strict=True):
            self.update(param, grad, state, self.steps, self.options)
        if self.task.zeroes:
            for grad in self.grads:
                grad[...] = 0
