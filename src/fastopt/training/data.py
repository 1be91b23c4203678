"""Tables of numbers: reading, checking, splitting, standardising, and the order of the batches."""

import csv
import hashlib
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastopt.training.errors import TrainingError
from fastopt.training.randomness import Stream, generator

Task = Literal["classification", "regression"]
Array = NDArray[Any]

TEST_FRACTION = 0.2
ROUNDING = 16 * np.finfo(np.float64).eps
"""Numbers that differ by no more than this part of the largest are taken to be one number, computed in several ways."""

MINIMUM_ROWS = 10


@dataclass(frozen=True)
class Table:
    """Rows of numeric features, each with a target.

    Attributes
    ----------
    name : str
        What to call the data in messages.
    features : ndarray, shape (rows, columns), float64
        All values are finite.
    targets : ndarray, shape (rows,)
        The index of the class as int64, or the number to predict as float64.
    classes : tuple of str
        The names of the classes; empty for regression.
    one_unit : bool
        Whether all features are in one unit, as the pixels of an image are: they are then standardised by one mean and
        one scale.
    """

    name: str
    features: Array
    targets: Array
    classes: tuple[str, ...]
    one_unit: bool = False

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of features and targets: a resumed run must see the same data."""
        digest = hashlib.sha256(repr((self.features.shape, self.classes)).encode())
        for values in (self.features, self.targets):
            digest.update(values.data)
        return digest.hexdigest()


def load(source: str, task: Task, target: str | None = None) -> Table:
    """Read a table.

    Parameters
    ----------
    source : str
        ``"digits"`` (the handwritten digits of scikit-learn), a ``.csv`` file with a header and numeric columns, or an
        ``.npz`` file with the arrays ``X`` and ``y``. An ``X`` with more than two dimensions holds images or the like:
        each row is flattened, and all its values are taken to be in one unit.
    task : {"classification", "regression"}
        Whether the targets are classes (any values) or numbers.
    target : str, optional
        The column of the CSV file to predict; only for CSV files, which need it.

    Raises
    ------
    TrainingError
        If the file cannot be read or its content cannot be learned from; the message says where the fault is.
    """
    path = Path(source)
    is_csv = path.suffix.lower() == ".csv"
    if target is not None and not is_csv:
        raise TrainingError(f"--target names a column of a CSV file, but --data is {source!r}")
    if source == "digits":
        samples, labels = _digits()
    elif path.suffix.lower() not in (".csv", ".npz"):
        raise TrainingError(f"--data: expected 'digits' or a file that ends in .npz or .csv, got {source!r}")
    elif not path.is_file():
        raise TrainingError(f"--data: no such file: {source}")
    elif is_csv:
        samples, labels = _read_csv(path, target)
    else:
        samples, labels = _read_npz(path)
    if len(samples) < MINIMUM_ROWS:
        raise TrainingError(f"{source}: needs at least {MINIMUM_ROWS} rows to learn and to test, has {len(samples)}")
    features = np.ascontiguousarray(samples.reshape(len(samples), -1), np.float64)
    targets, classes = (_numbers(source, labels), ()) if task == "regression" else _classes(source, labels)
    return Table(path.name, features, targets, classes, one_unit=samples.ndim > 2)


def _digits() -> tuple[Array, Array]:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    digits = load_digits()
    return digits.images, digits.target


def _read_npz(path: Path) -> tuple[Array, Array]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = list(archive)
            arrays = [archive[name] for name in ("X", "y") if name in found]
    except Exception as error:  # a damaged archive leads zipfile, zlib and NumPy into errors of any type
        raise TrainingError(f"{path}: not a readable .npz file of plain arrays ({error})") from error
    if len(arrays) < 2:
        raise TrainingError(f"{path}: expected the arrays 'X' and 'y', found {', '.join(found) or 'none'}")
    samples, labels = arrays
    if samples.ndim < 2 or samples.dtype.kind not in "buif":
        raise TrainingError(f"{path}: X must be numeric with 2 or more dimensions, is {samples.dtype} {samples.shape}")
    if 0 in samples.shape[1:]:
        raise TrainingError(f"{path}: X has no features, its shape is {samples.shape}")
    if labels.shape != samples.shape[:1]:
        raise TrainingError(
            f"{path}: y must have the shape {samples.shape[:1]} to fit X {samples.shape}, has {labels.shape}"
        )
    if labels.dtype.kind not in "buifUS":
        raise TrainingError(f"{path}: y must be real numbers or texts, is {labels.dtype}")
    if labels.dtype.kind == "S":
        labels = np.array([label.decode(errors="replace") for label in labels.tolist()], str)
    with np.errstate(over="ignore"):  # of a long double: what has become infinite is told
        samples = samples.astype(np.float64)
    if not np.isfinite(samples).all():
        position = tuple(np.argwhere(~np.isfinite(samples))[0].tolist())
        raise TrainingError(f"{path}: X{list(position)} is {samples[position]}; fill or drop it")
    return samples, labels


def _read_csv(path: Path, target: str | None) -> tuple[Array, Array]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _parse_csv(path, csv.reader(file, strict=True), target)
    except (UnicodeDecodeError, csv.Error) as error:
        raise TrainingError(f"{path}: not a readable CSV file in UTF-8 ({error})") from error


def _parse_csv(path: Path, reader: Any, target: str | None) -> tuple[Array, Array]:
    header = [name.strip() for name in next(reader, [])]
    if target is None or target not in header:
        problem = "--target NAME is needed for a CSV file" if target is None else f"{path}: no column {target!r}"
        raise TrainingError(f"{problem}; the columns are {', '.join(header) or 'none: the file is empty'}")
    if len(header) < 2:
        raise TrainingError(f"{path}: there is no column besides the target {target!r}")
    for name in header:
        if header.count(name) > 1:
            raise TrainingError(f"{path}: {header.count(name)} columns have the name {name!r}")
    position = header.index(target)
    names = header[:position] + header[position + 1 :]
    values, labels = array("d"), []
    for cells in reader:
        if not cells:  # a blank line
            continue
        if len(cells) != len(header):
            raise TrainingError(f"{path}, line {reader.line_num}: {len(cells)} cells under {len(header)} columns")
        labels.append(cells.pop(position).strip())
        values.extend(_finite(path, reader.line_num, name, cell) for name, cell in zip(names, cells, strict=True))
        if not labels[-1]:
            raise TrainingError(f"{path}, line {reader.line_num}, column {target!r}: the target is missing")
    return np.frombuffer(values).reshape(len(labels), len(names)), np.array(labels, str)


def _number(text: str) -> float | None:
    """Return the number that a text spells, None if it spells none: to Python 1_100 is one, in a table it is not."""
    try:
        return float(text) if text.strip().isascii() and "_" not in text else None
    except ValueError:
        return None


def _finite(path: Path, line: int, column: str, cell: str) -> float:
    text = cell.strip()
    value = _number(text)
    if value is None:
        found = f"{cell!r} is not a number" if text else "the value is missing"
        raise TrainingError(f"{path}, line {line}, column {column!r}: {found}")
    if not math.isfinite(value):
        raise TrainingError(f"{path}, line {line}, column {column!r}: {text} is not finite; fill or drop it")
    return value


def _numbers(source: str, labels: Array) -> Array:
    if labels.dtype.kind == "U":
        found = [_number(label) for label in labels.tolist()]
        if None in found:
            row = found.index(None)
            raise TrainingError(
                f"{source}: regression needs numeric targets, but that of data row {row + 1} is {str(labels[row])!r}"
            )
        labels = np.array(found, np.float64)
    numbers = np.ascontiguousarray(labels, np.float64)
    _check_known(source, numbers)
    if np.ptp(numbers) == 0:
        raise TrainingError(f"{source}: every target is {numbers[0]:g}: there is nothing to learn")
    return numbers


def _classes(source: str, labels: Array) -> tuple[Array, tuple[str, ...]]:
    if labels.dtype.kind == "U":
        labels = _spelled_alike(source, labels)
    elif labels.dtype.kind == "f":
        _check_known(source, labels)
    classes, targets = np.unique(labels, return_inverse=True)
    if len(classes) == 1:
        raise TrainingError(f"{source}: every row is of the class {classes[0]}: there is nothing to learn")
    if 2 * len(classes) > len(labels):
        raise TrainingError(
            f"{source}: {len(classes)} different targets in {len(labels)} rows are too many for classes; "
            "for numbers use --task regression"
        )
    return targets.astype(np.int64), tuple(str(name) for name in classes)


def _check_known(source: str, numbers: Array) -> None:
    """Refuse targets that are not finite: they stand for missing ones."""
    unknown = np.flatnonzero(~np.isfinite(numbers))
    if len(unknown):
        row = unknown[0]
        raise TrainingError(f"{source}: the target of data row {row + 1} is {numbers[row]}; fill or drop it")


def _spelled_alike(source: str, labels: Array) -> Array:
    """Return texts such that equal numbers among them, as 1 and 1.0, have one spelling, the shortest."""
    values = {label: _decimal(label) for label in dict.fromkeys(labels.tolist())}
    for row, label in enumerate(labels.tolist()):
        value = values[label]
        if isinstance(value, Decimal) and not value.is_finite():
            raise TrainingError(f"{source}: the target of data row {row + 1} is {label}; fill or drop it")
    shortest: dict[Decimal | str, str] = {}
    for label in sorted(values, key=lambda label: (len(label), label)):
        shortest.setdefault(values[label], label)
    return np.array([shortest[values[label]] for label in labels.tolist()], str)


def _decimal(label: str) -> Decimal | str:
    """Return the number that a label spells, else the label."""
    try:  # not as a float: long numbers that identify something may differ only after its last digit
        return label if _number(label) is None else Decimal(label.strip())
    except InvalidOperation:  # its exponent is beyond all limits
        return label


@dataclass(frozen=True)
class Standardization:
    """The scaling of features (and, for regression, of targets) to mean 0 and standard deviation 1.

    Attributes
    ----------
    mean, scale : ndarray, shape (columns,), float64
        A feature becomes ``(feature - mean) / scale``. A column that is constant in the training rows has scale 1.
    target_mean, target_scale : float
        The same for the target, in its own units; 0 and 1 for classes.
    """

    mean: Array
    scale: Array
    target_mean: float
    target_scale: float

    @classmethod
    def fit(cls, features: Array, targets: Array, one_unit: bool) -> "Standardization":
        """Measure the statistics of the training rows: of each column, or of all together if they have one unit.

        Raises
        ------
        TrainingError
            If the numbers are so large that their mean or their variance overflows.
        """
        mean, scale = (
            np.broadcast_to(statistic, features.shape[1:]).copy()
            for statistic in _mean_and_scale(features, None if one_unit else 0)
        )
        is_number = targets.dtype.kind == "f"
        target_mean, target_scale = _mean_and_scale(targets, None) if is_number else (0, 1)
        return cls(mean, scale, float(target_mean), float(target_scale))

    def apply(self, features: Array, targets: Array, dtype: str) -> "Batch":
        """Scale rows and give them the precision of the model; classes keep their integers."""
        scaled = ((features - self.mean) / self.scale).astype(dtype)
        if targets.dtype.kind == "f":
            targets = ((targets - self.target_mean) / self.target_scale).astype(dtype)
        return Batch(scaled, targets)


def _mean_and_scale(values: Array, axis: int | None) -> tuple[Any, Any]:
    """Return the mean and the standard deviation, or 1 for what is constant.

    Of a constant that is no binary fraction, as 0.1, the mean is rounded, and the deviation from that is not zero but
    noise: what varies by no more than that is constant too.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        mean, scale = np.mean(values, axis=axis), np.std(values, axis=axis)
        is_constant = np.ptp(values, axis=axis) <= ROUNDING * np.abs(values).max(axis=axis)
    scale = np.where(is_constant | (scale == 0), 1.0, scale)  # the square of what is tiny can be 0 as well
    if not (np.isfinite(mean) & np.isfinite(scale)).all():
        raise TrainingError(
            f"the data has numbers of up to {np.abs(values).max():.3g}: their variance is too large to be computed"
        )
    return mean, scale


class Batch(NamedTuple):
    """Rows of what is known, with what is to be predicted: a target for a row of a table, many for a piece of text."""

    features: Array
    targets: Array

    @property
    def samples(self) -> int:
        """Number of targets."""
        return self.targets.size


class Split(NamedTuple):
    """A table cut into rows to learn from and rows held out."""

    train: Batch
    test: Batch
    standardization: Standardization


def split(table: Table, seed: int, dtype: str) -> Split:
    """Hold out a random fifth of the rows and standardise all by the statistics of the others.

    Parameters
    ----------
    table : Table
        All rows.
    seed : int
        Decides which rows are held out.
    dtype : {"float32", "float64"}
        The precision of the standardised values.
    """
    order = generator(seed, Stream.SPLIT).permutation(len(table.features))
    held_out = round(TEST_FRACTION * len(order))
    test, train = order[:held_out], order[held_out:]
    standardization = Standardization.fit(table.features[train], table.targets[train], table.one_unit)
    return Split(
        standardization.apply(table.features[train], table.targets[train], dtype),
        standardization.apply(table.features[test], table.targets[test], dtype),
        standardization,
    )


class ShuffledBatches:
    """The batches of every step: a pure function of the seed and the number of the step.

    Each epoch visits all rows once in a new order. The last batch of an epoch is short when the batch size does not
    divide the rows.

    Parameters
    ----------
    rows : Batch
        The training rows.
    batch_size : int
        Rows in a batch; a size above the number of rows takes them all.
    seed : int
        Decides the order.
    """

    def __init__(self, rows: Batch, batch_size: int, seed: int) -> None:
        self.batch_size = min(batch_size, len(rows.targets))
        self.steps_per_epoch = -(-len(rows.targets) // self.batch_size)
        self._rows = rows
        self._seed = seed
        self._buffer = Batch(*(np.empty((self.batch_size, *values.shape[1:]), values.dtype) for values in rows))

    def from_step(self, step: int) -> Iterator[Batch]:
        """Yield the batch of `step`, of the step after it, and so on without end.

        The arrays are overwritten by the next batch.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        while True:
            order = generator(self._seed, Stream.ORDER, epoch).permutation(len(self._rows.targets))
            for start in range(position * self.batch_size, len(order), self.batch_size):
                yield self._gather(order[start : start + self.batch_size])
            epoch, position = epoch + 1, 0

    def _gather(self, indices: Array) -> Batch:
        batch = Batch(*(buffer[: len(indices)] for buffer in self._buffer))
        for source, destination in zip(self._rows, batch, strict=True):
            np.take(source, indices, axis=0, out=destination, mode="clip")  # "raise" would copy through a temporary
        return batch
