"""Schedules: exact values at the corners, properties everywhere, and the same numbers as torch where torch has them."""

import copy
import dataclasses
import json
import math
import pickle
import re
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastopt import schedules
from fastopt.schedules import (
    ReduceOnPlateau,
    Schedule,
    constant,
    cosine,
    cosine_restarts,
    exponential_decay,
    inverse_sqrt,
    join,
    linear,
    linear_warmup,
    one_cycle,
    piecewise,
    polynomial,
    step_decay,
    warmup_cosine,
    warmup_stable_decay,
)

FAR = 10**9

# What hypothesis may make of each schedule

values = st.floats(-10, 10, allow_subnormal=False)
lengths = st.integers(1, 200)
warmups = st.integers(0, 200)


def boundaries_of(count: int) -> st.SearchStrategy[list[int]]:
    return st.lists(lengths, min_size=count, max_size=count, unique=True).map(sorted)


@st.composite
def piecewises(draw: st.DrawFn) -> Schedule:
    count = draw(st.integers(0, 4))
    return piecewise(draw(boundaries_of(count)), [draw(values) for _ in range(count + 1)])


@st.composite
def joins(draw: st.DrawFn) -> Schedule:
    count = draw(st.integers(0, 3))
    return join([draw(simple) for _ in range(count + 1)], draw(boundaries_of(count)))


@st.composite
def warmup_cosines(draw: st.DrawFn) -> Schedule:
    warmup = draw(warmups)
    return warmup_cosine(draw(values), warmup, warmup + draw(lengths), draw(values))


@st.composite
def warmup_stable_decays(draw: st.DrawFn) -> Schedule:
    warmup, stable, decay = draw(warmups), draw(warmups), draw(lengths)
    return warmup_stable_decay(draw(values), warmup, warmup + stable + decay, decay, draw(values))


STRATEGIES: dict[type[Schedule], st.SearchStrategy[Any]] = {
    constant: st.builds(constant, values),
    piecewise: piecewises(),
    step_decay: st.builds(step_decay, values, st.floats(0.01, 1), lengths),
    exponential_decay: st.builds(exponential_decay, values, st.floats(0, 1)),
    linear: st.builds(linear, values, values, lengths),
    polynomial: st.builds(polynomial, values, values, lengths, st.floats(0.1, 5)),
    cosine: st.builds(cosine, values, lengths, values),
    cosine_restarts: st.builds(cosine_restarts, values, lengths, st.integers(1, 3) | st.floats(1.1, 3), values),
    inverse_sqrt: st.builds(inverse_sqrt, values, lengths),
    warmup_cosine: warmup_cosines(),
    warmup_stable_decay: warmup_stable_decays(),
    one_cycle: st.builds(
        one_cycle,
        st.floats(1e-4, 10),
        st.integers(20, 200),
        pct_start=st.floats(0.1, 0.9),
        div_factor=st.floats(1, 100),
        final_div_factor=st.floats(1, 1e4),
        max_momentum=st.floats(0.5, 0.99),
        base_momentum=st.floats(0, 0.5),
        anneal_strategy=st.sampled_from(["cos", "linear"]),
    ),
}
simple = st.one_of(*STRATEGIES.values())
STRATEGIES[join] = joins()
STRATEGIES[linear_warmup] = st.builds(linear_warmup, warmups, simple | STRATEGIES[join], values)
any_schedule = st.one_of(*STRATEGIES.values())

whole_steps = st.integers(0, 1000) | st.integers(0, FAR)
steps_of_any_kind = whole_steps | st.floats(0, 1000)


def test_every_public_schedule_is_tested() -> None:
    assert set(schedules.__all__) == {cls.__name__ for cls in STRATEGIES} | {"Schedule", "ReduceOnPlateau"}


# What holds for all of them


@given(any_schedule, st.lists(steps_of_any_kind, max_size=40))
def test_an_array_of_steps_gives_exactly_the_numbers_of_its_steps(schedule: Schedule, steps: list[float]) -> None:
    at_once = schedule(steps)
    assert at_once.dtype == np.float64
    one_by_one = [schedule(step) for step in steps]
    assert all(type(value) is float for value in one_by_one)
    np.testing.assert_array_equal(at_once, one_by_one)


@pytest.mark.parametrize(
    "schedule",
    [exponential_decay(0.1, 0.0037), cosine(0.3, 1999, 0.01), polynomial(0.3, 0.01, 1999, 1.7), inverse_sqrt(0.3, 77)]
    + [cosine_restarts(0.3, 17, multiplier) for multiplier in (1, 2, 2.2138501417144374)]
    + [step_decay(0.3, factor, 7) for factor in np.linspace(0.5, 0.99, 30)],
    ids=repr,
)
def test_long_arrays_round_like_single_steps(schedule: Schedule) -> None:
    np.testing.assert_array_equal(schedule(range(2000)), [schedule(step) for step in range(2000)])


@given(any_schedule)
def test_the_shape_the_type_and_the_order_of_the_steps_do_not_matter(schedule: Schedule) -> None:
    steps = np.arange(24)
    expected = schedule(steps)
    np.testing.assert_array_equal(schedule(steps.reshape(2, 3, 4)), expected.reshape(2, 3, 4))
    np.testing.assert_array_equal(schedule(steps[::-2]), expected[::-2])
    np.testing.assert_array_equal(schedule(steps.astype(np.uint8)), expected)
    np.testing.assert_array_equal(schedule(steps.astype(np.float32)), expected)
    np.testing.assert_array_equal(schedule(list(steps)), expected)
    for step in (np.int64(7), np.float32(7), np.float64(7), np.array(7), 7.0):
        assert schedule(step) == expected[7]
        assert type(schedule(step)) is float


@given(any_schedule)
def test_steps_are_only_read_and_the_values_belong_to_the_caller(schedule: Schedule) -> None:
    steps = np.arange(50.0)
    steps.setflags(write=False)
    first = schedule(steps)
    kept = first.copy()
    first[:] = np.nan
    np.testing.assert_array_equal(schedule(steps), kept)


@given(any_schedule, whole_steps)
def test_every_step_has_a_finite_value(schedule: Schedule, step: float) -> None:
    assert np.isfinite(schedule([step, FAR, 10**15])).all()


@given(any_schedule)
def test_repr_pickle_and_copy_give_an_equal_schedule(schedule: Schedule) -> None:
    twins = [
        eval(repr(schedule), vars(schedules)),
        pickle.loads(pickle.dumps(schedule)),
        copy.copy(schedule),
        copy.deepcopy(schedule),
    ]
    steps = np.arange(300)
    for twin in twins:
        assert twin == schedule
        assert hash(twin) == hash(schedule)
        np.testing.assert_array_equal(twin(steps), schedule(steps))


@given(any_schedule)
def test_a_schedule_cannot_be_changed(schedule: Any) -> None:
    for field in dataclasses.fields(schedule):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(schedule, field.name, 1)


def test_repr_says_what_was_asked_for() -> None:
    assert repr(warmup_cosine(6e-4, 2000, 100000)) == (
        "warmup_cosine(peak=0.0006, warmup=2000, total=100000, floor=0.0)"
    )
    boundaries: Any = np.array([10])
    assert repr(join([constant(0.1), linear(1, 0, 5)], boundaries)) == (
        "join(schedules=(constant(value=0.1), linear(start=1, end=0, total=5)), boundaries=(10,))"
    )
    assert repr(constant(np.float64(0.5))) == "constant(value=0.5)"


def test_unequal_arguments_or_kinds_make_unequal_schedules() -> None:
    assert cosine(1.0, 10) != cosine(1.0, 11)
    straight: Schedule = linear(1.0, 0.0, 10)
    assert straight != polynomial(1.0, 0.0, 10)


@pytest.mark.parametrize("step", [-1, -0.5, math.nan, math.inf])
def test_steps_out_of_range_are_refused(step: float) -> None:
    with pytest.raises(ValueError, match=r"^step must be a finite number >= 0, got "):
        constant(1.0)(step)
    with pytest.raises(ValueError, match=rf"^step must be a finite number >= 0, got {step} in an array"):
        constant(1.0)([0, step])


@pytest.mark.parametrize("step", ["3", None, 1j, ["a"], [True]])
def test_steps_that_are_no_numbers_are_refused(step: float) -> None:
    with pytest.raises(TypeError, match=r"^step must be a number or an array of numbers, got "):
        constant(1.0)(step)


def test_no_steps_give_no_values() -> None:
    assert warmup_cosine(1.0, 5, 10)([]).shape == (0,)
    assert join([constant(1.0), constant(2.0)], [5])(np.empty((0, 3))).shape == (0, 3)


def test_a_schedule_of_ones_own_composes_with_the_others() -> None:
    @dataclasses.dataclass(frozen=True)
    class squared(Schedule):
        scale: float

        def _value(self, t: schedules.Value) -> schedules.Value:
            return self.scale * t * t

    assert linear_warmup(2, join([constant(3.0), squared(0.5)], [2]))([0, 1, 2, 4, 6]).tolist() == [0, 1.5, 3, 0, 2]


# Formulas, at the corners exactly


def test_constant() -> None:
    assert constant(0.1)([0, 1, FAR]).tolist() == [0.1, 0.1, 0.1]


def test_piecewise() -> None:
    assert piecewise([3, 5], [1.0, 0.5, 0.1])([0, 2, 3, 4, 5, FAR]).tolist() == [1.0, 1.0, 0.5, 0.5, 0.1, 0.1]
    assert piecewise([], [0.3])([0, FAR]).tolist() == [0.3, 0.3]


def test_step_decay() -> None:
    schedule = step_decay(1.0, 0.5, 30)
    assert schedule([0, 29, 30, 59, 60, 61]).tolist() == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    assert schedule(FAR) == 0.0
    assert step_decay(0.1, 1.0, 30)(FAR) == 0.1


def test_exponential_decay() -> None:
    schedule = exponential_decay(0.1, 0.01)
    assert schedule(0) == 0.1
    assert schedule(100) == pytest.approx(0.1 / math.e, rel=1e-15)
    assert schedule(FAR) == 0.0
    assert exponential_decay(0.1, 0)(FAR) == 0.1


def test_linear() -> None:
    assert linear(1.0, 0.2, 4)([0, 2, 4, 5, FAR]).tolist() == [1.0, 0.6, 0.2, 0.2, 0.2]


def test_polynomial() -> None:
    assert polynomial(1.0, 0.0, 4, power=2)([0, 1, 2, 4, 5, FAR]).tolist() == [1.0, 0.5625, 0.25, 0.0, 0.0, 0.0]
    np.testing.assert_allclose(polynomial(0.3, 0.1, 10)(range(12)), linear(0.3, 0.1, 10)(range(12)), rtol=1e-15)


def test_cosine() -> None:
    schedule = cosine(0.3, 100, floor=0.1)
    assert schedule([0, 100, 101, FAR]).tolist() == [0.3, 0.1, 0.1, 0.1]
    assert schedule(50) == pytest.approx(0.2, rel=1e-15)
    assert schedule(25) == pytest.approx(0.1 + 0.1 * (1 + math.sqrt(0.5)), rel=1e-15)
    assert schedule(99) > 0.1


def test_cosine_restarts_of_equal_length() -> None:
    schedule = cosine_restarts(1.0, 10, floor=0.5)
    assert schedule([0, 10, 20, FAR]).tolist() == [1.0, 1.0, 1.0, 1.0]
    assert schedule(5) == schedule(15) == pytest.approx(0.75, rel=1e-15)
    assert schedule(9) == schedule(FAR - 1) < 0.52


@pytest.mark.parametrize("period", [1, 7, 10, 1000])
@pytest.mark.parametrize("multiplier", [2, 3, 10])
def test_growing_restarts_happen_at_exactly_their_steps(period: int, multiplier: int) -> None:
    schedule = cosine_restarts(1.0, period, multiplier)
    restart, length = 0, period
    while restart + length < 10**11:
        assert schedule(restart) == 1.0
        assert schedule(restart + length / 2) == pytest.approx(0.5, rel=1e-9)
        assert schedule(restart + length - 1) == cosine(1.0, length)(length - 1)
        restart, length = restart + length, length * multiplier


def test_inverse_sqrt() -> None:
    schedule = inverse_sqrt(0.1, 100)
    assert schedule([0, 50, 100, 400]).tolist() == [0.0, 0.05, 0.1, 0.05]
    assert schedule([10000, 10**10]) == pytest.approx([1e-2, 1e-5], rel=1e-15)
    assert schedule(99) < 0.1 > schedule(101)


def test_inverse_sqrt_is_the_papers() -> None:
    d_model, warmup = 512, 4000
    steps = np.array([1, 10, 3999, 4000, 4001, 100000])
    paper = d_model**-0.5 * np.minimum(steps**-0.5, steps * warmup**-1.5)
    np.testing.assert_allclose(inverse_sqrt((d_model * warmup) ** -0.5, warmup)(steps), paper, rtol=1e-14)


def test_warmup_cosine() -> None:
    schedule = warmup_cosine(6e-4, warmup=2000, total=100000)
    assert schedule([0, 1000, 2000, 100000, 100001, FAR]).tolist() == [0.0, 3e-4, 6e-4, 0.0, 0.0, 0.0]
    assert schedule(1999) < 6e-4 > schedule(2001) > 0
    assert schedule(51000) == pytest.approx(3e-4, rel=1e-15)
    assert schedule(99999) > 0
    with_floor = warmup_cosine(6e-4, 2000, 100000, floor=6e-5)
    assert with_floor([0, 2000, 100000, FAR]).tolist() == [0.0, 6e-4, 6e-5, 6e-5]


def test_warmup_cosine_without_warmup_is_the_cosine() -> None:
    steps = np.arange(12)
    np.testing.assert_array_equal(warmup_cosine(0.3, 0, 10, 0.1)(steps), cosine(0.3, 10, 0.1)(steps))


def test_warmup_stable_decay() -> None:
    schedule = warmup_stable_decay(1.0, warmup=10, total=100, decay=20, floor=0.5)
    assert schedule([0, 5, 10, 11, 80, 90, 100, 101, FAR]).tolist() == [0.0, 0.5, 1, 1, 1, 0.75, 0.5, 0.5, 0.5]
    assert schedule(81) < 1.0
    assert warmup_stable_decay(1.0, 0, 4, 4)(range(5)).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


@given(warmups, any_schedule, values, st.lists(st.integers(0, 500), min_size=1))
def test_linear_warmup_leads_into_the_schedule_from_its_step_zero(
    warmup: int, then: Schedule, start: float, steps: list[float]
) -> None:
    schedule = linear_warmup(warmup, then, start)
    assert schedule(0) == (start if warmup else then(0))
    after = np.array(steps) + warmup
    np.testing.assert_array_equal(schedule(after), then(steps))
    line = np.linspace(start, then(0), warmup + 1)[:warmup]
    np.testing.assert_allclose(schedule(range(warmup)), line, rtol=0, atol=1e-13)


def test_linear_warmup_into_cosine_is_warmup_cosine() -> None:
    steps = np.arange(130)
    np.testing.assert_allclose(
        linear_warmup(20, cosine(0.3, 80, 0.1))(steps), warmup_cosine(0.3, 20, 100, 0.1)(steps), rtol=1e-15
    )


def test_join_gives_each_schedule_its_own_steps() -> None:
    first, second, third = linear(0.0, 1.0, 10), cosine(1.0, 20), exponential_decay(0.5, 0.1)
    schedule = join([first, second, third], [10, 30])
    assert schedule([0, 9, 10, 29, 30, 31, FAR]).tolist() == [
        first(0),
        first(9),
        second(0),
        second(19),
        third(0),
        third(1),
        third(FAR - 30),
    ]


def test_join_of_constants_is_piecewise() -> None:
    steps = np.arange(12)
    joined = join([constant(1.0), constant(0.5), constant(0.1)], [3, 7])
    np.testing.assert_array_equal(joined(steps), piecewise([3, 7], [1.0, 0.5, 0.1])(steps))


@pytest.mark.parametrize("anneal_strategy", ["cos", "linear"])
def test_one_cycle(anneal_strategy: Literal["cos", "linear"]) -> None:
    schedule = one_cycle(1.0, 101, pct_start=0.5, div_factor=4, final_div_factor=8, anneal_strategy=anneal_strategy)
    turn, end = 49.5, 100
    assert schedule([0, turn, end, end + 1, FAR]).tolist() == [0.25, 1.0, 0.03125, 0.03125, 0.03125]
    assert schedule.momentum([0, turn, end, end + 1, FAR]).tolist() == [0.95, 0.85, 0.95, 0.95, 0.95]
    assert schedule.momentum(turn / 2) == pytest.approx(0.9, rel=1e-15)
    assert (np.diff(schedule(range(50))) > 0).all()
    assert (np.diff(schedule(range(50, 101))) < 0).all()
    assert (np.diff(schedule.momentum(range(50))) < 0).all()
    assert (np.diff(schedule.momentum(range(50, 101))) > 0).all()


@given(STRATEGIES[one_cycle])
def test_momentum_of_one_cycle_is_a_schedule_like_the_others(schedule: one_cycle) -> None:
    momentum = schedule.momentum
    assert momentum == schedule.momentum
    assert eval(repr(momentum), vars(schedules)) == momentum
    assert pickle.loads(pickle.dumps(momentum)) == momentum
    within = momentum(range(300))
    assert within.min() >= schedule.base_momentum * (1 - 1e-15)
    assert within.max() <= schedule.max_momentum * (1 + 1e-15)


# Ranges and directions. A straight line is exact at both ends; between them it may round by a unit in the last place.


@given(STRATEGIES[linear] | STRATEGIES[polynomial] | STRATEGIES[cosine])
def test_one_way_from_start_to_end(schedule: Any) -> None:
    path = schedule(np.arange(schedule.total + 3))
    start, end = (schedule.peak, schedule.floor) if isinstance(schedule, cosine) else (schedule.start, schedule.end)
    rounding = 1e-15 * max(abs(start), abs(end), 1e-290)
    assert path[0] == start
    assert (path[schedule.total :] == end).all()
    assert (np.diff(path) * np.sign(end - start) >= -2 * rounding).all()
    assert path.min() >= min(start, end) - rounding
    assert path.max() <= max(start, end) + rounding


@given(STRATEGIES[step_decay] | STRATEGIES[exponential_decay])
def test_decay_never_grows(schedule: step_decay | exponential_decay) -> None:
    size = np.abs(schedule(np.arange(500)))
    assert size[0] == abs(schedule.start)
    assert (np.diff(size) <= 0).all()


@given(st.floats(1e-4, 10), warmups, lengths, lengths, st.floats(0, 1))
def test_up_to_the_peak_and_down_to_the_floor(
    peak: float, warmup: int, stable: int, decay: int, fraction: float
) -> None:
    floor, total = fraction * peak, warmup + stable + decay
    for schedule in (
        warmup_cosine(peak, warmup, total, floor),
        warmup_stable_decay(peak, warmup, total, decay, floor),
    ):
        path = schedule(np.arange(total + 3))
        assert path[0] == (0 if warmup else peak)
        assert path[warmup] == peak
        assert (path[total:] == floor).all()
        assert (np.diff(path[: warmup + 1]) > 0).all()
        assert (np.diff(path[warmup:]) <= 1e-15 * peak).all()


@given(STRATEGIES[cosine_restarts], whole_steps)
def test_restarts_stay_between_floor_and_peak(schedule: cosine_restarts, step: float) -> None:
    low, high = sorted((schedule.floor, schedule.peak))
    rounding = 1e-14 * max(abs(low), abs(high))
    assert low - rounding <= schedule(step) <= high + rounding


# Arguments that cannot be right


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("constant(math.nan)", "value must be a finite number, got nan"),
        ("linear(0, math.inf, 5)", "end must be a finite number, got inf"),
        ("cosine(1.0, 0)", "total must be a finite number of steps > 0, got 0"),
        ("cosine(1.0, -5)", "total must be a finite number of steps > 0, got -5"),
        ("polynomial(1.0, 0.0, 5, 0)", "power must be a finite number > 0, got 0"),
        ("exponential_decay(1.0, -0.1)", "rate must be a finite number >= 0, got -0.1"),
        ("step_decay(1.0, 1.5, 10)", "factor must be a number with 0 < factor <= 1, got 1.5"),
        ("step_decay(1.0, 0.5, 0)", "every must be a finite number of steps > 0, got 0"),
        ("cosine_restarts(1.0, 0)", "period must be a finite number of steps > 0, got 0"),
        ("cosine_restarts(1.0, 5, 0.5)", "multiplier must be a finite number >= 1, got 0.5"),
        ("inverse_sqrt(1.0, 0)", "warmup must be a finite number of steps > 0, got 0"),
        ("linear_warmup(-1, constant(1))", "warmup must be a finite number of steps >= 0, got -1"),
        ("warmup_cosine(1.0, 10, 10)", "warmup must be less than total = 10, got 10"),
        ("warmup_stable_decay(1.0, 60, 100, 50)", "warmup + decay must be at most total = 100, got 60 + 50"),
        ("piecewise([3, 3], [1, 2, 3])", "boundaries must be strictly increasing, got [3, 3]"),
        ("piecewise([0], [1, 2])", "boundaries[0] must be a finite number of steps > 0, got 0"),
        ("piecewise([1], [1, math.nan])", "values[1] must be a finite number, got nan"),
        ("piecewise([1, 2], [1, 2])", "values must be one more than boundaries, got 2 values and 2 boundaries"),
        ("join([], [])", "schedules must be one more than boundaries, got 0 schedules and 0 boundaries"),
        ("one_cycle(0, 100)", "max_lr must be a finite number > 0, got 0"),
        (
            "one_cycle(0.1, 100, base_momentum=1)",
            "base_momentum must be a number with 0 <= momentum < 1, got 1",
        ),
        (
            "one_cycle(0.1, 100, anneal_strategy='exp')",
            "anneal_strategy must be one of 'cos', 'linear', got 'exp'",
        ),
        (
            "one_cycle(0.1, 100, pct_start=1.0)",
            "pct_start must put the turn, step pct_start * total - 1, between step 0 and the last, 99, "
            "got 1.0, which puts it at step 99.0",
        ),
        ("ReduceOnPlateau(0)", "lr must be a finite number > 0, got 0"),
        ("ReduceOnPlateau(1, mode='least')", "mode must be one of 'min', 'max', got 'least'"),
        ("ReduceOnPlateau(1, factor=1.0)", "factor must be a number with 0 < factor < 1, got 1.0"),
        ("ReduceOnPlateau(1, patience=-1)", "patience must be an integer >= 0, got -1"),
        ("ReduceOnPlateau(0.1, floor=0.2)", "floor must be at most lr = 0.1, got 0.2"),
    ],
)
def test_wrong_values_are_refused_by_name(call: str, message: str) -> None:
    with pytest.raises(ValueError, match=the_whole(call, message)):
        eval(call, vars(schedules))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("constant('0.1')", "value must be a finite number, got '0.1'"),
        ("cosine(1.0, None)", "total must be a finite number of steps > 0, got None"),
        ("piecewise(3, [1, 2])", "boundaries must be a sequence, got 3"),
        ("linear_warmup(5, 0.1)", "then must be a schedule (`constant(x)` makes one of a number), got 0.1"),
        (
            "join([constant(1), 0.1], [5])",
            "schedules[1] must be a schedule (`constant(x)` makes one of a number), got 0.1",
        ),
        ("ReduceOnPlateau(1, patience=2.5)", "patience must be an integer >= 0, got 2.5"),
    ],
)
def test_wrong_types_are_refused_by_name(call: str, message: str) -> None:
    with pytest.raises(TypeError, match=the_whole(call, message)):
        eval(call, vars(schedules))


def the_whole(call: str, message: str) -> str:
    name, _, _ = call.partition("(")
    return f"^{re.escape(f'{name}: {message}')}$"


# ReduceOnPlateau


def updates(plateau: ReduceOnPlateau, *metrics: float) -> list[float]:
    return [plateau.update(metric) for metric in metrics]


def test_plateau_reduces_after_more_than_patience_bad_updates() -> None:
    plateau = ReduceOnPlateau(lr=1.0, factor=0.5, patience=2)
    assert updates(plateau, 1.0, 1.0, 1.0, 1.0) == [1.0, 1.0, 1.0, 0.5]
    assert updates(plateau, 1.0, 1.0, 0.9, 0.9, 0.9, 0.9) == [0.5, 0.5, 0.5, 0.5, 0.5, 0.25]


def test_plateau_is_a_schedule_of_its_current_value() -> None:
    plateau = ReduceOnPlateau(lr=1, factor=0.5, patience=0)
    assert isinstance(plateau, Schedule)
    assert plateau(0) == plateau(FAR) == 1.0
    updates(plateau, 1.0, 1.0)
    assert plateau(np.array([[0, 5, FAR]])).tolist() == [[0.5, 0.5, 0.5]]
    with pytest.raises(ValueError, match="step"):
        plateau(-1)


def test_plateau_behind_a_warmup_is_seen_at_once() -> None:
    plateau = ReduceOnPlateau(lr=1.0, factor=0.5, patience=0)
    schedule = linear_warmup(4, plateau)
    assert schedule([0, 2, 4, 8]).tolist() == [0.0, 0.5, 1.0, 1.0]
    updates(plateau, 1.0, 1.0)
    assert schedule([0, 2, 4, 8]).tolist() == [0.0, 0.25, 0.5, 0.5]


def test_plateau_stops_at_the_floor() -> None:
    plateau = ReduceOnPlateau(lr=1.0, factor=0.5, patience=0, floor=0.3)
    assert updates(plateau, 1.0, 1.0, 1.0, 1.0) == [1.0, 0.5, 0.3, 0.3]


def test_plateau_makes_no_reduction_that_eps_is_not_exceeded_by() -> None:
    plateau = ReduceOnPlateau(lr=1.0, factor=0.5, patience=0, eps=0.25)
    assert updates(plateau, 1.0, 1.0, 1.0, 1.0) == [1.0, 0.5, 0.5, 0.5]


def test_plateau_counts_nothing_in_the_cooldown() -> None:
    plateau = ReduceOnPlateau(lr=1.0, factor=0.5, patience=0, cooldown=2)
    assert updates(plateau, 1.0, 1.0, 1.0, 1.0, 1.0) == [1.0, 0.5, 0.5, 0.5, 0.25]


@pytest.mark.parametrize("diverged", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_diverged_metric_is_a_bad_one(mode: Literal["min", "max"], diverged: float) -> None:
    plateau = ReduceOnPlateau(lr=1.0, mode=mode, factor=0.5, patience=1)
    assert updates(plateau, diverged, diverged) == [1.0, 0.5]
    assert plateau.best is None
    assert updates(plateau, 3.0, diverged, diverged) == [0.5, 0.5, 0.25]
    assert plateau.best == 3.0


@pytest.mark.parametrize(
    ("mode", "threshold_mode", "best", "too_little", "enough"),
    [
        ("min", "rel", 8.0, 6.0, 5.9),
        ("max", "rel", 8.0, 10.0, 10.1),
        ("min", "abs", 8.0, 7.75, 7.7),
        ("max", "abs", 8.0, 8.25, 8.3),
        ("min", "rel", -8.0, -10.0, -10.1),
        ("max", "rel", -8.0, -6.0, -5.9),
    ],
)
def test_threshold_of_improvement(
    mode: Literal["min", "max"], threshold_mode: Literal["rel", "abs"], best: float, too_little: float, enough: float
) -> None:
    plateau = ReduceOnPlateau(1.0, mode=mode, threshold=0.25, threshold_mode=threshold_mode)
    updates(plateau, best, too_little)
    assert (plateau.best, plateau.num_bad_updates) == (best, 1)
    updates(plateau, enough)
    assert (plateau.best, plateau.num_bad_updates) == (enough, 0)


@pytest.mark.parametrize("metric", [np.float32(0.5), np.float64(0.5), np.array(0.5)])
def test_plateau_takes_any_number_as_metric(metric: float) -> None:
    plateau = ReduceOnPlateau(1.0)
    plateau.update(metric)
    assert type(plateau.best) is float
    assert plateau.best == 0.5


def test_plateau_refuses_what_is_no_metric() -> None:
    plateau = ReduceOnPlateau(1.0)
    before = plateau.state_dict()
    wrong: list[Any] = [None, "low", [1.0, 2.0]]
    for metric in wrong:
        with pytest.raises(TypeError, match=r"^metric must be a number, got "):
            plateau.update(metric)
    assert plateau.state_dict() == before


@given(st.lists(st.floats(0, 2) | st.just(math.nan), max_size=30), st.lists(st.floats(0, 2), max_size=30))
def test_plateau_goes_on_where_its_state_was_saved(before: list[float], after: list[float]) -> None:
    def make() -> ReduceOnPlateau:
        return ReduceOnPlateau(1.0, factor=0.5, patience=1, cooldown=1)

    original, resumed = make(), make()
    updates(original, *before)
    resumed.load_state_dict(json.loads(json.dumps(original.state_dict())))
    twins = [resumed, pickle.loads(pickle.dumps(original)), copy.deepcopy(original)]
    expected = updates(original, *after)
    for twin in twins:
        assert updates(twin, *after) == expected
        assert twin.state_dict() == original.state_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": -1.0}, r"^state\['value'\] must be a finite number >= 0, got -1.0$"),
        ({"best": math.nan}, r"^state\['best'\] must be a finite number, got nan$"),
        ({"num_bad_updates": -1}, r"^state\['num_bad_updates'\] must be an integer >= 0, got -1$"),
        ({"patience": 3}, r"^state must have exactly the keys \['best', .*\], got \['best', .*'patience', 'value'\]$"),
    ],
)
def test_a_wrong_state_is_refused_and_changes_nothing(change: dict[str, float], message: str) -> None:
    plateau = ReduceOnPlateau(1.0, patience=0)
    updates(plateau, 1.0, 2.0)
    before = plateau.state_dict()
    with pytest.raises(ValueError, match=message):
        plateau.load_state_dict({**before, "value": 0.7, "cooldown_counter": 5, **change})
    assert plateau.state_dict() == before
    with pytest.raises(ValueError, match=r"got \['value'\]$"):
        plateau.load_state_dict({"value": 0.5})


def test_repr_of_plateau_shows_arguments_and_state() -> None:
    plateau = ReduceOnPlateau(0.5, patience=3)
    plateau.update(2.0)
    shown = repr(plateau)
    assert shown.startswith("ReduceOnPlateau(lr=0.5, mode='min', factor=0.1, patience=3, ")
    assert shown.endswith("value=0.5, best=2.0, num_bad_updates=0, cooldown_counter=0)")


# The same numbers as torch.optim.lr_scheduler


TorchValues: TypeAlias = Callable[..., tuple[np.ndarray, np.ndarray]]


@pytest.fixture
def torch_values() -> TorchValues:
    """Return a function that runs one of torch's schedulers and gives its learning rates and momenta."""
    torch = pytest.importorskip("torch")

    def run(name: str, lr: float, steps: int, **arguments: Any) -> tuple[np.ndarray, np.ndarray]:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr, momentum=0.9)
        scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **arguments)
        rates, momenta = [], []
        for _ in range(steps):
            rates.append(float(optimizer.param_groups[0]["lr"]))
            momenta.append(float(optimizer.param_groups[0]["momentum"]))
            optimizer.step()
            scheduler.step()
        return np.array(rates), np.array(momenta)

    return run


@pytest.mark.parametrize(
    ("schedule", "name", "arguments"),
    [
        (step_decay(0.1, 0.3, 7), "StepLR", {"step_size": 7, "gamma": 0.3}),
        (exponential_decay(0.1, -math.log(0.97)), "ExponentialLR", {"gamma": 0.97}),
        (cosine(0.1, 60, 0.01), "CosineAnnealingLR", {"T_max": 60, "eta_min": 0.01}),
        (linear(0.02, 0.1, 30), "LinearLR", {"start_factor": 0.2, "total_iters": 30}),
        (linear(0.1, 0.05, 30), "LinearLR", {"start_factor": 1.0, "end_factor": 0.5, "total_iters": 30}),
        (polynomial(0.1, 0.0, 61, 0.9), "PolynomialLR", {"total_iters": 61, "power": 0.9}),
        (cosine_restarts(0.1, 7, 1, 0.01), "CosineAnnealingWarmRestarts", {"T_0": 7, "eta_min": 0.01}),
        (cosine_restarts(0.1, 5, 2), "CosineAnnealingWarmRestarts", {"T_0": 5, "T_mult": 2}),
        (piecewise([5, 30], [0.1, 0.05, 0.025]), "MultiStepLR", {"milestones": [5, 30], "gamma": 0.5}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_same_as_torch(torch_values: TorchValues, schedule: Schedule, name: str, arguments: dict[str, Any]) -> None:
    expected, _ = torch_values(name, 0.1, 61, **arguments)
    np.testing.assert_allclose(schedule(range(61)), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("total", [40, 99, 100])
@pytest.mark.parametrize("pct_start", [0.1, 0.3, 0.77])
@pytest.mark.parametrize("anneal_strategy", ["cos", "linear"])
def test_one_cycle_same_as_torch(
    torch_values: TorchValues, total: int, pct_start: float, anneal_strategy: Literal["cos", "linear"]
) -> None:
    shape: dict[str, Any] = {
        "pct_start": pct_start,
        "anneal_strategy": anneal_strategy,
        "div_factor": 10.0,
        "final_div_factor": 50.0,
    }
    rates, momenta = torch_values("OneCycleLR", 0.1, total, max_lr=0.2, total_steps=total, **shape)
    schedule = one_cycle(0.2, total, **shape)
    np.testing.assert_allclose(schedule(range(total)), rates, rtol=1e-12, atol=0)
    np.testing.assert_allclose(schedule.momentum(range(total)), momenta, rtol=1e-12, atol=0)


def test_one_cycle_defaults_are_torchs(torch_values: TorchValues) -> None:
    rates, momenta = torch_values("OneCycleLR", 0.1, 100, max_lr=0.2, total_steps=100)
    schedule = one_cycle(0.2, 100)
    np.testing.assert_allclose(schedule(range(100)), rates, rtol=1e-12, atol=0)
    np.testing.assert_allclose(schedule.momentum(range(100)), momenta, rtol=1e-12, atol=0)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
@pytest.mark.parametrize("cooldown", [0, 3])
def test_plateau_same_as_torch(
    mode: Literal["min", "max"], threshold_mode: Literal["rel", "abs"], cooldown: int
) -> None:
    torch = pytest.importorskip("torch")
    arguments: dict[str, Any] = {
        "mode": mode,
        "factor": 0.5,
        "patience": 2,
        "threshold": 0.05,
        "threshold_mode": threshold_mode,
        "cooldown": cooldown,
    }
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, min_lr=1e-3, **arguments)
    plateau = ReduceOnPlateau(0.1, floor=1e-3, **arguments)
    metrics = 1.0 + np.random.default_rng(0).exponential(size=200)
    metrics[::17] = np.nan
    for metric in metrics:
        scheduler.step(metric)
        assert plateau.update(metric) == optimizer.param_groups[0]["lr"]
    assert plateau.value == 1e-3
