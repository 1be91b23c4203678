"""Timing several ways to do the same thing so that their ratios can be trusted.

Clocks, memory and neighbours drift by tens of percent within minutes; what two contestants meet within the same few
milliseconds does not. So they take turns, A B C A B C ..., and are compared round by round: a ratio is the median of
the rounds' ratios, with the interval that the median lies in with 95 % confidence.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]

SAMPLE_SECONDS = 2e-3
"""How long a sample takes at least, in repetitions: far above the clock's resolution."""

WARM_SECONDS = 20e-3
"""A step below this is taken once, untimed, before each sample: it wakes the threads and fills the caches again."""

REST_SECONDS = 2e-3
"""Before each sample: threads of the one before may still wait for work by spinning, on the cores of the next."""

LEAST_ROUNDS, MOST_ROUNDS = 9, 41
"""The least that give an interval without the extremes, and where more tell nothing new."""

CONFIDENCE = 0.95


class Timed(Protocol):
    """Something to be timed."""

    def step(self) -> Any:
        """Do it once."""

    def before_sample(self) -> None:
        """Set everything as it should be, untimed."""


def take_turns(
    entrants: Sequence[Timed], seconds: float, after_round: Callable[[float], object] = lambda share: None
) -> Seconds:
    """Time the entrants in turns.

    Parameters
    ----------
    entrants
        What to time. All have taken a few steps already, so that their memory is mapped.
    seconds
        How long to go on, within `LEAST_ROUNDS` and `MOST_ROUNDS`.
    after_round
        Told how much of the work is done, from 0 to 1.

    Returns
    -------
    array of shape (rounds, entrants)
        Seconds a step.
    """
    rounds: list[list[float]] = []
    with without_garbage_collection():
        paces = [pace_of(entrant) for entrant in entrants]
        started = time.perf_counter()
        while len(rounds) < MOST_ROUNDS:
            rounds.append([sample(entrant, pace) for entrant, pace in zip(entrants, paces, strict=True)])
            elapsed = (time.perf_counter() - started) / seconds
            done = min(max(elapsed, len(rounds) / MOST_ROUNDS), len(rounds) / LEAST_ROUNDS, 1.0)
            after_round(done)
            if done >= 1:
                break
    return np.array(rounds)


class Pace(NamedTuple):
    """How to take samples of an entrant."""

    times: int
    warm: bool


def pace_of(entrant: Timed) -> Pace:
    """Return how often to repeat a step for a sample of `SAMPLE_SECONDS`, and whether to warm up before."""
    times = 1
    while (elapsed := times * sample(entrant, Pace(times, warm=times > 1))) < SAMPLE_SECONDS / 4:
        times *= 4
    return Pace(math.ceil(SAMPLE_SECONDS / elapsed * times), warm=elapsed / times < WARM_SECONDS)


def sample(entrant: Timed, pace: Pace) -> float:
    """Return the mean time of some steps."""
    entrant.before_sample()
    step = entrant.step
    time.sleep(REST_SECONDS)
    if pace.warm:
        step()
    started = time.perf_counter()
    for _ in repeat(None, pace.times):
        step()
    return (time.perf_counter() - started) / pace.times


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Collect now, and not in the block."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@dataclass(frozen=True)
class Ratio:
    """The median of the rounds' ratios, and the interval that it lies in with 95 % confidence."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, numerator: Seconds, denominator: Seconds) -> Ratio:
        """Return the ratio of two entrants' times, round by round."""
        ratios = np.sort(numerator / denominator)
        rank = outer_rank(len(ratios))
        return cls(float(np.median(ratios)), float(ratios[rank]), float(ratios[-1 - rank]))

    @property
    def is_decided(self) -> bool:
        """Whether the spread allows to say which of the two is larger."""
        return self.low > 1 or self.high < 1


def outer_rank(count: int) -> int:
    """Return the k for which the k-th smallest and k-th largest (from 0) of a sample enclose the median.

    Each value is above the median with probability 1/2, so how many are is binomial, whatever the distribution. With
    fewer than 6 values no pair is 95 % sure; then it is the extremes.
    """
    tail = (1 - CONFIDENCE) / 2 * 2.0**count
    rank, below = 0, 1.0
    while below + math.comb(count, rank + 1) <= tail:
        rank += 1
        below += math.comb(count, rank)
    return rank
