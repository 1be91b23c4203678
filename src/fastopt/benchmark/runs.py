"""A run: several contestants on one or several tasks, checked, then timed in turns."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

import fastopt
from fastopt import environment
from fastopt.benchmark import answers, machine
from fastopt.benchmark.contestants import Contestant
from fastopt.benchmark.field import CONTESTANTS, counterparts
from fastopt.benchmark.measure import Ratio, Seconds, take_turns
from fastopt.benchmark.tasks import Arrays, Task, fading

MEMORY_SHARE = 0.8
"""How much of the free memory a run may take."""

DIGITS = 5
"""Significant ones, of the times that are kept."""


@dataclass(frozen=True)
class Entrant:
    """A contestant with a task."""

    contestant: str
    task: Task

    def to_json(self) -> dict[str, Any]:
        """Return it as values that JSON can hold."""
        return {"contestant": self.contestant, "task": self.task.to_json()}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Entrant:
        """Return what `to_json` was made from."""
        return cls(entry["contestant"], Task.from_json(entry["task"]))


class Absence(NamedTuple):
    """Why an entrant was not timed."""

    entrant: Entrant
    reason: str


@dataclass(frozen=True)
class Run:
    """What came of entrants that took turns."""

    seconds: dict[Entrant, Seconds]
    """Of a step, round by round."""
    absences: list[Absence]

    def ratio(self, numerator: Entrant, denominator: Entrant) -> Ratio:
        """Return the ratio of two entrants' times."""
        return Ratio.of(self.seconds[numerator], self.seconds[denominator])

    def share_of_floor(self, entrant: Entrant) -> Ratio | None:
        """Return the entrant's speed as a part of the floor's in the same run, None where that was not measured."""
        if CONTESTANTS[entrant.contestant].state_dtype:
            return None
        floor = next(
            (e for e in self.seconds if e.contestant == "floor" and same_streams(e.task, entrant.task)),
            None,
        )
        return self.ratio(floor, entrant) if floor else None

    def counterpart(self, entrant: Entrant) -> Entrant | None:
        """Return which of ours an entrant is compared with, None where that was not measured."""
        ours = (Entrant(name, entrant.task) for name in counterparts(entrant.contestant))
        return next((own for own in ours if own in self.seconds), None)

    def to_json(self) -> dict[str, Any]:
        """Return it as values that JSON can hold."""
        return {
            "results": [
                {**entrant.to_json(), "seconds": rounded(seconds)} for entrant, seconds in self.seconds.items()
            ],
            "absences": [{**absence.entrant.to_json(), "reason": absence.reason} for absence in self.absences],
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Run:
        """Return what `to_json` was made from."""
        return cls(
            {Entrant.from_json(result): np.array(result["seconds"]) for result in entry["results"]},
            [Absence(Entrant.from_json(absence), absence["reason"]) for absence in entry["absences"]],
        )


def rounded(values: Seconds) -> list[float]:
    """Return numbers with so many digits as mean something."""
    return [float(f"{value:.{DIGITS}g}") for value in values]


def same_streams(a: Task, b: Task) -> bool:
    """Whether two tasks' steps move the same bytes with the same threads."""
    if (a.work, a.dtype, a.threads) != (b.work, b.dtype, b.threads):
        return False
    return all(a.method.states(shape) == b.method.states(shape) for shape in set(a.work.shapes))


class Ready:
    """An entrant that is built and checked, as `take_turns` wants it."""

    def __init__(self, entrant: Entrant, contestant: Contestant, arrays: Arrays) -> None:
        self.task = entrant.task
        self.step = contestant.step
        self.contestant = contestant
        self.arrays = arrays

    def before_sample(self) -> None:
        """Set the number of threads; where the step changes the gradients, set those."""
        use_threads(self.task.threads)
        if self.task.clips:
            self.contestant.load_gradients(self.arrays.grads)


def perform(
    entrants: Sequence[Entrant], seconds: float, after_round: Callable[[float], object] = lambda share: None
) -> Run:
    """Build and check all entrants, then time them in turns.

    Parameters
    ----------
    entrants
        Who takes part.
    seconds
        How long to time them, as in `measure.take_turns`.
    after_round
        Told how much of that is done.
    """
    absences = [Absence(entrant, reason) for entrant in entrants if (reason := obstacle(entrant))]
    gc.collect()  # the arrays of the run before
    absences += without_memory(remaining(entrants, absences))
    ready: dict[Entrant, Ready] = {}
    data: dict[Task, Arrays] = {}
    with threads_restored():
        for entrant in remaining(entrants, absences):
            try:
                with silenced():
                    ready[entrant] = prepare(entrant, data)
            except Exception as error:  # a rival may fail in any way, which is not the end of the run
                absences.append(Absence(entrant, first_line(error)))
        times = take_turns(list(ready.values()), seconds, after_round) if ready else np.empty((0, 0))
    return Run(dict(zip(ready, times.T, strict=True)), absences)


def obstacle(entrant: Entrant) -> str | None:
    """Return why an entrant cannot take part, None if it can; its library may fail to load."""
    try:
        with silenced():
            return CONTESTANTS[entrant.contestant].obstacle(entrant.task)
    except Exception as error:
        return first_line(error)


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its name."""
    return str(error).partition("\n")[0] or type(error).__name__


def remaining(entrants: Sequence[Entrant], absences: Sequence[Absence]) -> list[Entrant]:
    """Return the entrants that nothing speaks against so far."""
    absent = {absence.entrant for absence in absences}
    return [entrant for entrant in entrants if entrant not in absent]


def prepare(entrant: Entrant, data: dict[Task, Arrays]) -> Ready:
    """Build and check an entrant; `data` keeps what several start from."""
    task = entrant.task
    arrays = data.get(task) or data.setdefault(task, Arrays.of(task))
    use_threads(task.threads)
    contestant = CONTESTANTS[entrant.contestant](task, arrays)
    answers.check(contestant, task, arrays)
    if task.fading:  # on a new one: the moments of the one that was checked are large
        contestant = CONTESTANTS[entrant.contestant](task, Arrays(arrays.params, fading(task)))
        contestant.step()
        contestant.load_gradients([np.zeros_like(grad) for grad in arrays.grads])
    return Ready(entrant, contestant, arrays)


def without_memory(entrants: Sequence[Entrant]) -> list[Absence]:
    """Return those for whose arrays the memory does not suffice, if the ones before them take theirs."""
    available = machine.memory("MemAvailable")
    if available is None:
        return []
    # What the largest starts from, and checking it, take as much again.
    taken = max((entrant.task.footprint for entrant in entrants), default=0)
    absences = []
    for entrant in entrants:
        taken += entrant.task.footprint
        if taken > MEMORY_SHARE * available:
            absences.append(Absence(entrant, f"of {available / 1e9:.1f} GB of free memory too little would remain"))
            taken -= entrant.task.footprint
    return absences


def room(task: Task) -> int | None:
    """Return for how many contestants on a task there is memory, None where the system cannot tell."""
    gc.collect()  # the arrays of the run before
    available = machine.memory("MemAvailable")
    return None if available is None else int(MEMORY_SHARE * available / task.footprint) - 1


@contextmanager
def silenced() -> Iterator[None]:
    """Keep libraries, and the compilers that they call, from writing on the terminal in the block."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(stream) for stream in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, stream)
            os.close(copy)
        os.close(nowhere)


def use_threads(count: int) -> None:
    """Let every library that can be told so use this many threads."""
    fastopt.set_num_threads(count)
    blas().limit(limits=count, user_api="blas")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


@cache
def blas() -> ThreadpoolController:
    """Return what sets the threads of NumPy's products of matrices."""
    return ThreadpoolController()


@contextmanager
def threads_restored() -> Iterator[None]:
    """Use as many threads after the block as before it, of each library its own number."""
    torch = sys.modules.get("torch")
    before, of_torch = environment.chosen_threads(), torch.get_num_threads() if torch else None
    try:
        with blas().limit(limits=None):  # as they are
            yield
    finally:
        fastopt.set_num_threads(before)
        if torch:
            torch.set_num_threads(of_torch)
