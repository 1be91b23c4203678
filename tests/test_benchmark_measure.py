"""The measuring core, on a clock that goes as it is told to: every number is exact."""

import gc
from collections.abc import Callable

import numpy as np
import pytest

from fastopt.benchmark import measure
from fastopt.benchmark.measure import LEAST_ROUNDS, MOST_ROUNDS, Ratio, outer_rank, take_turns


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(measure, "time", clock)
    return clock


class Entrant:
    """Takes as long as a function says, and writes down when it starts a sample."""

    def __init__(self, clock: Clock, name: str, seconds: Callable[[], float], log: list[str]) -> None:
        self.clock, self.name, self.seconds, self.log = clock, name, seconds, log
        self.steps = 0

    def before_sample(self) -> None:
        self.log.append(self.name)

    def step(self) -> None:
        self.steps += 1
        self.clock.now += self.seconds()


def test_entrants_take_turns(clock: Clock) -> None:
    log: list[str] = []
    entrants = [Entrant(clock, name, lambda: 0.1, log) for name in "ABC"]
    times = take_turns(entrants, 1e-9)
    assert times.shape == (LEAST_ROUNDS, 3)
    assert "".join(log) == "ABC" + LEAST_ROUNDS * "ABC"  # the first to find out how long a sample takes
    assert np.allclose(times, 0.1, rtol=1e-9)


def test_rounds_go_on_for_the_time_asked_for(clock: Clock) -> None:
    log: list[str] = []
    shares: list[float] = []
    take_turns([Entrant(clock, "A", lambda: 0.1, log)], 0.1 * 20, shares.append)
    assert LEAST_ROUNDS < len(log) - 1 <= 20
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_rounds_are_never_more_than_are_of_use(clock: Clock) -> None:
    assert len(take_turns([Entrant(clock, "A", lambda: 0.1, [])], 1e9)) == MOST_ROUNDS


def test_short_steps_are_repeated_and_warmed_up(clock: Clock) -> None:
    entrant = Entrant(clock, "A", lambda: 1e-6, [])
    times = take_turns([entrant], 1e-9)
    assert np.allclose(times, 1e-6, rtol=1e-6)
    assert entrant.steps >= LEAST_ROUNDS * (measure.SAMPLE_SECONDS / 1e-6 + 1)


def test_long_steps_are_taken_once_a_sample(clock: Clock) -> None:
    entrant = Entrant(clock, "A", lambda: 1.0, [])
    take_turns([entrant], 1e-9)
    assert entrant.steps == 1 + LEAST_ROUNDS


def test_a_drift_that_all_share_does_not_change_the_ratio(clock: Clock) -> None:
    drift = iter(np.linspace(1, 2, 1000))
    factor = 1.0

    def slow() -> float:
        nonlocal factor
        factor = float(next(drift))
        return 0.3 * factor

    times = take_turns([Entrant(clock, "A", slow, []), Entrant(clock, "B", lambda: 0.1 * factor, [])], 1e9)
    assert times[-1, 0] > 1.02 * times[0, 0]
    ratio = Ratio.of(times[:, 0], times[:, 1])
    assert np.allclose([ratio.median, ratio.low, ratio.high], 3)
    assert ratio.is_decided


def test_the_garbage_collector_is_off_meanwhile(clock: Clock) -> None:
    seen = []

    def seconds() -> float:
        seen.append(gc.isenabled())
        return 0.1

    assert gc.isenabled()
    take_turns([Entrant(clock, "A", seconds, [])], 1e-9)
    assert seen
    assert not any(seen)
    assert gc.isenabled()


@pytest.mark.parametrize(("count", "rank"), [(1, 0), (5, 0), (8, 0), (9, 1), (20, 5), (41, 13)])
def test_ranks_of_the_interval_of_the_median(count: int, rank: int) -> None:
    """As in the tables of the sign test's confidence intervals (there counted from 1)."""
    assert outer_rank(count) == rank


def test_the_interval_contains_the_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    ones = np.ones(15)
    ratios = [Ratio.of(rng.exponential(size=15) / np.log(2), ones) for _ in range(2000)]
    share = np.mean([ratio.low <= 1 <= ratio.high for ratio in ratios])
    assert 0.95 <= share <= 0.98


@pytest.mark.parametrize(
    ("numerators", "decided"), [((2, 3, 2, 3, 2, 3), True), ((0.5, 0.4) * 3, True), ((0.5, 2) * 3, False)]
)
def test_what_is_larger_is_told_only_if_the_interval_says_so(numerators: tuple[float, ...], decided: bool) -> None:
    assert Ratio.of(np.array(numerators), np.ones(6)).is_decided is decided
