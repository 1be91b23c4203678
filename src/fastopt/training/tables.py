"""Tables as they come: files with separators, parquet, and tables in memory, all read into columns."""

import csv
import gzip
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fastopt.training.errors import TrainingError

SEPARATORS = ",;\t|"
SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet")
SHOWN = 3  # places of a fault that are named; the others are counted


@dataclass(frozen=True)
class RawTable:
    """The columns of a table before anything is made of them.

    Attributes
    ----------
    source : str
        What to call it in messages.
    frame : polars.DataFrame
        Columns of text from a file with separators, of any type from elsewhere.
    separator : str
        What stands between the cells of the file; empty if it is no such file.
    lines : ndarray or None
        The line of the file that each row begins in.
    """

    source: str
    frame: pl.DataFrame
    separator: str = ""
    lines: NDArray[Any] | None = None

    def place(self, row: int) -> str:
        """Return where a row is, to be found by people."""
        return f"row {row + 1}" if self.lines is None else f"line {self.lines[row]}"

    def rows(self, chosen: NDArray[Any]) -> "RawTable":
        """Return the rows for which a mask is true."""
        lines = None if self.lines is None else self.lines[chosen]
        return RawTable(self.source, self.frame.filter(pl.Series(chosen)), self.separator, lines)


def is_table_file(path: Path) -> bool:
    """Whether a file is read by :func:`read_table`, going by its name."""
    return path.name.lower().endswith(SUFFIXES)


def read_table(path: Path, separator: str | None = None) -> RawTable:
    """Read a file.

    Parameters
    ----------
    path : Path
        Ends in ``.csv``, ``.tsv`` (both also with ``.gz``) or ``.parquet``. The first line names the columns.
    separator : str, optional
        What stands between the cells. None: that of comma, semicolon, tab and bar which the first line has most of.

    Raises
    ------
    TrainingError
        If it cannot be read, rows have too many or too few cells, or columns share a name.
    """
    if path.name.lower().endswith(".parquet"):
        if separator is not None:
            raise TrainingError(f"--separator is for text files, but {path} is one of parquet")
        try:
            raw = RawTable(str(path), pl.read_parquet(path, glob=False))
        except (pl.exceptions.PolarsError, OSError) as error:
            raise TrainingError(f"{path}: not a readable parquet file ({_first_line(error)})") from error
    else:
        raw = _read_separated(path, separator)
    if raw.frame.width == 0:
        raise TrainingError(f"{path}: there are no columns: the file is empty")
    return raw


def from_memory(source: str, table: Any) -> RawTable:
    """Return a table from memory: a frame of polars or pandas, a mapping of columns, or rows of numbers.

    Rows of numbers get the columns ``"0"``, ``"1"`` and so on.
    """
    if isinstance(table, pl.DataFrame):
        return RawTable(source, table)
    if isinstance(table, Mapping):
        columns = dict(table)
    elif hasattr(table, "columns"):
        columns = {name: table[name] for name in table.columns}
    else:
        rows = np.asarray(table)
        if rows.ndim < 2:
            raise TrainingError(f"{source}: expected a frame, a mapping of columns or rows of numbers, got {table!r}")
        columns = {str(number): column for number, column in enumerate(rows.reshape(len(rows), -1).T)}
    return RawTable(source, pl.DataFrame({str(name): _series(values) for name, values in columns.items()}))


def _series(values: Any) -> pl.Series:
    array = np.asarray(values)
    if array.dtype.kind in "biufM":
        return pl.Series(array)
    return pl.Series([None if cell is None else cell for cell in array.tolist()], strict=False)


def _read_separated(path: Path, separator: str | None) -> RawTable:
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".gz":
            content = gzip.decompress(content)
        content = content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
        starts, ends, outside = _lines(path, content)
        first = next((line for line, end in enumerate(ends) if content[starts[line] : end].strip()), None)
        if first is None:
            raise TrainingError(f"{path}: there are no columns: the file is empty")
        heading = content[starts[first] : ends[first]].decode("utf-8")
        separator = separator or _likeliest_separator(heading)
        names = _names(path, next(csv.reader([heading], delimiter=separator, strict=True)))
        is_row, number = _rows(path, content, separator, len(names), starts, ends, outside, first + 1)
        frame = pl.DataFrame(schema=(schema := dict.fromkeys(names, pl.String)))
        if is_row.any():
            start = int(is_row.argmax())
            body = content[starts[start] :]
            frame = pl.read_csv(body, has_header=False, separator=separator, schema=schema, empty_string_is_null=False)
            if len(frame) == len(is_row) - start:  # blank lines are rows to the reader
                frame = frame.filter(pl.Series(is_row[start:]))
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path}: not a table in UTF-8 ({error})") from error
    except (csv.Error, EOFError, zlib.error, gzip.BadGzipFile, pl.exceptions.PolarsError) as error:
        raise TrainingError(f"{path}: not a readable table in UTF-8 ({_first_line(error)})") from error
    lines = number[is_row]
    if len(frame) != len(lines):
        raise TrainingError(f"{path}: not a readable table ({len(frame)} rows in {len(lines)} lines)")
    return RawTable(str(path), frame, separator, lines)


def _lines(path: Path, content: bytes) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    """Return where each line begins and ends, quoted ends of lines aside, and which bytes are outside of quotes."""
    data = np.frombuffer(content, np.uint8)
    is_end, outside = data == ord("\n"), None
    if b'"' in content:
        outside = np.bitwise_xor.accumulate(data == ord('"')) == 0
        if not outside[-1]:
            raise TrainingError(f"{path}: a quoted cell does not end")
        is_end &= outside
    ends = np.flatnonzero(is_end)
    if len(content) and content[-1:] != b"\n":
        ends = np.append(ends, len(content))
    return np.concatenate([[0], ends[:-1] + 1])[: len(ends)], ends, outside


def _likeliest_separator(heading: str) -> str:
    unquoted = "".join(heading.split('"')[::2])
    return max(SEPARATORS, key=unquoted.count)


def _names(path: Path, cells: Sequence[str]) -> list[str]:
    """Return the names of the columns; one without gets its number as a name."""
    names = [cell.strip() or f"column {number}" for number, cell in enumerate(cells, start=1)]
    for name in names:
        if names.count(name) > 1:
            raise TrainingError(f"{path}: {names.count(name)} columns have the name {name!r}")
    return names


def _rows(
    path: Path,
    content: bytes,
    separator: str,
    columns: int,
    starts: NDArray[Any],
    ends: NDArray[Any],
    outside: NDArray[Any] | None,
    first: int,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return which lines are rows of the table, and the numbers of the lines; refuse rows with too few or many cells.

    The reader itself would fill short rows with missing cells, and not say where long ones are.
    """
    data = np.frombuffer(content, np.uint8)
    is_separator = data == ord(separator)
    if outside is not None:
        is_separator &= outside
    separators = np.flatnonzero(is_separator)
    cells = np.searchsorted(separators, ends) - np.searchsorted(separators, starts) + 1
    is_row = (starts < ends) | (columns == 1)  # a blank line is a missing cell where there is one column
    is_row[:first] = False
    number = np.arange(len(starts)) + 1
    if outside is not None:  # lines of the file, those within quotes included
        number = np.searchsorted(np.flatnonzero(data == ord("\n")), starts) + 1
    wrong = np.flatnonzero(is_row & (cells != columns))
    if len(wrong):
        shown = ", ".join(f"line {number[line]}: {cells[line]} cells" for line in wrong[:SHOWN])
        more = f", and {len(wrong) - SHOWN:,} more" if len(wrong) > SHOWN else ""
        raise TrainingError(f"{path}, {shown}{more} under {columns} columns")
    return is_row, number


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
