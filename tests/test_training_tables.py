"""Tables as they come: what is read, what each column is taken to be, and what is made of it."""

import gzip
from collections.abc import Callable
from dataclasses import asdict
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from fastopt.training.columns import MOST_KINDS, Column, Finding, encode, read_cells, recognise
from fastopt.training.data import Reading, load, split
from fastopt.training.errors import TrainingError
from fastopt.training.tables import RawTable, from_memory, read_table


def written(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_text(text, encoding=encoding, newline="")
    return path


def column_of(*cells: Any, separator: str = ",", is_kept: bool = False) -> Finding:
    return recognise(RawTable("t", pl.DataFrame({"x": list(cells)}), separator), "x", is_kept)


def numbers(finding: Finding) -> list[float | None]:
    assert finding.cells is not None
    pairs = zip(finding.cells.values, finding.cells.missing, strict=True)
    return [None if missing else float(value) for value, missing in pairs]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_quotes_blank_lines_and_separators(tmp_path: Path, separator: str, end: str) -> None:
    lines = ["a, b ,c", '"1,5","say ""hi""\n again",x', "", ",2,", '"",q,"z"']
    text = end.join(line.replace(",", separator) for line in lines)
    raw = read_table(written(tmp_path / "t.csv", "\ufeff" + text))
    assert raw.separator == separator
    assert raw.frame.columns == ["a", "b", "c"]
    assert raw.frame.rows() == [
        (f"1{separator}5", 'say "hi"\n again', "x"),
        ("", "2", ""),
        ("", "q", "z"),
    ]
    assert [raw.place(row) for row in range(3)] == ["line 2", "line 5", "line 6"]


def test_a_separator_that_is_given(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "a,b;c\n1,2;3\n")
    assert read_table(path, ";").frame.columns == ["a,b", "c"]
    assert read_table(path).frame.columns == ["a", "b;c"]


def test_compressed_tables_and_parquet_read_alike(tmp_path: Path) -> None:
    text = "a,b\n1,x\n2,y\n"
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text.encode()))
    frame = read_table(tmp_path / "t.csv.gz").frame
    assert frame.rows() == read_table(written(tmp_path / "t.tsv", text.replace(",", "\t"))).frame.rows()
    frame.write_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").frame.equals(frame)


def test_a_column_without_a_name_gets_its_number(tmp_path: Path) -> None:
    assert read_table(written(tmp_path / "t.csv", ",b\n0,1\n")).frame.columns == ["column 1", "b"]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda path: written(path, "a,b\n1,2\n3\n4,5,6\n7\n8\n"),
            "line 3: 1 cells, line 4: 3 cells.* and 1 more under 2",
        ),
        (lambda path: written(path, 'a,b\n1,"2\n3,4\n'), "a quoted cell does not end"),
        (lambda path: written(path, 'a,b\n1,"2"3\n'), "not a readable table"),
        (lambda path: written(path, "a,b\n1,\xff\n", "latin-1"), "not a readable table in UTF-8"),
        (lambda path: written(path, "a,\xff\n1,2\n", "latin-1"), "not a table in UTF-8"),
        (lambda path: written(path, "\n \n"), "the file is empty"),
        (lambda path: written(path, ""), "the file is empty"),
        (lambda path: written(path.with_suffix(".parquet"), "a,b\n"), "not a readable parquet file"),
        (lambda path: written(path.with_name("t.csv.gz"), "a,b\n"), "not a readable table"),
    ],
)
def test_unreadable_tables_are_told_in_one_line(tmp_path: Path, write: Callable[[Path], Path], message: str) -> None:
    path = write(tmp_path / "t.csv")
    with pytest.raises(TrainingError, match=message) as raised:
        read_table(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("damage", [5, 12, -6, -1])
def test_damaged_archives_are_told(tmp_path: Path, damage: int) -> None:
    whole = bytearray(gzip.compress(b"a,b\n" + b"1,2\n" * 100))
    (tmp_path / "t.csv.gz").write_bytes(whole[:damage])
    with pytest.raises(TrainingError, match="not a readable table"):
        read_table(tmp_path / "t.csv.gz")


@pytest.mark.parametrize(
    ("cells", "kind", "form", "expected"),
    [
        (["1", " 2.5 ", "", "NA", "?", "-3e2"], "number", "", [1, 2.5, None, None, None, -300]),
        (["1,5", "2", "1.234,5", "n/a"], "number", "1.234,5", [1.5, 2, 1234.5, None]),
        (["Yes", "no", "NO", "-"], "boolean", "", [1, 0, 0, None]),
        (["true", "False"], "boolean", "", [1, 0]),
        (["1970-01-02", "1970-02-01", ""], "date", "%Y-%m-%d", [1, 31, None]),
        (["02.01.1970 12:00", "01.01.1970 06:00"], "date", "%d.%m.%Y %H:%M", [1.5, 0.25]),
        (["1970-01-02T00:00:00Z", "1970-01-02T14:00:00+02:00"], "date", "%Y-%m-%dT%H:%M:%S%.f%#z", [1, 1.5]),
        (["01/13/1970", "01/02/1970"], "date", "%m/%d/%Y", [12, 1]),
        (["13/01/1970", "02/01/1970"], "date", "%d/%m/%Y", [12, 1]),
        (["6:30", "18:00"], "time", "%H:%M", [6.5, 18]),
        ([1, None, 3], "number", "", [1, None, 3]),
        ([1.5, float("nan"), 3], "number", "", [1.5, None, 3]),
        ([True, None, False], "boolean", "", [1, None, 0]),
        ([date(1970, 1, 3), None], "date", "", [2, None]),
        ([datetime(1970, 1, 3, 12), None], "date", "", [2.5, None]),
        ([time(6, 30), None], "time", "", [6.5, None]),
    ],
)
def test_what_a_column_is_taken_for(cells: list[Any], kind: str, form: str, expected: list[float | None]) -> None:
    finding = column_of(*cells, separator=";")
    assert finding.column == Column("x", kind, form)  # type: ignore[arg-type]
    assert numbers(finding) == expected
    assert finding.missing == expected.count(None)
    assert finding.kinds == len(set(expected) - {None})


def test_commas_are_thousands_where_they_separate_cells() -> None:
    assert numbers(column_of("1,234", "1,234,567.5", "12")) == [1234, 1234567.5, 12]
    assert numbers(column_of("1,234", "1,5", "12")) == [1.234, 1.5, 12]
    assert numbers(column_of("1,234", "12", separator=";")) == [1.234, 12]


def test_days_that_could_be_months_are_told() -> None:
    assert "could be %d/%m/%Y as well" in column_of("01/02/2020", "03/04/2020").note
    assert "could be" not in column_of("01/02/2020", "03/14/2020").note


def test_few_numbers_beside_other_texts_are_kinds() -> None:
    finding = column_of(*["0", "1", "2", "2", "1", "0", "1", "0", "1", "3+"])
    assert finding.column == Column("x", "category")
    assert finding.note == "9 of 10 are numbers"


def test_mistakes_among_numbers_are_told_unless_all_texts_are_to_be_kinds() -> None:
    cells = [*map(str, range(40)), "many", "x"]
    assert column_of(*cells).fault == "2 of 42 cells are no numbers: 'many' (row 41), 'x' (row 42)"
    assert column_of(*cells, is_kept=True).column == Column("x", "category")


def test_what_looks_like_an_identifier_is_left_out_unless_kept() -> None:
    cells = [f"n{number}" for number in range(100)] + ["n0", "n0"]
    finding = column_of(*cells)
    assert finding.column is None
    assert finding.note == "100 different texts, looks like an identifier; --keep x uses it"
    kept = column_of(*cells, is_kept=True)
    assert kept.column is not None
    assert kept.cells is not None
    learned = kept.column.fit(kept.cells, is_kept=True)
    assert len(learned.kinds) == MOST_KINDS
    assert learned.has_other


def test_a_column_that_counts_the_rows_is_told() -> None:
    assert column_of(*map(str, range(7, 27))).note == "counts the rows, as an identifier does; --drop x leaves it out"
    assert column_of(*map(str, [*range(7, 27), 3])).note == ""


def test_columns_without_use() -> None:
    assert column_of("", "NA").note == "all missing"
    assert column_of(None, None).note == "all missing"
    assert column_of([1], [2]).fault == "its type is List(Int64)"
    for cells in (("3", "3.0"), (3, 3), ("ja", "ja"), ("1.5.2024", "1.5.2024"), ("yes", "Yes")):
        finding = column_of(*cells)
        assert (finding.column, finding.note.split(", ")[-1]) == (None, "always the same")
    assert column_of("3", "", "3").column  # a missing cell may tell something
    assert column_of("7" * 500).fault == f"1 of 1 cells are infinite: '{'7' * 40}...' (row 1)"
    assert column_of("1", "inf", "-inf").fault == "2 of 3 cells are infinite: 'inf' (row 2), '-inf' (row 3)"


def test_what_is_learned_goes_through_json_and_encodes_new_cells() -> None:
    rows = RawTable(
        "t",
        pl.DataFrame(
            {
                "size": ["1,5", "", "2,5", "9"],
                "city": ["Ulm", "Ulm", "", "Bonn"],
                "day": ["1970-01-02", "1970-01-03", "1970-01-04", "1970-01-05"],
            }
        ),
    )
    columns = []
    for name in rows.frame.columns:
        finding = recognise(rows, name)
        assert finding.column is not None
        assert finding.cells is not None
        learned = finding.column.fit(finding.cells.rows(np.array([0, 1, 2, 3])), is_kept=False)
        columns.append(Column.from_json(asdict(learned)))
        assert columns[-1] == learned
    names = [name for column in columns for name in column.features]
    assert names == ["size", "size: missing", "city = Ulm", "city: other", "city: missing", "day"]
    new = from_memory("new", {"day": ["1970-01-01", ""], "city": ["Ulm", "Rom"], "size": ["", "3"], "more": [1, 2]})
    features, unknown = encode(columns, [read_cells(new, column) for column in columns], 2)
    np.testing.assert_array_equal(features, [[2.5, 1, 1, 0, 0, 0], [3, 0, 0, 1, 0, 2.5]])
    assert unknown == {}
    with pytest.raises(TrainingError, match="day: 1 of 1 cells are no dates: 'soon'"):
        read_cells(from_memory("new", {"day": ["soon"]}), columns[2])


def test_medians_and_kinds_come_from_the_training_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    size, city = rng.normal(size=200), rng.choice(["Ulm", "Bonn", "Rom"], 200)
    lines = [f"{'' if i % 7 == 0 else size[i]},{city[i]},{i % 2}" for i in range(200)]
    path = written(tmp_path / "t.csv", "\n".join(["size,city,y", *lines]))
    halves = split(load(str(path), "classification", "y"), 3, "float64")
    number, category = halves.columns
    order = np.random.Generator(
        np.random.Philox(np.random.SeedSequence(3, spawn_key=(0, 0)))  # as the split draws it
    ).permutation(200)
    train = order[40:]
    assert number.median == np.median(size[[row for row in train if row % 7]])
    assert set(category.kinds) == {"Ulm", "Bonn", "Rom"}
    assert set(np.unique(halves.train.features[:, 2:])) == {0.0, 1.0}  # flags are not standardised


def test_columns_are_dropped_and_kept_as_asked(tmp_path: Path) -> None:
    lines = [f"{i},n{i},{i % 3},{i % 2}" for i in range(30)]
    path = str(written(tmp_path / "t.csv", "\n".join(["a,name,b,y", *lines])))

    def names(**reading: Any) -> list[str]:
        return [column.name for column in split(load(path, "classification", "y", Reading(**reading)), 0, "f4").columns]

    assert names() == ["a", "b"]
    assert names(drop=("a",)) == ["b"]
    assert names(keep=("name",)) == ["a", "name", "b"]
    for reading, message in (
        ({"drop": ("c",)}, "--drop: .*no column 'c'"),
        ({"keep": ("c",)}, "--keep: .*no column 'c'"),
        ({"drop": ("y",)}, "--drop: the column 'y' is the target"),
        ({"drop": ("a",), "keep": ("a",)}, "--drop: the column 'a' is to be kept"),
        ({"drop": ("a", "b", "name")}, "no column besides the target"),
    ):
        with pytest.raises(TrainingError, match=message):
            names(**reading)
    with pytest.raises(TrainingError, match="--drop is for a table with named columns, but --data is 'digits'"):
        load("digits", "classification", reading=Reading(drop=("a",)))
