"""Gradients for some rows of a table: only those are stepped, by any rule."""

from typing import Any

import numpy as np
import pytest
from arrays import Array, nonzero
from cases import CASES

import fastopt
from fastopt import _arrays, _core

NUMBERS = {case.rule: case.cls.method.numbers for case in CASES}

APART = {*_core.SCOPES, *_core.SMALL}
"""Rules that need more than rows: sums, and states of another shape (test_small_states.py)."""

RULES = [name for name in _core.RULES if not name.startswith("floor") and name not in APART]

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
        self.numbers = [self.count, *[np.ones(1) for _ in NUMBERS.get(rule, ())]]
        self.rule = rule
        self.bind()

    def bind(self) -> None:
        places = list(map(_arrays.place, self.states))
        kept = [(number.ctypes.data, False) for number in self.numbers]
        self.plan.bind(0, self.rule, self.table.size, _arrays.place(self.table), places, kept)

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


def unaligned(values: Array) -> Array:
    """The same at an address that is a multiple of nothing more than the size of an element."""
    buffer = np.empty(values.size + 64, values.dtype)
    start = (1 - buffer.ctypes.data // values.itemsize) % 64
    placed = buffer[start : start + values.size].reshape(values.shape)
    placed[...] = values
    return placed


CHOSEN: dict[str, list[int]] = {
    "none": [],
    "the first": [0],
    "the last": [-1],
    "one, often": [5] * 40,
    "all, backwards": list(range(-1, -41, -1)),
    "some, repeated": [3, -1, 0, 3, 17, -1, 3],
}
"""Row numbers of a table of 40, counted from its end where negative."""


@pytest.mark.parametrize("chosen", CHOSEN.values(), ids=CHOSEN)
@pytest.mark.parametrize("width", [1, 2, 7, 16, 33, 255, 256, 257, 700, 4096])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_any_width_at_any_address(dtype: str, width: int, chosen: list[int]) -> None:
    """Against single rows, each stepped as an array of its own."""
    rng = np.random.default_rng(0)
    start = nonzero(rng, (40, width), dtype)
    numbers, values = np.array(chosen, np.int64) % 40, unaligned(nonzero(rng, (len(chosen), width), dtype))
    table = Table("adam", start)
    table.table, table.states = unaligned(start), [unaligned(state) for state in table.states]
    table.bind()
    table.set_rows(numbers, values, threads=2)
    table.step(threads=2)
    for row in range(40):
        alone = Table("adam", start[row : row + 1])
        if row in numbers:
            _, sums = summed(np.zeros((numbers == row).sum(), np.int64), values[numbers == row])
            alone.plan.set_gradient(0, _arrays.place(sums))
            alone.step()
        for whole, part in zip((table.table, *table.states), (alone.table, *alone.states), strict=True):
            np.testing.assert_array_equal(whole[row], part[0])


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


# ---- the face ----


def oracle(table: Array, rows: fastopt.Rows) -> Array:
    dense = np.zeros_like(table)
    np.add.at(dense, rows.indices, rows.values)
    return dense


@pytest.mark.parametrize("integers", ["int64", "int32", "uint8"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SGD", {}),
        ("SGD", {"clip_norm": 0.5}),
        ("SGD", {"momentum": 0.9}),
        ("SGD", {"weight_decay": 0.1}),
        ("SGD", {"ema": 0.9}),
        ("Adagrad", {"lr_decay": 0.1}),
    ],
)
def test_rows_step_as_their_dense_gradient(name: str, options: dict[str, Any], dtype: str, integers: str) -> None:
    rng = np.random.default_rng(0)
    tables = [nonzero(np.random.default_rng(1), (9, 2, 3), dtype) for _ in range(2)]
    heads = [np.ones(4, dtype) for _ in range(2)]
    opts = [getattr(fastopt, name)({"t": t, "h": h}, lr=0.1, **options) for t, h in zip(tables, heads, strict=True)]
    for count in (5, 0, 1, 30):
        rows = fastopt.Rows(rng.integers(0, 9, count).astype(integers), nonzero(rng, (count, 2, 3), dtype))
        head = nonzero(rng, 4, dtype)
        infos = opts[0].step({"t": rows, "h": head}), opts[1].step({"t": oracle(tables[1], rows), "h": head})
        np.testing.assert_array_equal(tables[0], tables[1])
        assert (infos[0].grad_norm is None) == (infos[1].grad_norm is None)
        assert infos[0].grad_norm == pytest.approx(infos[1].grad_norm)


def test_lazy_rows_resume_from_a_state_dict() -> None:
    def train(opt: fastopt.Optimizer, steps: range) -> None:
        for step in steps:
            opt.step(fastopt.Rows(np.array([step % 7, 3]), np.full((2, 5), step + 1.0)))

    one, two = np.ones((7, 5)), np.ones((7, 5))
    whole = fastopt.AdamW(one, lr=0.1, weight_decay=0.3, lazy=True)
    first = fastopt.AdamW(two, lr=0.1, weight_decay=0.3, lazy=True)
    train(whole, range(10))
    train(first, range(5))
    second = fastopt.AdamW(two, lr=0.1, weight_decay=0.3, lazy=True)
    second.load_state_dict(first.state_dict())
    train(second, range(5, 10))
    np.testing.assert_array_equal(one, two)


def test_values_are_zeroed_or_said_not_to_be_finite() -> None:
    table = np.ones((4, 2))
    opt = fastopt.SGD(table, lr=0.5, nonfinite="raise")
    rows = fastopt.Rows(np.array([1, 1]), np.ones((2, 2)))
    opt.step(rows, zero_grad=True)
    np.testing.assert_array_equal(table, [[1, 1], [0, 0], [1, 1], [1, 1]])
    np.testing.assert_array_equal(rows.values, 0)
    with pytest.raises(FloatingPointError, match="gradient of params"):
        opt.step(fastopt.Rows(np.array([0]), np.array([[1.0, np.nan]])))


def test_sparse_matrices_of_scipy() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    matrix = np.zeros((6, 3))
    matrix[[1, 4]] = [[1, 0, 2], [0, 3, 0]]
    for kind in (sparse.csr_matrix, sparse.coo_array, sparse.csc_array):
        table = np.ones((6, 3))
        fastopt.SGD([table], lr=0.5).step([kind(matrix)])
        np.testing.assert_array_equal(table, 1 - 0.5 * matrix)
    with pytest.raises(ValueError, match=r"^gradient of params: is a sparse matrix, which is not zeroed"):
        fastopt.SGD(table, lr=0.5).step(sparse.csr_array(matrix), zero_grad=True)


@pytest.mark.parametrize("shape", [(9, 3), (4, 3), (6, 4), (6,)])
def test_sparse_matrices_of_another_shape(shape: tuple[int, ...]) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    table = np.ones((6, 3))
    with pytest.raises(ValueError, match=r"^gradient of params: expected the parameter's shape \(6, 3\), got a sparse"):
        fastopt.SGD(table, lr=0.5).step(sparse.coo_array(np.ones(shape)))
    vector = np.ones(6)
    with pytest.raises(ValueError, match=r"^gradient of params: expected the parameter's shape \(6,\), got a sparse"):
        fastopt.SGD(vector, lr=0.5).step(sparse.coo_array(np.ones(shape)))
    np.testing.assert_array_equal(table, 1)
    np.testing.assert_array_equal(vector, 1)


@pytest.mark.parametrize(
    ("indices", "values", "error"),
    [
        ([6], np.ones((1, 3)), r"^gradient of params: expected row numbers of at least 0 and below 6, got 6 at 0$"),
        ([0, -1], np.ones((2, 3)), r"got -1 at 1$"),
        ([0.0], np.ones((1, 3)), r"^indices of gradient of params: expected integers"),
        ([[0]], np.ones((1, 3)), r"^indices of gradient of params: expected integers"),
        ([0], np.ones((2, 3)), r"^values of gradient of params: expected an array with one entry for each of 1"),
        ([0], np.ones((1, 2)), r"^values of gradient of params: expected rows of shape \(3,\)"),
        ([0], np.ones((1, 3), "float32"), r"^values of gradient of params: expected the parameter's dtype float64"),
    ],
)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rows_that_do_not_fit(indices: list[Any], values: Array, error: str, momentum: float) -> None:
    table = np.ones((6, 3))
    opt = fastopt.SGD(table, lr=0.5, momentum=momentum)
    with pytest.raises((IndexError, TypeError, ValueError), match=error):
        opt.step(fastopt.Rows(np.array(indices), values))
    assert opt.step_count == 0
    np.testing.assert_array_equal(table, np.ones((6, 3)))


def test_other_rules_ask_for_lazy() -> None:
    rows = fastopt.Rows(np.array([1]), np.ones((1, 3)))
    with pytest.raises(TypeError, match=r"^gradient of params: expected a NumPy array, got rows; lazy=True steps rows"):
        fastopt.Adam(np.ones((6, 3))).step(rows)
    with pytest.raises(TypeError, match=r"got rows$"):
        fastopt.LARS(np.ones((6, 3))).step(rows)
