"""Gradients for some rows of a table: only those are stepped, by any rule."""

from typing import Any

import numpy as np
import pytest
from arrays import Array, nonzero

from fastopt import _arrays, _core

RULES = [name for name in _core.RULES if not name.startswith("floor") and name not in _core.SCOPES]

OPTIONS = {"lr": 0.1, "momentum": 0.9, "alpha": 0.9, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.01}


class Table:
    """A table and its states, bound to a plan of its own."""

    def __init__(self, rule: str, table: Array) -> None:
        _, count = _core.RULES[rule]
        self.table = table.copy()
        self.states = [np.ones_like(table) for _ in range(count)]
        self.count = np.zeros(1)
        self.plan = _core.Plan([0], 1)
        self.plan.set_options(0, tuple(map(_core.OPTIONS.__getitem__, OPTIONS)), list(OPTIONS.values()))
        places = list(map(_arrays.place, self.states))
        count_place = (self.count.ctypes.data, False)
        self.plan.bind(0, rule, table.size, _arrays.place(self.table), places, [count_place])

    def set_rows(self, numbers: Array, values: Array, threads: int = 1) -> None:
        place = numbers.ctypes.data, numbers.dtype == np.int64, len(numbers)
        self.plan.set_rows(0, place, _arrays.place(values), self.table[0].size, threads)

    def step(self, threads: int = 1) -> Any:
        return self.plan.step(threads, [], 1.0, np.inf, np.inf, True, "propagate", False, 0.0, [], [], None)


def summed(numbers: Array, values: Array) -> tuple[Array, Array]:
    """The different rows, and the sum of each one's values, in order."""
    rows, places = np.unique(numbers, return_inverse=True)
    sums = np.zeros((len(rows), *values.shape[1:]), values.dtype)
    np.add.at(sums, places, values)
    return rows, sums


@pytest.mark.parametrize(("threads", "numbers_dtype"), [(1, "int64"), (3, "int32")])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rule", RULES)
def test_a_step_of_rows_is_a_step_of_copies_of_them(rule: str, dtype: str, numbers_dtype: str, threads: int) -> None:
    rng = np.random.default_rng(0)
    table = nonzero(rng, (5000, 8), dtype)
    numbers = rng.integers(0, 1 + rng.integers(0, 5000, 20_000)).astype(numbers_dtype)
    values = nonzero(rng, (20_000, 8), dtype)
    rows, sums = summed(numbers, values)
    whole, picked = Table(rule, table), Table(rule, table[rows])
    whole.set_rows(numbers, values, threads)
    picked.plan.set_gradient(0, _arrays.place(sums))
    assert whole.step(threads)[0] == pytest.approx(picked.step()[0], rel=1e-13)
    for got, expected, before in zip(
        (whole.table, *whole.states),
        (picked.table, *picked.states),
        (table, *[np.ones_like(table)] * len(whole.states)),
        strict=True,
    ):
        stepped = before.copy()
        stepped[rows] = expected
        np.testing.assert_array_equal(got, stepped)


def test_other_rows_in_each_step_and_all_in_between() -> None:
    rng = np.random.default_rng(0)
    start = nonzero(rng, (3000, 16))
    table, expected = Table("sgd", start), start.copy()
    for count in (1, 30_000, 0, 5, None, 700):
        if count is None:
            values = nonzero(rng, start.shape)
            table.plan.set_gradient(0, _arrays.place(values))
            expected = expected - 0.1 * (values + 0.01 * expected)
        else:
            numbers, values = rng.integers(0, 3000, count), nonzero(rng, (count, 16))
            table.set_rows(numbers, values)
            rows, sums = summed(numbers, values)
            expected[rows] -= 0.1 * (sums + 0.01 * expected[rows])
        table.step()
        np.testing.assert_allclose(table.table, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("wrong", "threads"), [(-1, 1), (10, 1), (2**40, 2), (-(2**63), 3)])
def test_a_row_that_is_not_there(wrong: int, threads: int) -> None:
    table = Table("sgd", np.ones((10, 3)))
    numbers = np.zeros(50_000, np.int64)
    numbers[[30_000, 40_000]] = wrong
    with pytest.raises(IndexError, match=rf"^expected row numbers of at least 0 and below 10, got {wrong} at 30000$"):
        table.set_rows(numbers, np.ones((50_000, 3)), threads)
    table.step()
    np.testing.assert_array_equal(table.table, np.ones((10, 3)))
