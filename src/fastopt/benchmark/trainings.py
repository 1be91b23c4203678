"""Whole trainings: `fastopt train` with fastopt's optimizer and with torch's in its place, step by step in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import numpy as np
import torch

from fastopt import StepInfo
from fastopt.benchmark.measure import without_garbage_collection
from fastopt.benchmark.records import WholeTraining
from fastopt.hyperparameters import at_step
from fastopt.training.config import Config, ModelName
from fastopt.training.job import Job
from fastopt.training.recipes import RIVALS, configure
from fastopt.training.table_problem import TableProblem

STEPS: dict[ModelName, int] = {"mlp": 1350, "transformer": 600}
"""How far a run goes."""

OPTIMIZERS = {"torch": "torch:adamw", "torch fused": "torch-fused:adamw", "fastopt.torch": "adamw"}
"""What `--optimizer` calls them."""

SMOOTHING = 0.98
"""Decay of the moving average of the losses, which differ from batch to batch."""

POINTS = 150
"""Of a curve, that are kept."""

SAME_STEPS, SAME_LOSS = 20, 1e-3
"""In so many steps the losses may differ by this part of them; later, rounding alone makes more of a difference."""


class TorchOnArrays:
    """An optimizer of torch for a model in NumPy, with the options, the schedule and the clipping of fastopt's."""

    def __init__(self, problem: TableProblem, **flags: Any) -> None:
        own = problem.optimizer
        self.lr = own.param_groups[0]["lr"]
        self.clip_norm = own.clip_norm
        self.gradients = problem.model.gradients
        self.params = [torch.from_numpy(array).requires_grad_() for array in problem.model.parameters.values()]
        options = {name: own.param_groups[0][name] for name in ("betas", "eps", "weight_decay")}
        self.optimizer = torch.optim.AdamW(self.params, **options, **flags)
        self.steps = 0

    def update(self) -> StepInfo:
        """Clip the gradients and step."""
        for param, grad in zip(self.params, self.gradients.values(), strict=True):
            param.grad = torch.from_numpy(grad)
        lr = at_step(self.lr, self.steps)
        self.optimizer.param_groups[0]["lr"] = lr
        norm = float(torch.nn.utils.clip_grad_norm_(self.params, self.clip_norm))
        self.optimizer.step()
        self.steps += 1
        return StepInfo(lr, norm, norm > self.clip_norm, False)


class Course:
    """A run, and what comes of it step by step."""

    def __init__(self, model: ModelName, optimizer: str) -> None:
        name = OPTIMIZERS[optimizer]
        rival, _, own = name.rpartition(":")
        in_numpy = model == "mlp"
        self.config: Config = configure(model, {"optimizer": own if in_numpy else name})
        self.job = Job(self.config)
        self.update: Callable[[], StepInfo] = self.job.problem.update
        if in_numpy and rival:
            problem = self.job.problem
            assert isinstance(problem, TableProblem)
            self.update = TorchOnArrays(problem, **RIVALS[rival]).update
        self.batches: Iterator[Any] = self.job.run.batches.from_step(0)
        self.seconds: list[float] = []
        self.optimizer_seconds: list[float] = []
        self.losses: list[float] = []

    def step(self) -> None:
        """Take a training step."""
        batch = next(self.batches)
        started = perf_counter()
        loss = self.job.run.model.forward_backward(batch)
        computed = perf_counter()
        self.update()
        ended = perf_counter()
        self.seconds.append(ended - started)
        self.optimizer_seconds.append(ended - computed)
        self.losses.append(loss)


def trainings(model: ModelName, after_round: Callable[[float], object] = lambda share: None) -> list[WholeTraining]:
    """Train a model with each optimizer, in turns, from the same start on the same batches.

    Raises
    ------
    AssertionError
        If the optimizers do not lead to the same losses.
    """
    courses = {optimizer: Course(model, optimizer) for optimizer in OPTIMIZERS}
    steps = min(STEPS[model], next(iter(courses.values())).job.run.total_steps)
    with next(iter(courses.values())).job.arithmetic(), without_garbage_collection():
        for step in range(steps):
            for course in courses.values():
                course.step()
            after_round((step + 1) / steps)
    first = [course.losses[:SAME_STEPS] for course in courses.values()]
    if not np.allclose(first, first[0], rtol=SAME_LOSS):
        raise AssertionError(f"{model}: the losses differ: {dict(zip(courses, first, strict=True))}")
    return [curve(model, optimizer, course) for optimizer, course in courses.items()]


def curve(model: str, optimizer: str, course: Course) -> WholeTraining:
    """Return what is kept of a course."""
    losses = np.array(list(smoothed(course.losses)))
    kept = np.unique(np.linspace(0, len(losses) - 1, POINTS, dtype=int))
    seconds, optimizer_seconds = np.cumsum(course.seconds)[kept], np.cumsum(course.optimizer_seconds)[kept]
    return WholeTraining(model, optimizer, seconds, losses[kept], optimizer_seconds)


def smoothed(values: list[float]) -> Iterator[float]:
    """Yield the moving average, its start corrected as Adam's."""
    average = 0.0
    for count, value in enumerate(values, start=1):
        average = SMOOTHING * average + (1 - SMOOTHING) * value
        yield average / (1 - SMOOTHING**count)
