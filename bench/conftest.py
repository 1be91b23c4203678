"""One interleaved, checked run for each task, shared by the benchmarks of its rivals."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from rich.console import Console

from fastopt.benchmark import sheets
from fastopt.benchmark.display import show
from fastopt.benchmark.plan import on_task
from fastopt.benchmark.records import Record
from fastopt.benchmark.runs import Entrant, Run, perform
from fastopt.benchmark.tasks import Task

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # for its cases

Measured = Callable[[Task, tuple[str, ...]], Run]


class Clock:
    """A clock that goes when it is told to: it gives pytest-benchmark the times that the measuring core took."""

    def __init__(self) -> None:
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def play(self, benchmark: BenchmarkFixture, seconds: list[float]) -> None:
        """Let each round of a benchmark last as long as that of the run did."""
        remaining = iter(seconds)

        def one_round() -> None:
            self.now += next(remaining, 0.0)

        benchmark.pedantic(one_round, rounds=len(seconds))  # type: ignore[no-untyped-call]


CLOCK = Clock()


@pytest.fixture(scope="session")
def record() -> Record:
    return Record()


@pytest.fixture(scope="session")
def measured(record: Record, request: pytest.FixtureRequest) -> Measured:
    """Return the run of a task, made once; --benchmark-max-time says how long it goes on."""
    runs: dict[Task, Run] = {}
    seconds = float(request.config.getoption("benchmark_max_time"))

    def run_of(task: Task, rivals: tuple[str, ...]) -> Run:
        if task not in runs:
            runs[task] = perform(on_task(task, rivals), seconds)
            record.runs.setdefault("comparison", []).append(runs[task])
        return runs[task]

    return run_of


@pytest.fixture
def report(benchmark: BenchmarkFixture) -> Callable[[Run, Entrant], None]:
    """Return what hands an entrant's times to pytest-benchmark, with what is said of them besides."""

    def hand_over(run: Run, entrant: Entrant) -> None:
        seconds = run.seconds[entrant]
        median, task = float(np.median(seconds)), entrant.task
        share, counterpart = run.share_of_floor(entrant), run.counterpart(entrant)
        benchmark.group = f"{task.method}, {task.dtype}, {task.work}"
        extra: dict[str, Any] = benchmark.extra_info
        extra["elements/s"] = task.work.elements / median
        extra["GB/s"] = task.bytes / median / 1e9
        extra["share of the floor"] = share.median if share else None
        extra["fastopt's speed-up"] = run.ratio(entrant, counterpart).median if counterpart else None
        CLOCK.play(benchmark, list(seconds))

    return hand_over


@pytest.fixture(scope="session", autouse=True)
def tables(record: Record, request: pytest.FixtureRequest) -> Iterator[None]:
    """Print the tables of elements/s, GB/s, share of the floor and ratio at the end."""
    yield
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        console = Console()
        console.print()
        for sheet in sheets.comparisons(record):
            show(console, sheet)
