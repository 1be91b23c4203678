"""Whole training steps, as people feel them: forward, backward, clip, step, zero_grad.

Needs torch. With torch's default, its fused optimizer, and fastopt's.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastopt.torch
from fastopt.benchmark import machine
from fastopt.benchmark.measure import take_turns
from fastopt.benchmark.models import MODELS
from fastopt.benchmark.records import WholeStep
from fastopt.benchmark.runs import threads_restored, use_threads
from fastopt.benchmark.tasks import MAX_NORM

Parameters = Sequence[Tensor]

WARM_UP_STEPS = 3

SAME_LOSS = 1e-3
"""How far the losses of two optimizers may be apart after those, as a part of them."""


def torch_step(params: Parameters, **flags: Any) -> Callable[[], None]:
    """Return what comes after the backward pass with torch."""
    optimizer = torch.optim.AdamW(params, **flags)

    def finish() -> None:
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()

    return finish


def fastopt_step(params: Parameters) -> Callable[[], None]:
    """Return what comes after the backward pass with fastopt."""
    optimizer = fastopt.torch.AdamW(params, clip_norm=MAX_NORM)

    def finish() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return finish


OPTIMIZERS: dict[str, Callable[[Parameters], Callable[[], None]]] = {
    "torch": torch_step,
    "torch fused": lambda params: torch_step(params, fused=True),
    "fastopt.torch": fastopt_step,
}


class Training:
    """A model and an optimizer; `step` is one training step."""

    def __init__(self, model: str, optimizer: str) -> None:
        torch.manual_seed(0)
        self.module, self.loss = MODELS[model]()
        self.finish = OPTIMIZERS[optimizer](list(self.module.parameters()))
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
        trainings = {optimizer: Training(model, optimizer) for optimizer in OPTIMIZERS}
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
