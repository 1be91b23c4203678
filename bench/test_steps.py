"""Every rule's step against the floor, the textbook and torch."""

from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import fastopt
from bench.conftest import CLOCK, Measured
from fastopt.benchmark import works
from fastopt.benchmark.field import OURS, company
from fastopt.benchmark.runs import Entrant, Run
from fastopt.benchmark.targets import TORCH
from fastopt.benchmark.tasks import Method, Task

from cases import CASES  # isort: skip

METHODS = {(case.optimizer, case.rule): Method(case.optimizer, case.options) for case in reversed(CASES)}
"""The first case of every optimizer and rule."""

QUICK = ("1K", "1M", "1000x100")
WORKS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in works.STANDARD]
RIVALS = ("NumPy", *TORCH)
CONTESTANTS = (*company(RIVALS), *RIVALS)

# What a rival's library warns of is not an error here.
pytestmark = [pytest.mark.benchmark(timer=CLOCK.time), pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("contestant", CONTESTANTS)
@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", list(METHODS.values())[::-1], ids=str)
def test_step(
    method: Method,
    dtype: str,
    work: str,
    contestant: str,
    measured: Measured,
    report: Callable[[Run, Entrant], None],
    benchmark: BenchmarkFixture,
) -> None:
    task = Task(method, works.find(work), dtype, threads=fastopt.get_num_threads())
    run = measured(task, RIVALS)
    entrant = Entrant(contestant, task)
    for absence in run.absences:
        assert absence.entrant.contestant not in OURS or absence.reason.startswith(
            ("torch is not installed", "has no ")
        )
        if absence.entrant == entrant:
            benchmark.disabled = True
            pytest.skip(absence.reason)
    report(run, entrant)
