"""Whole training steps, as people feel them: forward, backward, clip, step, zero_grad.

Needs torch. With torch's default, its fused optimizer, and fastopt's; models with tables also by rows alone.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fastopt.torch
from fastopt.benchmark import machine
from fastopt.benchmark.measure import take_turns
from fastopt.benchmark.models import MODELS, WITH_TABLES
from fastopt.benchmark.records import WholeStep
from fastopt.benchmark.runs import threads_restored, use_threads
from fastopt.benchmark.tasks import MAX_NORM

WARM_UP_STEPS = 3

SAME_LOSS = 1e-3
"""How far the losses of two optimizers may be apart after those, as a part of them."""

Finish = Callable[[], None]
"""What comes after the backward pass."""


def step_and_zero(*optimizers: torch.optim.Optimizer) -> Finish:
    """Step and zero with optimizers that clip in the step, or not at all."""

    def finish() -> None:
        for optimizer in optimizers:
            optimizer.step()
        for optimizer in optimizers:
            optimizer.zero_grad()

    return finish


def torch_step(module: nn.Module, **flags: Any) -> Finish:
    """Clip, step and zero with torch."""
    params = list(module.parameters())
    optimizer = torch.optim.AdamW(params, **flags)

    def finish() -> None:
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()

    return finish


def fastopt_step(module: nn.Module) -> Finish:
    """Clip, step and zero with fastopt."""
    return step_and_zero(fastopt.torch.AdamW(module.parameters(), clip_norm=MAX_NORM))


OPTIMIZERS: dict[str, Callable[[nn.Module], Finish]] = {
    "torch": torch_step,
    "torch fused": partial(torch_step, fused=True),
    "fastopt.torch": fastopt_step,
}


def tables_and_others(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Have tables give gradients of rows; return the parameters that are tables, and the others."""
    embeddings = [part for part in module.modules() if isinstance(part, nn.Embedding)]
    for embedding in embeddings:
        embedding.sparse = True
    tables: list[Tensor] = [embedding.weight for embedding in embeddings]
    return tables, [param for param in module.parameters() if all(param is not table for table in tables)]


def torch_step_of_rows(module: nn.Module) -> Finish:
    """Step and zero with the two optimizers of torch that this takes; its clipping does not know sparse gradients."""
    tables, others = tables_and_others(module)
    return step_and_zero(torch.optim.SparseAdam(tables), torch.optim.AdamW(others, fused=True))


def fastopt_step_of_rows(module: nn.Module) -> Finish:
    """Clip, step and zero with fastopt."""
    tables, others = tables_and_others(module)
    groups: list[dict[str, Any]] = [{"params": tables, "weight_decay": 0.0}, {"params": others}]
    return step_and_zero(fastopt.torch.AdamW(groups, clip_norm=MAX_NORM, lazy=True))


OF_ROWS = {"torch SparseAdam": torch_step_of_rows, "fastopt.torch lazy": fastopt_step_of_rows}
"""For models with a table of which a batch needs few rows."""


def optimizers_of(model: str) -> dict[str, Callable[[nn.Module], Finish]]:
    """Return the optimizers that train a model here."""
    return OPTIMIZERS | (OF_ROWS if model in WITH_TABLES else {})


class Training:
    """A model and an optimizer; `step` is one training step."""

    def __init__(self, model: str, optimizer: str) -> None:
        torch.manual_seed(0)
        self.module, self.loss = MODELS[model]()
        self.finish = optimizers_of(model)[optimizer](self.module)
        self.shares: list[float] = []

    def before_sample(self) -> None:
        """Nothing is to be set."""

    def step(self) -> float:
        """Take a training step and return the loss before it."""
        started = time.perf_counter()
        loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        computed = time.perf_counter()
        self.finish()
        ended = time.perf_counter()
        self.shares.append((ended - computed) / (ended - started))
        return loss.item()


def whole_steps(
    model: str, threads: int, seconds: float, after_round: Callable[[float], object] = lambda share: None
) -> list[WholeStep]:
    """Time the training step of a model with each optimizer, in turns.

    Raises
    ------
    AssertionError
        If the optimizers do not lead to the same loss.
    """
    with threads_restored():
        use_threads(threads)
        trainings = {optimizer: Training(model, optimizer) for optimizer in optimizers_of(model)}
        losses = [[training.step() for _ in range(WARM_UP_STEPS)] for training in trainings.values()]
        if not np.allclose(losses, losses[0], rtol=SAME_LOSS):
            raise AssertionError(f"{model}: the losses differ: {dict(zip(trainings, losses, strict=True))}")
        for training in trainings.values():
            training.shares.clear()
        times = take_turns(list(trainings.values()), seconds, after_round)
        shares = {name: float(np.median(training.shares)) for name, training in trainings.items()}
        del trainings
    return [
        WholeStep(model, name, own, shares[name], peak_memory(model, name, threads))
        for name, own in zip(shares, times.T, strict=True)
    ]


def peak_memory(model: str, optimizer: str, threads: int) -> int | None:
    """Return how much the memory of a process grows by when it trains, in bytes; measured in a process of its own."""
    if machine.memory("VmHWM", machine.OWN_MEMORY) is None:
        return None
    code = f"from fastopt.benchmark import whole; whole.print_peak_memory({model!r}, {optimizer!r}, {threads})"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return int(output)


def print_peak_memory(model: str, optimizer: str, threads: int) -> None:
    """Train a few steps in this process and print how much its memory grew by at most."""
    use_threads(threads)
    before = machine.memory("VmRSS", machine.OWN_MEMORY)
    training = Training(model, optimizer)
    for _ in range(WARM_UP_STEPS):
        training.step()
    after = machine.memory("VmHWM", machine.OWN_MEMORY)
    assert before is not None
    assert after is not None
    print(after - before)
