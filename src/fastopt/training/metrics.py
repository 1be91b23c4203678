"""The table ``metrics.csv``: a row for every step."""

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from fastopt.files import replacing
from fastopt.training.errors import TrainingError

STEP_COLUMNS = ("step", "epoch", "loss", "lr", "grad_norm")
TEST_PREFIX = "test_"


class StepRecord(NamedTuple):
    """What is known of a step.

    Attributes
    ----------
    step, epoch : int
        Counted from 1.
    loss : float
        Mean over the batch, before the step.
    lr : float
        Learning rate of the step.
    grad_norm : float
        Euclidean norm of the gradient before clipping; NaN if the optimizer was not asked for it.
    scores : dict of str to float
        Held-out scores after the last step of an epoch, else empty.
    """

    step: int
    epoch: int
    loss: float
    lr: float
    grad_norm: float
    scores: dict[str, float]


class MetricsLog:
    """Appends rows to the table, after dropping those of steps that a resumed run will take again.

    Parameters
    ----------
    path : Path
        The file; made if it does not exist.
    scores : sequence of str
        Names of the held-out scores.
    steps : int
        The number of steps whose rows are kept. Where there is no file, the table begins with the step after them.

    Raises
    ------
    TrainingError
        If a row of those steps is missing or damaged; nothing has been written then.
    """

    def __init__(self, path: Path, scores: Sequence[str], steps: int) -> None:
        self._scores = scores
        header = [*STEP_COLUMNS, *(TEST_PREFIX + name for name in scores)]
        rows = _rows_of_steps(path, header, steps)
        with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)

    def append(self, record: StepRecord) -> None:
        """Add the row of a step; it is on the disk after the next :meth:`sync`."""
        scores = (record.scores.get(name, "") for name in self._scores)
        self._writer.writerow([record.step, record.epoch, record.loss, record.lr, record.grad_norm, *scores])

    def sync(self) -> None:
        """Make all rows durable. A checkpoint is written after this, so every step of it has its row."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_metrics(path: Path) -> dict[str, NDArray[Any]]:
    """Return the columns of the table by name, float64; a cell without a value is NaN."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    values = np.array([[float(cell or "nan") for cell in row] for row in rows]).reshape(-1, len(header))
    return dict(zip(header, values.T, strict=True))


def _rows_of_steps(path: Path, header: list[str], steps: int) -> list[list[str]]:
    """Return the rows up to that of a step. What follows them does not matter: a kill may have cut it anywhere."""
    if steps == 0 or not path.exists():
        return []
    try:
        # Bytes that are no text can be in the rows that do not matter; in the others they are no numbers.
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            return _read_up_to(steps, csv.reader(file), header)
    except (ValueError, csv.Error) as error:
        raise TrainingError(
            f"{path} is damaged ({error}): mend it, or remove it to begin a new table after step {steps}"
        ) from error


def _read_up_to(steps: int, rows: Iterator[list[str]], header: list[str]) -> list[list[str]]:
    if next(rows, None) != header:
        raise ValueError(f"line 1: expected {','.join(header)}")
    kept: list[list[str]] = []
    for line, row in enumerate(rows, start=2):
        try:
            step, *_ = int(row[0]), *(float(cell or "nan") for cell in row[1:])
        except (ValueError, IndexError) as error:
            raise ValueError(f"line {line}: {error}") from error
        if not kept and step > steps:  # a table that was begun anew
            return []
        if len(row) != len(header) or (kept and step != int(kept[-1][0]) + 1):
            raise ValueError(f"line {line}: not the {len(header)} cells of the step after that of line {line - 1}")
        kept.append(row)
        if step == steps:
            return kept
    raise ValueError(f"the row of step {steps} is missing")
