"""What is read from tables, what is refused and in which words, and the order of the batches."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from fastopt.training.data import Batch, ShuffledBatches, Standardization, load, split
from fastopt.training.errors import TrainingError

ROWS = [f"{i},{i * i},{'odd' if i % 2 else 'even'}" for i in range(12)]


def write_csv(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def with_row(row: str) -> list[str]:
    return ["a,b,kind", *ROWS[:5], row, *ROWS[6:]]


def test_csv_columns_around_the_target(tmp_path: Path) -> None:
    lines = ["a, kind ,b", "", *(f"{i},{'x' if i < 4 else 'y'}, {i / 2}" for i in range(10))]
    table = load(write_csv(tmp_path / "t.csv", *lines), "classification", "kind")
    np.testing.assert_array_equal(table.features, [[i, i / 2] for i in range(10)])
    np.testing.assert_array_equal(table.targets, [0] * 4 + [1] * 6)
    assert table.targets.dtype == np.int64
    assert table.classes == ("x", "y")


def test_csv_with_numbers_to_predict(tmp_path: Path) -> None:
    table = load(write_csv(tmp_path / "t.csv", "a,b,kind", *ROWS), "classification", "kind")
    assert table.classes == ("even", "odd")
    numbers = load(write_csv(tmp_path / "n.csv", "a,b", *(f"{i},{i * i}" for i in range(12))), "regression", "b")
    np.testing.assert_array_equal(numbers.targets, np.arange(12.0) ** 2)
    assert numbers.classes == ()


@pytest.mark.parametrize(
    ("lines", "target", "message"),
    [
        (["a,b,kind", *ROWS], None, r"--target NAME is needed for a CSV file; the columns are a, b, kind"),
        (["a,b,kind", *ROWS], "sort", r"no column 'sort'; the columns are a, b, kind"),
        ([""], "kind", r"no column 'kind'; the columns are none: the file is empty"),
        (["kind", *"aabbaabbaabb"], "kind", r"no column besides the target 'kind'"),
        (with_row("1,many,odd"), "kind", r"line 7, column 'b': 'many' is not a number"),
        (with_row("1,,odd"), "kind", r"line 7, column 'b': the value is missing"),
        (with_row("nan,1,odd"), "kind", r"line 7, column 'a': nan is not finite"),
        (with_row("1,-inf,odd"), "kind", r"line 7, column 'b': -inf is not finite"),
        (with_row("1,2,"), "kind", r"line 7, column 'kind': the target is missing"),
        (with_row("1,2"), "kind", r"line 7: 2 cells under 3 columns"),
        (with_row('1,"2,odd'), "kind", r"not a readable CSV file in UTF-8"),
        (["a,b,kind", *ROWS[:9]], "kind", r"needs at least 10 rows to learn and to test, has 9"),
        (["a,kind", *(f"{i},same" for i in range(12))], "kind", r"every row is of the class same"),
        (["a,kind", *(f"{i},{i}" for i in range(12))], "kind", r"12 different targets .* --task regression"),
    ],
)
def test_unfit_csv(tmp_path: Path, lines: list[str], target: str | None, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        load(write_csv(tmp_path / "t.csv", *lines), "classification", target)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["high"] * 12, r"regression needs numeric targets"),
        (["3"] * 12, r"every target is 3"),
        ([*"12345678901", "nan"], r"the target of data row 12 is nan"),
    ],
)
def test_unfit_numbers_to_predict(tmp_path: Path, column: list[str], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        load(write_csv(tmp_path / "t.csv", "a,y", *(f"1,{cell}" for cell in column)), "regression", "y")


def test_npz_of_images_is_flattened_and_in_one_unit(tmp_path: Path) -> None:
    images = np.arange(10 * 2 * 3, dtype=np.uint8).reshape(10, 2, 3)
    np.savez(tmp_path / "i.npz", X=images, y=np.arange(10) % 2)
    table = load(str(tmp_path / "i.npz"), "classification")
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
        ({"X": BROKEN, "y": np.arange(12) % 2}, r"X\[3, 1\] is nan"),
        ({"X": np.ones((12, 2)), "y": np.array([np.nan, 1] * 6)}, r"the target of data row 1 is nan"),
        ({"X": np.ones((12, 2)), "y": np.array([None] * 12)}, r"not a readable .npz file of plain arrays"),
    ],
)
def test_unfit_npz(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "t.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=message):
        load(str(tmp_path / "t.npz"), "classification")


def test_unfit_sources(tmp_path: Path) -> None:
    (tmp_path / "no.npz").write_bytes(b"no archive")
    cases = {
        str(tmp_path / "missing.csv"): r"--data: no such file: .*missing\.csv",
        str(tmp_path / "table.txt"): r"--data: expected 'digits' or a file that ends in .npz or .csv",
        str(tmp_path / "no.npz"): r"not a readable .npz file",
    }
    for source, message in cases.items():
        with pytest.raises(TrainingError, match=message):
            load(source, "classification", "y" if source.endswith("csv") else None)
    with pytest.raises(TrainingError, match=r"--target names a column of a CSV file, but --data is 'digits'"):
        load("digits", "classification", "y")


def test_fingerprint_depends_on_every_value(tmp_path: Path) -> None:
    samples, labels = np.arange(24.0).reshape(12, 2), np.arange(12) % 2
    seen = set()
    for feature, label in ((0, 0), (1, 0), (0, 1)):
        samples[11, 1], labels[0] = feature, label
        np.savez(tmp_path / "t.npz", X=samples, y=labels)
        seen |= {load(str(tmp_path / "t.npz"), "classification").fingerprint for _ in range(2)}
    assert len(seen) == 3


def test_split_holds_out_a_fifth_by_the_seed() -> None:
    table = load("digits", "classification")
    first, again, other = split(table, 3, "float32"), split(table, 3, "float32"), split(table, 4, "float32")
    assert (first.train.samples, first.test.samples) == (1438, 359)
    np.testing.assert_array_equal(first.test.targets, again.test.targets)
    np.testing.assert_array_equal(first.train.features, again.train.features)
    assert not np.array_equal(first.test.targets, other.test.targets)
    back = np.concatenate([first.train.features, first.test.features]) * first.standardization.scale
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


def test_batch_larger_than_the_data_takes_all_of_it() -> None:
    batches = ShuffledBatches(Batch(np.ones((10, 2)), np.arange(10)), 64, seed=0)
    assert (batches.batch_size, batches.steps_per_epoch) == (10, 1)
    assert sorted(taken(batches, 0, 1)[0]) == list(range(10))
