"""Checking a contestant's answers before it is timed: a fast wrong step is worth nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastopt import _core
from fastopt.benchmark import textbook
from fastopt.benchmark.contestants import Contestant
from fastopt.benchmark.tasks import MAX_NORM, Array, Arrays, Task

STEPS = 3

SAMPLE = 1000
"""About how many elements of each parameter are looked at, spread over all of it."""

EPSILONS = {"float32": 2.0**-24, "float64": 2.0**-53, "bfloat16": 2.0**-8}
"""Relative error of rounding once."""

UPDATE_ERRORS = {"float32": 1e-3, "float64": 1e-9, "bfloat16": 0.1}
"""How far a displacement may be off, as a part of it. (Bias corrections of a library may be formed in float32, where
1 - 0.999 has four digits.)"""


class WrongAnswerError(Exception):
    """A contestant's parameters are not what the textbook's formula gives in float64."""


def check(contestant: Contestant, task: Task, arrays: Arrays) -> None:
    """Take the first steps of a contestant, and compare its parameters with the textbook's in float64.

    Raises
    ------
    WrongAnswerError
        Saying how far off they are.
    """
    for _ in range(STEPS):
        contestant.load_gradients(arrays.grads)
        contestant.step()
    if not contestant.answers:
        return
    starts = sample(arrays.params)
    # (torch keeps numbers from step to step in float32.)
    dtype = "float32" if task.method.cls.method.numbers and task.dtype == "float64" else task.dtype
    for actual, start, expected in zip(sample(contestant.values()), starts, solution(task, arrays), strict=True):
        rounding = 4 * STEPS * EPSILONS[dtype] * np.maximum(np.abs(start), np.abs(expected))
        moved = expected - start
        excess = np.abs(actual - expected) / (rounding + UPDATE_ERRORS[dtype] * np.abs(moved))
        # What is imprecise by design is so in single elements, but not in all of them together.
        together = np.linalg.norm(actual - expected) <= contestant.precision * np.linalg.norm(moved)
        if not (together or (excess <= 1).all()):
            worst = int(np.argmax(np.where(np.isnan(excess), np.inf, excess)))
            raise WrongAnswerError(
                f"wrong answer: after {STEPS} steps from {start[worst]:.6g} it is at {actual[worst]:.6g} "
                f"instead of {expected[worst]:.6g}"
            )


def sample(arrays: Sequence[Array]) -> list[NDArray[np.float64]]:
    """Return some elements of each array in float64."""
    return [array.reshape(-1)[:: max(1, array.size // SAMPLE)].astype(np.float64) for array in arrays]


def solution(task: Task, arrays: Arrays) -> list[NDArray[np.float64]]:
    """Return where steps in float64 take the elements of `sample`."""
    small = task.method.rule in _core.SMALL
    # Where an element's step depends on others.
    whole = small or task.method.rule in _core.SCOPES or bool(task.method.cls.method.between)
    params, grads = (
        [part.astype(np.float64) for part in several] if whole else sample(several)
        for several in (arrays.params, arrays.grads)
    )
    if task.clips:
        coefficient = textbook.clip_coefficient(arrays.grads, MAX_NORM)  # of all elements
        grads = [min(1.0, coefficient) * grad for grad in grads]
    if whole or task.method.optimizer not in textbook.STEPS:
        # Ours in float64, for which tests/reference.py vouches.
        options = {**task.method.options, **of_dtype(task)}
        if task.clips:
            options["clip_norm"] = None
        optimizer = task.method.cls(params, **options)
        for _ in range(STEPS):
            optimizer.step(grads)
        return sample(params) if whole else params
    options = task.method.all_options
    states: list[textbook.State] = [{} for _ in params]
    for step in range(1, STEPS + 1):
        for param, grad, state in zip(params, grads, states, strict=True):
            textbook.STEPS[task.method.optimizer](param, grad, state, step, options)
    return params


def of_dtype(task: Task) -> dict[str, Any]:
    """Return options whose default is by the parameters' dtype: Adafactor's first eps, its distance from 1."""
    eps = task.method.all_options.get("eps")
    return {"eps": (2 * EPSILONS[task.dtype], *eps[1:])} if isinstance(eps, tuple) and eps[0] is None else {}
