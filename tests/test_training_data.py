"""What is read from tables, what is refused and in which words, and the order of the batches."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from fastopt.training.batches import Batch, ShuffledBatches
from fastopt.training.data import Columns, Standardization, Table, Task, load, split
from fastopt.training.errors import TrainingError
from fastopt.training.randomness import Stream, generator

ROWS = [f"{i},{i * i},{'odd' if i % 2 else 'even'}" for i in range(12)]


def write_csv(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def with_row(row: str) -> list[str]:
    return ["a,b,kind", *ROWS[:5], row, *ROWS[6:]]


def features(table: Table) -> np.ndarray:
    """Return the numbers of a table that has nothing else, before they are standardised."""
    halves = split(table, 0, "float64")
    order = generator(0, Stream.SPLIT).permutation(len(table.targets))
    scaled = np.empty((len(order), halves.train.features.shape[1]))
    scaled[order] = np.concatenate([halves.test.features, halves.train.features])
    return scaled * halves.standardization.scale + halves.standardization.mean


def test_columns_around_the_target(tmp_path: Path) -> None:
    lines = ["a, kind ,b", "", *(f"{i},{'x' if i < 4 else 'y'}, {i / 2}" for i in range(10))]
    table = load(write_csv(tmp_path / "t.csv", *lines), "classification", "kind")
    np.testing.assert_allclose(features(table), [[i, i / 2] for i in range(10)], atol=1e-12)
    np.testing.assert_array_equal(table.targets, [0] * 4 + [1] * 6)
    assert table.targets.dtype == np.int64
    assert table.classes == ("x", "y")


def test_numbers_to_predict(tmp_path: Path) -> None:
    table = load(write_csv(tmp_path / "t.csv", "a,b,kind", *ROWS), "classification", "kind")
    assert table.classes == ("even", "odd")
    numbers = load(write_csv(tmp_path / "n.csv", "a,b", *(f"{i},{i * i}" for i in range(12))), "regression", "b")
    np.testing.assert_array_equal(numbers.targets, np.arange(12.0) ** 2)
    assert numbers.classes == ()


def test_rows_without_a_target_are_left_out(tmp_path: Path) -> None:
    lines = [f"{i},{target}" for i, target in enumerate([*"0101010101", "", "NaN", *"01"])]
    for task in get_args(Task):
        table = load(write_csv(tmp_path / "t.csv", "a,y", *lines), task, "y")
        np.testing.assert_array_equal(table.targets, [0, 1] * 6)
        assert isinstance(table.features, Columns)
        assert table.features.unlabelled == 2


@pytest.mark.parametrize(
    ("lines", "target", "message"),
    [
        (["a,b,kind", *ROWS], None, r"--target NAME is needed for a table; the columns are a, b, kind"),
        (["a,b,kind", *ROWS], "sort", r"no column 'sort'; the columns are a, b, kind"),
        ([""], "kind", r"there are no columns: the file is empty"),
        (["kind", *"aabbaabbaabb"], "kind", r"no column besides the target 'kind'"),
        (
            with_row("1,many,odd"),
            "kind",
            r"1 of 3 columns cannot .*\n  b: 1 of 12 cells are no numbers: 'many' .line 7",
        ),
        (with_row("1,-inf,odd"), "kind", r"\n  b: 1 of 12 cells are infinite: '-inf' .line 7"),
        (with_row("1,2"), "kind", r"line 7: 2 cells under 3 columns"),
        (with_row("1,2,3,4"), "kind", r"line 7: 4 cells under 3 columns"),
        (with_row('1,"2,odd'), "kind", r"a quoted cell does not end"),
        (["a,b,kind", *ROWS[:9]], "kind", r"needs at least 10 rows to learn and to test, has 9"),
        (with_row("1,1_100,odd"), "kind", r"\n  b: 1 of 12 cells are no numbers: '1_100' .line 7"),
        (with_row("1,\u0661,odd"), "kind", r"\n  b: 1 of 12 cells are no numbers: '\u0661' .line 7"),
        (with_row("1,2,-Infinity"), "kind", r"the target of data row 6 is -Infinity; fill or drop it"),
        (["a,b,kind,kind", *(f"{row},odd" for row in ROWS)], "kind", r"2 columns have the name 'kind'"),
        (["a, a,kind", *ROWS], "kind", r"2 columns have the name 'a'"),
        (["a,b,kind"], "kind", r"needs at least 10 rows to learn and to test, has 0"),
        (["a,kind", *(f"{i},same" for i in range(12))], "kind", r"every row is of the class same"),
        (["a,kind", *(f"{i},{'1' if i % 2 else '1.0'}" for i in range(12))], "kind", r"every row is of the class 1:"),
        (["a,kind", *(f"{i},{i}" for i in range(12))], "kind", r"12 different targets .* --task regression"),
        (
            ["a,kind", *(f"n{i},{i % 2}" for i in range(12))],
            "kind",
            r"no column besides .*\n  a: 12 different texts, looks",
        ),
    ],
)
def test_unfit_tables(tmp_path: Path, lines: list[str], target: str | None, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        load(write_csv(tmp_path / "t.csv", *lines), "classification", target)


def test_all_bad_columns_are_told_at_once(tmp_path: Path) -> None:
    lines = [f"{i},{'x' if i == 3 else i},{'y' if i > 38 else i},{i % 2}" for i in range(40)]
    with pytest.raises(TrainingError) as raised:
        load(write_csv(tmp_path / "t.csv", "a,b,c,kind", *lines), "classification", "kind")
    assert "2 of 4 columns cannot be used as they are" in raised.value.message
    assert raised.value.details == (
        "b: 1 of 40 cells are no numbers: 'x' (line 5)",
        "c: 1 of 40 cells are no numbers: 'y' (line 41)",
    )


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["high"] * 12, r"regression needs numeric targets, but y: 12 of 12 cells are no numbers: 'high' .line 2"),
        ([*"12345678901", "1_100"], r"regression needs numeric targets, but y: 1 of 12 cells are no numbers: '1_100'"),
        (["3"] * 12, r"every target is 3"),
        ([*"12345678901", "inf"], r"regression needs numeric targets, but y: 1 of 12 cells are infinite: 'inf'"),
    ],
)
def test_unfit_numbers_to_predict(tmp_path: Path, column: list[str], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        load(write_csv(tmp_path / "t.csv", "a,y", *(f"1,{cell}" for cell in column)), "regression", "y")


def test_npz_of_images_is_flattened_and_in_one_unit(tmp_path: Path) -> None:
    images = np.arange(10 * 2 * 3, dtype=np.uint8).reshape(10, 2, 3)
    np.savez(tmp_path / "i.npz", X=images, y=np.arange(10) % 2)
    table = load(str(tmp_path / "i.npz"), "classification")
    assert isinstance(table.features, np.ndarray)
    np.testing.assert_array_equal(table.features, images.reshape(10, 6))
    assert table.one_unit


BROKEN = np.ones((12, 2))
BROKEN[3, 1] = np.nan


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"data": np.ones((12, 2)), "target": np.ones(12)}, r"expected the arrays 'X' and 'y', found data, target"),
        ({"X": np.ones(12), "y": np.ones(12)}, r"X must be numeric with 2 or more dimensions, is float64 \(12,\)"),
        ({"X": np.full((12, 2), "a"), "y": np.ones(12)}, r"X must be numeric"),
        ({"X": np.ones((12, 2)), "y": np.ones((12, 1))}, r"y must have the shape \(12,\) .* has \(12, 1\)"),
        ({"X": np.ones((12, 0)), "y": np.ones(12)}, r"X has no features, its shape is \(12, 0\)"),
        ({"X": np.ones((12, 3, 0)), "y": np.ones(12)}, r"X has no features, its shape is \(12, 3, 0\)"),
        ({"X": np.ones((12, 2), complex), "y": np.ones(12)}, r"X must be numeric"),
        ({"X": np.ones((12, 2)), "y": np.arange(12) % 2 + 1j}, r"y must be real numbers or texts, is complex128"),
        ({"X": np.ones((12, 2)), "y": np.array(["nan", "b"] * 6)}, r"the target of data row 1 is nan"),
        ({"X": BROKEN, "y": np.arange(12) % 2}, r"X\[3, 1\] is nan"),
        ({"X": BROKEN.astype(np.longdouble), "y": np.arange(12) % 2}, r"X\[3, 1\] is nan"),
        ({"X": np.ones((12, 2)), "y": np.array([np.nan, 1] * 6)}, r"the target of data row 1 is nan"),
        ({"X": np.ones((12, 2)), "y": np.array([None] * 12)}, r"not a readable .npz file of plain arrays"),
    ],
)
def test_unfit_npz(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "t.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=message):
        load(str(tmp_path / "t.npz"), "classification")


def test_equal_numbers_are_one_class(tmp_path: Path) -> None:
    labels = ["1", "1.0", "01", "1e0", "x", "X", "0.5", ".5", "10000000000000000001", "10000000000000000002"] * 2
    lines = ["a,kind", *(f"{row},{label}" for row, label in enumerate(labels))]
    table = load(write_csv(tmp_path / "t.csv", *lines), "classification", "kind")
    assert table.classes == (".5", "1", "10000000000000000001", "10000000000000000002", "X", "x")
    np.testing.assert_array_equal(table.targets[:10], [1, 1, 1, 1, 5, 4, 0, 0, 2, 3])


def test_labels_beyond_all_numbers_are_texts(tmp_path: Path) -> None:
    labels = ["4E500", "1e99999999999999999999"] * 6
    lines = ["a,kind", *(f"{row},{label}" for row, label in enumerate(labels))]
    table = load(write_csv(tmp_path / "t.csv", *lines), "classification", "kind")
    assert table.classes == ("1e99999999999999999999", "4E500")


def test_labels_of_bytes_are_texts(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", X=np.ones((12, 2)), y=np.array([b"left", b"right"] * 6))
    assert load(str(tmp_path / "t.npz"), "classification").classes == ("left", "right")


def fingerprint(path: Path) -> str:
    return split(load(str(path), "classification"), 0, "float32").fingerprint


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_archives_are_told_in_one_line(tmp_path: Path, save: Callable[..., None]) -> None:
    path = tmp_path / "t.npz"
    random = np.random.default_rng(0)
    save(path, X=random.normal(size=(12, 2)), y=np.arange(12) % 2)
    whole = path.read_bytes()
    undamaged = fingerprint(path)
    told = []
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[random.integers(len(damaged))] = random.integers(256)
        path.write_bytes(damaged[: random.integers(len(damaged))] if random.random() < 0.1 else damaged)
        try:
            assert fingerprint(path) == undamaged, "such as a date"
        except TrainingError as error:
            told.append(str(error))
    assert len(told) > 250
    assert all(message.startswith(f"{path}: ") and "\n" not in message for message in told)


def test_unfit_sources(tmp_path: Path) -> None:
    (tmp_path / "no.npz").write_bytes(b"no archive")
    cases = {
        str(tmp_path / "missing.csv"): r"--data: no such file: .*missing\.csv",
        str(tmp_path): r"--data: expected 'digits' or a file that ends in",
        str(tmp_path / "table.txt"): r"--data: expected 'digits' or a file that ends in .csv, .tsv, .* or .npz",
        str(tmp_path / "no.npz"): r"not a readable .npz file",
    }
    for source, message in cases.items():
        with pytest.raises(TrainingError, match=message):
            load(source, "classification", None if source.endswith("npz") else "y")
    with pytest.raises(TrainingError, match=r"--target is for a table with named columns, but --data is 'digits'"):
        load("digits", "classification", "y")


def test_fingerprint_depends_on_every_value(tmp_path: Path) -> None:
    samples, labels = np.arange(24.0).reshape(12, 2), np.arange(12) % 2
    seen = set()
    for feature, label in ((0, 0), (1, 0), (0, 1)):
        samples[11, 1], labels[0] = feature, label
        np.savez(tmp_path / "t.npz", X=samples, y=labels)
        seen |= {fingerprint(tmp_path / "t.npz") for _ in range(2)}
    assert len(seen) == 3


def test_split_holds_out_a_fifth_by_the_seed() -> None:
    table = load("digits", "classification")
    first, again, other = split(table, 3, "float32"), split(table, 3, "float32"), split(table, 4, "float32")
    assert (first.train.samples, first.test.samples) == (1438, 359)
    np.testing.assert_array_equal(first.test.targets, again.test.targets)
    np.testing.assert_array_equal(first.train.features, again.train.features)
    assert not np.array_equal(first.test.targets, other.test.targets)
    back = np.concatenate([first.train.features, first.test.features]) * first.standardization.scale
    assert isinstance(table.features, np.ndarray)
    counts = np.unique(np.round(back + first.standardization.mean), axis=0, return_counts=True)
    for found, expected in zip(counts, np.unique(table.features, axis=0, return_counts=True), strict=True):
        np.testing.assert_array_equal(found, expected)  # no row is lost or doubled


def test_standardization_uses_columns_unless_they_share_a_unit() -> None:
    features = np.array([[0.0, 10, 7], [2, 30, 7]])
    numbers = np.array([5.0, 9.0])
    by_column = Standardization.fit(features, numbers, one_unit=False)
    np.testing.assert_array_equal(by_column.mean, [1, 20, 7])
    np.testing.assert_array_equal(by_column.scale, [1, 10, 1])
    assert (by_column.target_mean, by_column.target_scale) == (7, 2)
    together = Standardization.fit(features, np.array([0, 1]), one_unit=True)
    np.testing.assert_array_equal(together.mean, np.full(3, features.mean()))
    np.testing.assert_array_equal(together.scale, np.full(3, features.std()))
    assert (together.target_mean, together.target_scale) == (0, 1)
    rows = by_column.apply(features, numbers, "float32")
    np.testing.assert_array_equal(rows.features, [[-1, -1, 0], [1, 1, 0]])
    np.testing.assert_array_equal(rows.targets, [-1, 1])
    assert rows.features.dtype == rows.targets.dtype == np.float32


@pytest.mark.parametrize("constant", [0.1, 14.62, 1 / 3, -1e25, -1e300, 5e-324])
@pytest.mark.parametrize("one_unit", [False, True])
def test_what_varies_less_than_rounding_is_constant(constant: float, one_unit: bool) -> None:
    rows = 1437
    numbers = np.full(rows, constant)
    numbers[::3] = np.nextafter(constant, np.inf)
    standardization = Standardization.fit(numbers[:, None], numbers, one_unit)
    learned = standardization.apply(numbers[:, None], numbers, "float64")
    held_out = standardization.apply(np.array([[constant + 1.0]]), np.array([constant + 1.0]), "float64")
    if abs(constant) < 1e15:
        assert standardization.scale == standardization.target_scale == 1
        assert abs(held_out.features.item()) == pytest.approx(1, rel=1e-9)
        assert np.abs(learned.features).max() < 1e-9
    else:  # where 1 is less than rounding
        for values in (*learned, *held_out):
            assert np.abs(values).max() <= 1


def test_what_varies_more_than_rounding_is_not() -> None:
    numbers = 1e6 + np.arange(1000) * 1e-9
    standardization = Standardization.fit(numbers[:, None], numbers, one_unit=False)
    assert standardization.scale.item() == pytest.approx(numbers.std())
    assert standardization.target_scale == pytest.approx(numbers.std())


def test_numbers_whose_variance_overflows_are_refused() -> None:
    numbers = np.array([-1e200, 1e200] * 6)
    for features, targets in ((numbers[:, None], np.arange(12)), (np.ones((12, 1)), numbers)):
        with pytest.raises(TrainingError, match=r"numbers of up to 1e\+200: their variance is too large"):
            Standardization.fit(features, targets, one_unit=False)


@pytest.fixture
def batches() -> ShuffledBatches:
    rows = Batch(np.arange(20.0).reshape(10, 2), np.arange(10))
    return ShuffledBatches(rows, 4, seed=5)


def taken(batches: ShuffledBatches, start: int, count: int) -> list[list[int]]:
    return [batch.targets.tolist() for batch in islice(batches.from_step(start), count)]


def test_every_epoch_visits_every_row_in_a_new_order(batches: ShuffledBatches) -> None:
    assert batches.steps_per_epoch == 3
    epochs = [taken(batches, 3 * epoch, 3) for epoch in range(4)]
    for epoch in epochs:
        assert [len(batch) for batch in epoch] == [4, 4, 2]
        assert sorted(row for batch in epoch for row in batch) == list(range(10))
    assert len({str(epoch) for epoch in epochs}) == 4


def test_batches_depend_on_the_step_alone(batches: ShuffledBatches) -> None:
    all_batches = taken(batches, 0, 12)
    for start in range(12):
        assert taken(batches, start, 12 - start) == all_batches[start:]


def test_rows_keep_their_targets(batches: ShuffledBatches) -> None:
    for batch in islice(batches.from_step(0), 6):
        np.testing.assert_array_equal(batch.features[:, 0], 2 * batch.targets)


@pytest.mark.parametrize("size", [64, "full"])
def test_batch_larger_than_the_data_takes_all_of_it(size: Any) -> None:
    batches = ShuffledBatches(Batch(np.ones((10, 2)), np.arange(10)), size, seed=0)
    assert (batches.batch_size, batches.steps_per_epoch) == (10, 1)
    assert sorted(taken(batches, 0, 1)[0]) == list(range(10))


@pytest.mark.parametrize(
    ("accumulate", "sizes"), [(2, [[3, 3], [3, 3], [1]]), (3, [[3, 3, 3], [2, 2]]), (99, [[3, 3, 3, 2, 2]])]
)
def test_batches_that_are_added_up(accumulate: int, sizes: list[list[int]]) -> None:
    """A step has the rows that it had as one batch; cut evenly, as each batch counts the same in their mean."""
    rows = Batch(np.arange(26.0).reshape(13, 2), np.arange(13))
    batches, whole = ShuffledBatches(rows, 3, 5, accumulate), ShuffledBatches(rows, 3 * accumulate, 5)
    assert batches.steps_per_epoch == whole.steps_per_epoch == len(sizes)
    assert taken(batches, 1, 7) == taken(whole, 1, 7)
    for batch, expected in zip(islice(batches.from_step(0), len(sizes)), sizes, strict=True):
        pieces = batch.pieces(batches.batch_size)
        assert sorted((len(piece.targets) for piece in pieces), reverse=True) == expected
        for part, parts in zip(batch, zip(*pieces, strict=True), strict=True):
            np.testing.assert_array_equal(np.concatenate(parts), part)
