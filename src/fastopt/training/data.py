"""Data to learn from: features and targets out of a table, splitting and standardising."""

import hashlib
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fastopt.training.batches import Batch
from fastopt.training.columns import Column, Finding, encode, known_texts, read_cells, recognise
from fastopt.training.errors import TrainingError
from fastopt.training.randomness import Stream, generator
from fastopt.training.tables import SUFFIXES, RawTable, is_table_file, read_table

Task = Literal["classification", "regression"]
Array = NDArray[Any]

TEST_FRACTION = 0.2
ROUNDING = 16 * np.finfo(np.float64).eps
"""Numbers that differ by no more than this part of the largest are taken to be one number, computed in several ways."""

MINIMUM_ROWS = 10


class Reading(NamedTuple):
    """How to read a table with named columns.

    Attributes
    ----------
    separator : str or None
        What stands between the cells of a text file; None finds out.
    drop : tuple of str
        Columns that are left out.
    keep : tuple of str
        Columns that are used although they look like identifiers, or like numbers with mistakes in them.
    """

    separator: str | None = None
    drop: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()


AS_FOUND = Reading()


@dataclass(frozen=True)
class Columns:
    """The columns of a table, with what was found of each.

    Attributes
    ----------
    target : Column
        What is predicted.
    unlabelled : int
        Rows without it, which are left out.
    findings : dict of str to Finding
        The other columns, those that are dropped aside.
    reading : Reading
        How they were read.
    """

    target: Column
    unlabelled: int
    findings: dict[str, Finding]
    reading: Reading

    @property
    def left_out(self) -> list[str]:
        """The names of columns that are not used."""
        return [*self.reading.drop, *(name for name, finding in self.findings.items() if not finding.column)]

    def encode(self, train: Array) -> tuple[Array, tuple[Column, ...]]:
        """Return the features of all rows, and the columns with what the training rows teach."""
        used = [
            (finding.column, finding.cells) for finding in self.findings.values() if finding.column and finding.cells
        ]
        columns = tuple(column.fit(cells.rows(train), column.name in self.reading.keep) for column, cells in used)
        cells = [cells for _, cells in used]
        features, _ = encode(columns, cells, len(cells[0].missing))
        return features, columns


@dataclass(frozen=True)
class Table:
    """Rows of features, each with a target.

    Attributes
    ----------
    name : str
        What to call the data in messages.
    features : ndarray, shape (rows, columns), float64, or Columns
        Numbers that are all finite; or columns to make such of.
    targets : ndarray, shape (rows,)
        The index of the class as int64, or the number to predict as float64.
    classes : tuple of str
        The names of the classes; empty for regression.
    one_unit : bool
        Whether all features are in one unit, as the pixels of an image are: they are then standardised by one mean and
        one scale.
    """

    name: str
    features: Array | Columns
    targets: Array
    classes: tuple[str, ...]
    one_unit: bool = False


def load(source: str, task: Task, target: str | None = None, reading: Reading = AS_FOUND) -> Table:
    """Read a table.

    Parameters
    ----------
    source : str
        ``"digits"`` (the handwritten digits of scikit-learn), a file of :func:`fastopt.training.tables.read_table`, or
        an ``.npz`` file with the arrays ``X`` and ``y``. An ``X`` with more than two dimensions holds images or the
        like: each row is flattened, and all its values are taken to be in one unit.
    task : {"classification", "regression"}
        Whether the targets are classes (any values) or numbers.
    target : str, optional
        The column to predict; only for a file with named columns, which needs it.
    reading : Reading, optional
        How to read such a file.

    Raises
    ------
    TrainingError
        If the file cannot be read or its content cannot be learned from; the message says where the fault is.
    """
    path = Path(source)
    if source != "digits" and not (is_table_file(path) or path.suffix.lower() == ".npz"):
        expected = f"{', '.join(SUFFIXES)} or .npz"
        raise TrainingError(f"--data: expected 'digits' or a file that ends in {expected}, got {source!r}")
    if not is_table_file(path):
        given = {"target": target, **reading._asdict()}
        for name in [name for name, value in given.items() if value]:
            raise TrainingError(f"--{name} is for a table with named columns, but --data is {source!r}")
    if source != "digits" and not path.is_file():
        raise TrainingError(f"--data: no such file: {source}")
    if is_table_file(path):
        return _load_columns(path, task, target, reading)
    samples, labels = _digits() if source == "digits" else read_npz(path)
    _check_rows(source, len(samples))
    features = np.ascontiguousarray(samples.reshape(len(samples), -1), np.float64)
    targets: Array
    classes: tuple[str, ...]
    if task == "regression":
        targets, classes = _numbers(source, labels), ()
    else:
        targets, classes = _classes(source, *np.unique(labels, return_inverse=True))
    return Table(path.name, features, targets, classes, one_unit=samples.ndim > 2)


def _load_columns(path: Path, task: Task, target: str | None, reading: Reading) -> Table:
    raw = read_table(path, reading.separator)
    names = raw.frame.columns
    listed = ", ".join(names)
    if target is None:
        raise TrainingError(f"--target NAME is needed for a table; the columns are {listed}")
    for option, wanted in (("target", (target,)), ("drop", reading.drop), ("keep", reading.keep)):
        for name in wanted:
            if name not in names:
                raise TrainingError(f"--{option}: {path}: no column {name!r}; the columns are {listed}")
    for name in reading.drop:
        if name == target or name in reading.keep:
            raise TrainingError(f"--drop: the column {name!r} is {'the target' if name == target else 'to be kept'}")
    others = [name for name in names if name != target and name not in reading.drop]
    if not others:
        raise TrainingError(f"{path}: there is no column besides the target {target!r}")
    rows = len(raw.frame)
    raw, targets, classes, target_column = (_numbers_of if task == "regression" else _classes_of)(raw, target)
    findings = {name: recognise(raw, name, name in reading.keep) for name in others}
    faults = [f"{name}: {finding.fault}" for name, finding in findings.items() if finding.fault]
    if faults:
        raise TrainingError(
            f"{path}: {len(faults)} of {len(names)} columns cannot be used as they are; mend them, leave them out "
            "(--drop NAME,...), or take every text as a kind (--keep NAME,...)",
            faults,
        )
    if not any(finding.column for finding in findings.values()):
        raise TrainingError(
            f"{path}: no column besides the target {target!r} can be learned from",
            [f"{name}: {finding.note}" for name, finding in findings.items()],
        )
    columns = Columns(target_column, rows - len(targets), findings, reading)
    return Table(path.name, columns, targets, classes)


def _numbers_of(raw: RawTable, target: str) -> tuple[RawTable, Array, tuple[str, ...], Column]:
    """Return the rows with a target, and the targets as numbers."""
    finding = recognise(raw, target, is_kept=True)
    if finding.column is None or finding.cells is None or finding.column.kind == "category":
        try:
            read_cells(raw, Column(target, "number"))
            reason = f"{target}: {finding.note}"
        except TrainingError as error:
            reason = error.message
        raise TrainingError(f"{raw.source}: regression needs numeric targets, but {reason}")
    known = ~finding.cells.missing
    _check_rows(raw.source, int(known.sum()))
    numbers = _numbers(raw.source, finding.cells.values[known])
    return raw.rows(known), numbers, (), finding.column


def _classes_of(raw: RawTable, target: str) -> tuple[RawTable, Array, tuple[str, ...], Column]:
    """Return the rows with a target, and the targets as classes."""
    labels = raw.frame[target]
    kind = labels.dtype
    if kind == pl.String:
        labels = known_texts(labels)
    elif kind in (pl.Categorical, pl.Enum):
        labels = labels.cast(pl.String)
    elif kind.is_float():
        labels = labels.fill_nan(None)
    elif not (kind.is_integer() or kind == pl.Boolean):
        raise TrainingError(f"{raw.source}: the target {target!r} has the type {kind}, which has no classes")
    known = labels.is_not_null()
    labels = labels.filter(known)
    _check_rows(raw.source, len(labels))
    codes = labels.rank("dense").to_numpy().astype(np.int64) - 1
    different = labels.unique().sort()
    texts = labels.dtype == pl.String
    targets, classes = _classes(raw.source, np.array(different.to_list(), str if texts else None), codes)
    return raw.rows(known.to_numpy()), targets, classes, Column(target, "category", kinds=classes)


def _check_rows(source: str, rows: int) -> None:
    if rows < MINIMUM_ROWS:
        raise TrainingError(f"{source}: needs at least {MINIMUM_ROWS} rows to learn and to test, has {rows}")


def _digits() -> tuple[Array, Array]:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    digits = load_digits()
    return digits.images, digits.target


def read_npz(path: Path, needs_labels: bool = True) -> tuple[Array, Array]:
    """Return the arrays ``X`` and ``y`` of a file; where it needs no labels, zeros may stand for them."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = list(archive)
            arrays = [archive[name] for name in ("X", "y") if name in found]
    except Exception as error:  # a damaged archive leads zipfile, zlib and NumPy into errors of any type
        raise TrainingError(f"{path}: not a readable .npz file of plain arrays ({error})") from error
    if not needs_labels and "X" in found:
        arrays = [arrays[0], np.zeros(arrays[0].shape[:1])]
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


def _number(text: str) -> float | None:
    """Return the number that a text spells, None if it spells none: to Python 1_100 is one, in a table it is not."""
    try:
        return float(text) if text.strip().isascii() and "_" not in text else None
    except ValueError:
        return None


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
    unknown = np.flatnonzero(~np.isfinite(numbers))
    if len(unknown):
        _refuse_target(source, unknown[0], numbers[unknown[0]])
    if np.ptp(numbers) == 0:
        raise TrainingError(f"{source}: every target is {numbers[0]:g}: there is nothing to learn")
    return numbers


def _classes(source: str, different: Array, codes: Array) -> tuple[Array, tuple[str, ...]]:
    """Return the index of each row's class, and the names of the classes.

    Parameters
    ----------
    source : str
        What to call the data.
    different : ndarray
        The different labels, sorted.
    codes : ndarray of int
        Which of them each row has.
    """
    if different.dtype.kind == "U":
        values = [as_number(label) for label in different.tolist()]
        unknown = np.array([isinstance(value, Decimal) and not value.is_finite() for value in values])
        names = _shortest_spellings(different.tolist(), values)
    else:
        unknown = ~np.isfinite(different)
        names = different
    for code in np.flatnonzero(unknown):
        _refuse_target(source, np.flatnonzero(codes == code)[0], different[code])
    classes, positions = np.unique(names, return_inverse=True)
    if len(classes) == 1:
        raise TrainingError(f"{source}: every row is of the class {classes[0]}: there is nothing to learn")
    if 2 * len(classes) > len(codes):
        raise TrainingError(
            f"{source}: {len(classes)} different targets in {len(codes)} rows are too many for classes; "
            "for numbers use --task regression"
        )
    return positions[codes].astype(np.int64), tuple(str(name) for name in classes)


def _refuse_target(source: str, row: int, label: Any) -> NoReturn:
    """Refuse a target that is not finite: it stands for a missing one."""
    raise TrainingError(f"{source}: the target of data row {row + 1} is {label}; fill or drop it")


def _shortest_spellings(labels: list[str], values: list[Decimal | str]) -> Array:
    """Return texts such that equal numbers among them, as 1 and 1.0, have one spelling, the shortest."""
    shortest: dict[Decimal | str, str] = {}
    for label, value in sorted(zip(labels, values, strict=True), key=lambda pair: (len(pair[0]), pair[0])):
        shortest.setdefault(value, label)
    return np.array([shortest[value] for value in values], str)


def as_number(label: str) -> Decimal | str:
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
    def fit(cls, features: Array, targets: Array, one_unit: bool, flags: Array | None = None) -> "Standardization":
        """Measure the statistics of the training rows: of each column, or of all together if they have one unit.

        Columns that are `flags`, 0 or 1, stay so: a rare one would become large.

        Raises
        ------
        TrainingError
            If the numbers are so large that their mean or their variance overflows.
        """
        mean, scale = (
            np.broadcast_to(statistic, features.shape[1:]).copy()
            for statistic in _mean_and_scale(features, None if one_unit else 0)
        )
        if flags is not None and len(flags):
            mean[flags], scale[flags] = 0.0, 1.0
        is_number = targets.dtype.kind == "f"
        target_mean, target_scale = _mean_and_scale(targets, None) if is_number else (0, 1)
        return cls(mean, scale, float(target_mean), float(target_scale))

    def apply(self, features: Array, targets: Array, dtype: str) -> Batch:
        """Scale rows and give them the precision of the model; classes keep their integers."""
        scaled = features - self.mean
        scaled /= self.scale
        if targets.dtype.kind == "f":
            targets = ((targets - self.target_mean) / self.target_scale).astype(dtype)
        return Batch(scaled.astype(dtype, copy=False), targets)


def _mean_and_scale(values: Array, axis: int | None) -> tuple[Any, Any]:
    """Return the mean and the standard deviation, or 1 for what is constant.

    Of a constant that is no binary fraction, as 0.1, the mean is rounded, and the deviation from that is not zero but
    noise: what varies by no more than that is constant too. Of a large one the noise is large, and is the scale.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        mean, scale = np.mean(values, axis=axis), np.std(values, axis=axis)
        noise = ROUNDING * np.abs(values).max(axis=axis)
        is_constant = np.ptp(values, axis=axis) <= noise
    scale = np.where(is_constant | (scale == 0), np.maximum(1.0, noise), scale)  # the square of what is tiny can be 0
    if not (np.isfinite(mean) & np.isfinite(scale)).all():
        raise TrainingError(
            f"the data has numbers of up to {np.abs(values).max():.3g}: their variance is too large to be computed"
        )
    return mean, scale


@dataclass(frozen=True)
class Split:
    """A table cut into rows to learn from and rows held out.

    Attributes
    ----------
    train, test : Batch
        Standardised.
    standardization : Standardization
        By the statistics of the training rows.
    classes : tuple of str
        The names of the classes; empty for regression.
    name : str
        What to call the data in messages.
    fingerprint : str
        SHA-256 of features, targets and classes: a resumed run must see the same data.
    columns : tuple of Column
        What the features are made of; empty where they were given as they are.
    found : Columns or None
        All columns of the table, as they were found.
    """

    train: Batch
    test: Batch
    standardization: Standardization
    classes: tuple[str, ...]
    name: str = ""
    fingerprint: str = ""
    columns: tuple[Column, ...] = ()
    found: Columns | None = None


def split(table: Table, seed: int, dtype: str) -> Split:
    """Hold out a random fifth of the rows; encode and standardise all by the others.

    Parameters
    ----------
    table : Table
        All rows.
    seed : int
        Decides which rows are held out.
    dtype : {"float32", "float64"}
        The precision of the standardised values.
    """
    order = generator(seed, Stream.SPLIT).permutation(len(table.targets))
    held_out = round(TEST_FRACTION * len(order))
    test, train = order[:held_out], order[held_out:]
    found = table.features if isinstance(table.features, Columns) else None
    features, columns = found.encode(train) if found else (table.features, ())
    assert isinstance(features, np.ndarray)
    flags = np.array([flag for column in columns for flag in column.flags], bool)
    known = features[train]
    standardization = Standardization.fit(known, table.targets[train], table.one_unit, flags)
    return Split(
        standardization.apply(known, table.targets[train], dtype),
        standardization.apply(features[test], table.targets[test], dtype),
        standardization,
        table.classes,
        table.name,
        _fingerprint(features, table.targets, table.classes),
        columns,
        found,
    )


def _fingerprint(features: Array, targets: Array, classes: tuple[str, ...]) -> str:
    digest = hashlib.sha256(repr((features.shape, classes)).encode())
    for values in (features, targets):
        digest.update(values.data)
    return digest.hexdigest()
