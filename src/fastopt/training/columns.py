"""What is made of the columns of a table: numbers, out of texts, dates, kinds and missing cells.

:func:`recognise` finds out what a column is from all of its cells; :meth:`Column.fit` learns from the training rows
what stands for its missing cells and which kinds it has; :meth:`Column.encode` makes features of any table's cells.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fastopt.training.errors import TrainingError
from fastopt.training.tables import SHOWN, RawTable

Array = NDArray[Any]
Kind = Literal["number", "boolean", "date", "time", "category"]

MISSING = ("", "na", "n/a", "#n/a", "<na>", "nan", "-nan", "null")
"""How missing cells are spelled in any column, whatever the case."""

PLACEHOLDERS = ("?", "-", "--", ".", "none")
"""What stands for a missing cell as well where all others are numbers, dates or the like."""

MOST_KINDS = 20
"""Kinds of a column that get a feature each: the commonest. The others share one."""

LEAST_COVERED = 0.5
"""The part of its cells that the commonest kinds of a column must cover; below, it looks like an identifier."""

MOSTLY = 0.9
"""The part of its cells that are numbers where a column is taken to be of numbers, with mistakes in it."""

FEW_NUMBERS = 10
"""Where there are no more different numbers than this beside other texts, as in 0, 1, 2, 3+, they are kinds."""

SAME = "always the same"
"""What is said of a column that has one value: it is left out, unless cells are missing, which may tell something."""

COUNTED_ROWS = 10
"""Rows from which on a column that grows by one in each is said to count them."""

YES_AND_NO = (("true", "false"), ("yes", "no"), ("y", "n"), ("t", "f"))

MOST_SPELLINGS = 32  # of yes and no: five letters, each large or small

_DATES = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%d-%m-%Y", "%d %b %Y", "%b %d, %Y", "%d-%b-%Y")
_CLOCKS = ("", " %H:%M", " %H:%M:%S%.f", "T%H:%M", "T%H:%M:%S%.f", " %H:%M:%S%.f%#z", "T%H:%M:%S%.f%#z")
DATES = tuple(date + clock for date, clock in product(_DATES, _CLOCKS))
TIMES = ("%H:%M", "%H:%M:%S%.f")
LONGEST_SHOWN = 40  # characters of a cell in a message
TRIED_CELLS = 200  # formats that these do not have are not tried on all

DECIMAL_COMMA = r"^[+-]?(\d+|\d{1,3}(\.\d{3})+)(,\d*)?([eE][+-]?\d+)?$"
THOUSANDS = r"^[+-]?\d{1,3}(,\d{3})*(\.\d*)?$"


@dataclass(frozen=True)
class Column:
    """What a column is and what was learned of it: all that new tables are read by.

    Attributes
    ----------
    name : str
        Its name.
    kind : {"number", "boolean", "date", "time", "category"}
        What its cells are.
    form : str
        How they are written, where that may differ: the format of dates and times, ``"1.234,5"`` or ``"1,234.5"`` of
        numbers.
    median : float
        What takes the place of a missing cell; 0 for categories.
    has_missing : bool
        Whether cells were missing in the training rows: then a feature tells where.
    kinds : tuple of str
        The kinds of a category that have a feature each.
    has_other : bool
        Whether there were further kinds: then they share a feature.
    """

    name: str
    kind: Kind
    form: str = ""
    median: float = 0.0
    has_missing: bool = False
    kinds: tuple[str, ...] = ()
    has_other: bool = False

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Column":
        """Return the column that :func:`dataclasses.asdict` was taken of."""
        return cls(**{**facts, "kinds": tuple(facts["kinds"])})

    @property
    def features(self) -> list[str]:
        """The names of the features that are made of it."""
        if self.kind == "category":
            names = [f"{self.name} = {kind}" for kind in self.kinds] + [f"{self.name}: other"] * self.has_other
        else:
            names = [self.name]
        return names + [f"{self.name}: missing"] * self.has_missing

    @property
    def flags(self) -> list[bool]:
        """Which of the features are 0 or 1 for no and yes."""
        return [self.kind == "category" or number > 0 for number in range(len(self.features))]

    def fit(self, cells: "Cells", is_kept: bool) -> "Column":
        """Return the column with what the cells of the training rows teach."""
        has_missing = bool(cells.missing.any())
        if self.kind != "category":
            known = cells.values[~cells.missing]
            return replace(self, median=float(np.median(known)) if len(known) else 0.0, has_missing=has_missing)
        counts = pl.Series(cells.values).drop_nulls().value_counts().rows()
        ordered = sorted(counts, key=lambda pair: (-pair[1], pair[0]))
        kinds = tuple(kind for kind, count in ordered[:MOST_KINDS] if count > 1 or is_kept)
        return replace(self, kinds=kinds, has_missing=has_missing, has_other=len(kinds) < len(ordered))

    def encode(self, cells: "Cells", out: Array) -> int:
        """Write the features of cells, shape (rows, features); return how many cells were of a kind never seen."""
        *_, last = range(len(self.features))
        unknown = 0
        if self.kind == "category":
            known = np.zeros(len(out), bool)
            for number, kind in enumerate(self.kinds):
                out[:, number] = is_kind = (cells.values == kind).fill_null(False).to_numpy()
                known |= is_kind
            others = ~known & ~cells.missing
            if self.has_other:
                out[:, len(self.kinds)] = others
            else:
                unknown = int(others.sum())
        else:
            np.copyto(out[:, 0], np.where(cells.missing, self.median, cells.values))
        if self.has_missing:
            out[:, last] = cells.missing
        return unknown


@dataclass(frozen=True)
class Cells:
    """The cells of a column of one table.

    Attributes
    ----------
    values : ndarray or polars.Series
        Numbers in float64; of a category texts.
    missing : ndarray of bool
        Where there is none.
    """

    values: Any
    missing: Array

    def rows(self, chosen: Array) -> "Cells":
        """Return some of the rows, by their numbers."""
        values = self.values.gather(chosen) if isinstance(self.values, pl.Series) else self.values[chosen]
        return Cells(values, self.missing[chosen])


@dataclass(frozen=True)
class Finding:
    """What a column of a table was found to be.

    Attributes
    ----------
    column : Column or None
        How it is taken; None if it is left out.
    cells : Cells or None
        Its cells, read that way.
    missing : int
        How many are not there.
    kinds : int
        How many different ones there are.
    note : str
        What people should know of it.
    fault : str
        Why it can neither be used nor left out without a word from the user; mostly empty.
    """

    column: Column | None
    cells: Cells | None
    missing: int
    kinds: int
    note: str = ""
    fault: str = ""


def recognise(raw: RawTable, name: str, is_kept: bool = False) -> Finding:
    """Find out what a column is, and whether there is anything to learn from it.

    Parameters
    ----------
    raw : RawTable
        The table.
    name : str
        The column.
    is_kept : bool
        Whether it is to be used even if it looks like an identifier or like numbers with mistakes in them.
    """
    finding = _read(raw, name, is_kept)
    if finding.kinds == 1 and not finding.missing and not finding.fault and not is_kept:
        return replace(finding, column=None, cells=None)
    return finding


def _read(raw: RawTable, name: str, is_kept: bool) -> Finding:
    series = raw.frame[name]
    if series.dtype != pl.String:
        return _typed(raw, Column(name, _kind_of(series)), series) if _kind_of(series) else _unfit(series)
    texts = known_texts(series)
    different = texts.drop_nulls().unique()
    if not len(different):
        return Finding(None, None, len(texts), 0, "all missing")
    missing = int(texts.null_count())
    for column in _candidates(raw, name, different):
        return _typed(raw, column, series)
    numbers = int(texts.cast(pl.Float64, strict=False).is_not_null().sum())
    all_known = len(texts) - missing
    note = f"{numbers:,} of {all_known:,} are numbers" if numbers else SAME * (len(different) == 1)
    if numbers >= MOSTLY * all_known and not is_kept:
        wrong = different.cast(pl.Float64, strict=False).is_null()
        if len(different) - wrong.sum() > FEW_NUMBERS:
            places = _places(raw, texts, texts.is_in(different.filter(wrong).implode()).fill_null(False))
            fault = f"{all_known - numbers:,} of {all_known:,} cells are no numbers: {places}"
            return Finding(None, None, missing, len(different), fault=fault)
    covered = texts.drop_nulls().value_counts()["count"].sort(descending=True)[:MOST_KINDS]
    if covered.filter(covered > 1).sum() < LEAST_COVERED * all_known and not is_kept:
        note = f"{len(different):,} different texts, looks like an identifier; --keep {name} uses it"
        return Finding(None, None, missing, len(different), note)
    return Finding(Column(name, "category"), Cells(texts, texts.is_null().to_numpy()), missing, len(different), note)


def read_cells(raw: RawTable, column: Column) -> Cells:
    """Return the cells of a column that is known, out of another table.

    Raises
    ------
    TrainingError
        If some are not of its kind.
    """
    series = raw.frame[column.name]
    if column.kind == "category":
        texts = known_texts(series.cast(pl.String))
        return Cells(texts, texts.is_null().to_numpy())
    finding = _typed(raw, column, series)
    if finding.fault:
        raise TrainingError(f"{column.name}: {finding.fault}")
    if finding.cells is None:  # all missing, or no rows
        return Cells(np.zeros(len(series)), np.ones(len(series), dtype=bool))
    return finding.cells


def encode(columns: Collection[Column], cells: Collection[Cells], rows: int) -> tuple[Array, dict[str, int]]:
    """Return the features of a table, float64, and the number of cells of unknown kinds by the name of their column."""
    features = np.zeros((rows, sum(len(column.features) for column in columns)))
    unknown, start = {}, 0
    for column, its_cells in zip(columns, cells, strict=True):
        end = start + len(column.features)
        count = column.encode(its_cells, features[:, start:end])
        if count:
            unknown[column.name] = count
        start = end
    return features, unknown


def known_texts(series: pl.Series, missing: Collection[str] = MISSING) -> pl.Series:
    """Return texts without the space around them, null for what spells a missing cell."""
    texts = series.str.strip_chars()
    is_short = texts.str.len_bytes() <= max(map(len, missing))  # a glance that spares most cells a closer look
    spellings = texts.filter(is_short).unique()
    absent = spellings.filter(spellings.str.to_lowercase().is_in(missing))
    return texts.set(texts.is_in(absent.implode()), None) if len(absent) else texts


def _kind_of(series: pl.Series) -> Any:
    """Return the kind of a column that has a type; None if there is no use for it."""
    kind = series.dtype
    if kind.is_numeric() or kind == pl.Null:
        return "number"
    if kind == pl.Boolean:
        return "boolean"
    if kind in (pl.Date, pl.Datetime):
        return "date"
    if kind in (pl.Time, pl.Duration):
        return "time"
    return "category" if kind in (pl.Categorical, pl.Enum) else None


def _unfit(series: pl.Series) -> Finding:
    return Finding(None, None, int(series.null_count()), 0, fault=f"its type is {series.dtype}")


def _candidates(raw: RawTable, name: str, different: pl.Series) -> Iterator[Column]:
    """Yield what a column of texts can be, except a category, going by its different cells."""
    plain = known_texts(different, PLACEHOLDERS).drop_nulls()
    if not len(plain):
        return
    if len(plain) <= MOST_SPELLINGS and any(set(plain.str.to_lowercase()) <= set(pair) for pair in YES_AND_NO):
        yield Column(name, "boolean")
    commas = ("1,234.5", "1.234,5") if raw.separator == "," else ("1.234,5", "1,234.5")
    forms: list[tuple[Kind, str]] = [("number", form) for form in ("", *commas)]
    forms += [("date", form) for form in DATES] + [("time", form) for form in TIMES]
    few = plain.head(TRIED_CELLS)
    for kind, form in forms:
        column = Column(name, kind, form)
        if not any(_values(column, cells).null_count() for cells in (few, plain)):
            yield column


def _typed(raw: RawTable, column: Column, series: pl.Series) -> Finding:
    """Read cells as what their column is."""
    if series.dtype == pl.String:
        known = known_texts(series, (*MISSING, *PLACEHOLDERS))
        values = _values(column, known)
    else:
        known = series
        values = _numbers_of(column, series)
    wrong = known.is_not_null() & values.is_null()
    infinite = values.is_infinite().fill_null(False)
    values = values.fill_nan(None)
    missing = int(values.null_count())
    kinds = int(values.drop_nulls().n_unique())
    for what, is_so in ((f"no {column.kind}s", wrong), ("infinite", infinite)):
        if is_so.any():
            fault = f"{is_so.sum():,} of {len(series):,} cells are {what}: {_places(raw, known, is_so)}"
            return Finding(None, None, missing, kinds, fault=fault)
    if not kinds:
        return Finding(None, None, missing, 0, "all missing")
    cells = Cells(values.fill_null(0.0).to_numpy(), values.is_null().to_numpy())
    note = _note(column, known, kinds)
    if kinds == len(values) >= COUNTED_ROWS and (np.diff(cells.values) == 1).all():
        note = f"counts the rows, as an identifier does; --drop {column.name} leaves it out"
    return Finding(column, cells, missing, kinds, note)


def _note(column: Column, known: pl.Series, kinds: int) -> str:
    notes = [f"written as {column.form}"] if column.form else []
    for first, second in (("%m/%d", "%d/%m"), ("%d/%m", "%m/%d")):
        other = replace(column, form=column.form.replace(first, second))
        if other != column and column.kind == "date" and not _values(other, known.drop_nulls()).null_count():
            notes.append(f"could be {other.form} as well")
    return ", ".join(notes + [SAME] * (kinds == 1))


def _values(column: Column, texts: pl.Series) -> pl.Series:
    """Return texts as numbers; null where they are none."""
    match column.kind:
        case "number":
            pattern = {"1.234,5": DECIMAL_COMMA, "1,234.5": THOUSANDS}.get(column.form)
            if pattern:
                grouping, decimal = column.form[1], column.form[5]
                is_number = texts.str.contains(pattern)
                texts = texts.str.replace_all(re.escape(grouping), "").str.replace(decimal, ".", literal=True)
                texts = texts.set(~is_number, None)
            return texts.cast(pl.Float64, strict=False)
        case "boolean":
            words = texts.str.to_lowercase()
            numbers = {word: number for yes, no in YES_AND_NO for word, number in ((yes, 1.0), (no, 0.0))}
            return words.replace_strict(numbers, default=None, return_dtype=pl.Float64)
        case "time":
            return _numbers_of(column, texts.str.to_time(column.form, strict=False))
        case _:
            return _numbers_of(column, texts.str.to_datetime(column.form, strict=False))


def _numbers_of(column: Column, series: pl.Series) -> pl.Series:
    """Return what has a type as float64: dates in days since 1970, times in hours."""
    if isinstance(series.dtype, pl.Datetime) or series.dtype == pl.Date:
        return series.cast(pl.Datetime("us")).cast(pl.Int64) / 86_400e6
    if series.dtype in (pl.Time, pl.Duration):
        return series.cast(pl.Duration("ns") if series.dtype == pl.Duration else pl.Time).cast(pl.Int64) / 3600e9
    return series.cast(pl.Float64, strict=False)


def _places(raw: RawTable, cells: pl.Series, chosen: pl.Series) -> str:
    rows = np.flatnonzero(chosen.to_numpy())
    shown = ", ".join(f"{_short(cells[int(row)])!r} ({raw.place(row)})" for row in rows[:SHOWN])
    return shown + (", ..." if len(rows) > SHOWN else "")


def _short(cell: Any) -> Any:
    return f"{cell[:LONGEST_SHOWN]}..." if isinstance(cell, str) and len(cell) > LONGEST_SHOWN else cell
