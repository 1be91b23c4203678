"""What a contestant is asked to do: an optimizer's steps on a list of parameters."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastopt import Optimizer, optimizers
from fastopt.benchmark import works
from fastopt.benchmark.works import Shape, Work

Array = NDArray[Any]

LEARNING_RATE = 0.01
MAX_NORM = 1.0

FACTOR = 0.9
"""What a number that is 0 by default is switched on with, as momentum is."""

ACTIONS = ("step", "clip", "clip+zero")
"""The step alone; after clipping the gradients' norm; and zeroing the gradients as well."""

ITEM_SIZES = {"float32": 4, "float64": 8, "bfloat16": 2}


@dataclass(frozen=True)
class Method:
    """An optimizer with options."""

    optimizer: str
    options: Mapping[str, Any] = field(hash=False)

    @property
    def cls(self) -> type[Optimizer]:
        """Its class for NumPy arrays."""
        return optimizers.registry()[self.optimizer]

    @property
    def all_options(self) -> dict[str, Any]:
        """The options, and the defaults of the others."""
        return {**self.cls.method.defaults(), **self.options}

    @property
    def rule(self) -> str:
        """The kernel that it leads to."""
        return self.cls.method.rule(self.all_options)[0]

    def states(self, shape: Shape) -> int:
        """Return the number of states that have as many elements as a parameter of this shape.

        Raises
        ------
        ValueError
            If there is no step of such a parameter.
        """
        described = self.cls.method
        names = described.rule_for(self.all_options, shape, lambda: str(self))[1]
        return sum(described.states[name].of == "elements" for name in names)

    def obstacle(self, work: Work) -> str | None:
        """Return why a work cannot be stepped, None if it can."""
        try:
            for shape in work.shapes:
                self.states(shape)
        except ValueError as error:
            return str(error)
        return None

    def __str__(self) -> str:
        switched = [
            name if value is True else f"{name} {value}"
            for name, value in self.options.items()
            if name != "lr" and value is not False
        ]
        return ", ".join([self.optimizer, *switched])


def state_bytes(cls: type[Optimizer], state_dtype: str | None = None, **options: Any) -> float:
    """Return what an optimizer keeps beside a float32 matrix, in bytes an element."""
    matrix = np.zeros((256, 256), np.float32)
    optimizer = cls(matrix, state_dtype=state_dtype, **options)
    optimizer.step(matrix.copy())
    return optimizer.state_bytes() / matrix.size


def moved_bytes(kept: float, item_size: int = 4) -> float:
    """Return what a step has to read and write, in bytes an element: the gradient, and twice parameter and states."""
    return 3 * item_size + 2 * kept


def methods() -> dict[str, Method]:
    """Return every optimizer with every option that leads to another kernel, by a name for the command line."""
    return {
        "-".join([name.lower(), *switched]): Method(
            name, {"lr": LEARNING_RATE, **{switch: on[switch] for switch in switched}}
        )
        for name, on in (
            (name, switches(cls))
            for name, cls in optimizers.registry().items()
            if not cls.method.refusal_of_dense  # (gradients are dense here)
        )
        for switched in subsets(list(on))
        if go_together(optimizers.registry()[name], {switch: on[switch] for switch in switched})
    }


def go_together(cls: type[Optimizer], options: Mapping[str, Any]) -> bool:
    """Whether options do not exclude each other."""
    try:
        cls.method.check_together({**cls.method.defaults(), **options})
    except ValueError:
        return False
    return True


def switches(cls: type[Optimizer]) -> Mapping[str, Any]:
    """Return the options that lead an optimizer to another kernel, flags first, with what switches them on."""
    defaults = cls.method.defaults()
    on = {
        **{name: True for name, default in defaults.items() if default is False},
        **{name: FACTOR for name, default in defaults.items() if default is not False and default == 0},
    }
    usual, _ = cls.method.rule(defaults)
    return {name: value for name, value in on.items() if cls.method.rule({**defaults, name: value})[0] != usual}


def subsets(names: list[str]) -> Iterator[tuple[str, ...]]:
    """Yield all subsets, smallest first."""
    for size in range(len(names) + 1):
        yield from combinations(names, size)


@dataclass(frozen=True)
class Task:
    """One kind of step."""

    method: Method
    work: Work
    dtype: str = "float32"
    action: str = "step"
    threads: int = 1
    fading: bool = False
    """Whether the gradients are zero after a first one of every magnitude, so that moments decay into denormals."""

    @property
    def clips(self) -> bool:
        """Whether the norm of the gradients is clipped to `MAX_NORM`."""
        return self.action != "step"

    @property
    def zeroes(self) -> bool:
        """Whether the gradients are zeroed after the step."""
        return self.action == "clip+zero"

    @property
    def bytes(self) -> int:
        """Bytes that the step has to move: gradient, parameter and states read, parameter and states written."""
        return ITEM_SIZES[self.dtype] * (3 * self.work.elements + 2 * self.state_elements)

    @property
    def footprint(self) -> int:
        """Bytes of the parameters, gradients and states."""
        return ITEM_SIZES[self.dtype] * (2 * self.work.elements + self.state_elements)

    @property
    def state_elements(self) -> int:
        """Elements of all states that are as large as their parameters."""
        return sum(self.method.states(shape) * math.prod(shape) for shape in self.work.shapes)

    def to_json(self) -> dict[str, Any]:
        """Return it as values that JSON can hold."""
        return {
            "optimizer": self.method.optimizer,
            "options": dict(self.method.options),
            "work": self.work.name,
            "dtype": self.dtype,
            "action": self.action,
            "threads": self.threads,
            "fading": self.fading,
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Task:
        """Return what `to_json` was made from."""
        rest = {name: entry[name] for name in ("dtype", "action", "threads", "fading")}
        return cls(Method(entry["optimizer"], entry["options"]), works.find(entry["work"]), **rest)

    @property
    def key(self) -> str:
        """The task as a text, the same for the same task."""
        return json.dumps(self.to_json(), sort_keys=True)


class Arrays(NamedTuple):
    """What every contestant on a task starts from, in float64 or float32 (of which bfloat16 has the upper half)."""

    params: list[Array]
    grads: list[Array]

    @classmethod
    def of(cls, task: Task) -> Arrays:
        """Return random arrays, always the same; of large ones, a stretch is repeated."""
        rng = np.random.default_rng(20150507)
        stretch = min(task.work.elements, 1_000_003)
        return cls(
            like_shapes(0.1 * rng.standard_normal(stretch), task),
            like_shapes(rng.standard_normal(stretch), task),
        )


def fading(task: Task) -> list[Array]:
    """Return gradients of every magnitude that float32 has."""
    rng = np.random.default_rng(20150508)
    return like_shapes(10.0 ** rng.uniform(-37, 0, min(task.work.elements, 1_000_003)), task)


def like_shapes(stretch: Array, task: Task) -> list[Array]:
    """Cut arrays of the task's shapes and dtype out of a stretch of numbers, repeated as often as needed."""
    stretch = stretch.astype("float64" if task.dtype == "float64" else "float32")
    if task.dtype == "bfloat16":
        stretch.view(np.uint32)[...] &= 0xFFFF0000
    whole = np.resize(stretch, task.work.elements)
    ends = np.cumsum([int(np.prod(shape)) for shape in task.work.shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(whole, ends[:-1]), task.work.shapes, strict=True)]
