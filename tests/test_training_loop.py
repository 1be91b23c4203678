"""The loop with a model that is no perceptron; the table of metrics."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pytest

import fastopt
from fastopt.training import loop
from fastopt.training.errors import TrainingError
from fastopt.training.loop import Run, train
from fastopt.training.metrics import MetricsLog, StepRecord, read_metrics


@dataclass
class Target:
    """A batch of two samples: a number to approach."""

    value: float
    samples: int = 2

    def pieces(self, most: int) -> list["Target"]:
        return [self]


class Targets:
    batch_size = 2
    steps_per_epoch = 3

    def from_step(self, step: int) -> Iterator[Target]:
        return (Target(float(number)) for number in count(step))


class Point:
    """One number, pulled to the target of the batch."""

    def __init__(self) -> None:
        self.parameters = {"x": np.zeros(1)}
        self.gradients = {"x": np.zeros(1)}
        self.seconds = {"thinking": 0.0}
        self.seen: list[float] = []

    def forward_backward(self, batch: Target) -> float:
        self.seen.append(batch.value)
        self.seconds["thinking"] += 2.0
        self.gradients["x"][:] = self.parameters["x"] - batch.value
        return 0.5 * self.gradients["x"].item() ** 2


def new_run(step: int = 0) -> Run[Target]:
    model = Point()
    optimizer = fastopt.SGD(model.parameters, lr=0.5, clip_norm=1.0, nonfinite="raise")
    return Run(
        model,
        Targets(),
        lambda pieces: optimizer.step(model.gradients),
        lambda: {"x": model.parameters["x"].item()},
        total_steps=8,
        step=step,
    )


def train_quietly(run: Run[Target], stop_after: int = 8) -> tuple[list[StepRecord], list[int]]:
    records: list[StepRecord] = []
    saved: list[int] = []
    train(
        run,
        observe=records.append,
        save=lambda: saved.append(run.step),
        should_stop=lambda: run.step == stop_after,
    )
    return records, saved


def test_records_of_a_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    run = new_run()
    records, saved = train_quietly(run)
    assert run.is_complete
    assert (run.new_steps, run.new_samples) == (8, 16)
    assert run.step_seconds == 16 + run.optimizer_seconds > 16
    assert isinstance(run.model, Point)
    assert run.model.seen == [float(step) for step in range(8)]
    assert [record.step for record in records] == list(range(1, 9))
    assert [record.epoch for record in records] == [1, 1, 1, 2, 2, 2, 3, 3]
    assert [bool(record.scores) for record in records] == [False, False, True] * 2 + [False, False]
    assert [record.loss for record in records[:3]] == pytest.approx([0, 0.5, 1.125], rel=1e-5)
    assert [record.grad_norm for record in records[:3]] == pytest.approx([0, 1, 1.5], rel=1e-5)
    assert {record.lr for record in records} == {0.5}
    assert saved == [0, 3, 6, 8]  # at the start, after each epoch, at the end


def test_epochs_shorter_than_a_second_share_a_checkpoint() -> None:
    _, saved = train_quietly(new_run())
    assert saved == [0, 8]


def test_long_epoch_has_checkpoints_within(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS_WITHIN_EPOCH", -1.0)
    _, saved = train_quietly(new_run())
    assert saved == [0, 1, 2, 4, 5, 7, 8]  # the epochs end with 3 and 6, less than a second after the start


def test_norm_that_the_optimizer_was_not_asked_for_is_nan() -> None:
    run = new_run()
    assert isinstance(run.model, Point)
    optimizer, gradients = fastopt.SGD(run.model.parameters, lr=0.5), run.model.gradients
    run.update = lambda pieces: optimizer.step(gradients)
    records, _ = train_quietly(run)
    assert len(records) == 8
    assert all(np.isnan(record.grad_norm) for record in records)


def test_stops_where_asked_and_continues_there() -> None:
    run = new_run()
    records, saved = train_quietly(run, stop_after=4)
    assert (run.step, run.is_complete, saved) == (4, False, [0, 4])
    more, saved = train_quietly(run)
    assert saved == [4, 8]
    assert records + more == train_quietly(new_run())[0]


def test_complete_run_takes_no_step() -> None:
    run = new_run(step=8)
    records, saved = train_quietly(run)
    assert (records, saved, run.new_steps) == ([], [8], 0)


def test_divergence_is_an_error_before_the_parameters_are_touched() -> None:
    run = new_run()
    assert isinstance(run.model, Point)
    run.model.parameters["x"][:] = np.inf
    with pytest.raises(TrainingError, match=r"the training diverged at step 1 .*; try a lower --lr"):
        train_quietly(run)
    assert run.step == 0


def record(step: int, **scores: float) -> StepRecord:
    return StepRecord(step, 1 + (step - 1) // 2, 1 / step, 0.1 * step, step / 7, scores)


def test_metrics_keep_every_digit(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "m.csv", ["loss", "r2"], steps=0) as log:
        log.append(record(1))
        log.append(record(2, loss=2 / 3, r2=-0.1))
    assert (tmp_path / "m.csv").read_text().splitlines()[0] == "step,epoch,loss,lr,grad_norm,test_loss,test_r2"
    columns = read_metrics(tmp_path / "m.csv")
    np.testing.assert_array_equal(columns["step"], [1, 2])
    np.testing.assert_array_equal(columns["grad_norm"], [1 / 7, 2 / 7])
    np.testing.assert_array_equal(columns["test_loss"], [np.nan, 2 / 3])


def test_metrics_after_the_checkpoint_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    with MetricsLog(path, ["loss"], steps=0) as log:
        for step in range(1, 6):
            log.append(record(step))
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] + b"\0")  # a kill in the middle of a row
    with MetricsLog(path, ["loss"], steps=3) as log:
        log.append(record(4))
        log.append(record(5))
    assert path.read_bytes() == whole
    with MetricsLog(path, ["loss"], steps=0):
        pass
    assert path.read_text().splitlines() == ["step,epoch,loss,lr,grad_norm,test_loss"]
    assert len(read_metrics(path)["step"]) == 0


def written(path: Path, steps: range) -> bytes:
    with MetricsLog(path, ["loss"], steps=0) as log:
        for step in steps:
            log.append(record(step))
    return path.read_bytes()


def test_a_table_that_was_removed_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    for steps in (3, 5):
        with MetricsLog(path, ["loss"], steps=steps) as log:
            log.append(record(steps + 1))
            log.append(record(steps + 2))
    np.testing.assert_array_equal(read_metrics(path)["step"], [4, 5, 6, 7])


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"step,epoch", b"step,stage", "line 1: expected step,epoch,loss,lr,grad_norm,test_loss"),
        (b"\n2,1,", b"\n2,one,", "line 3: could not convert string to float: 'one'"),
        (b"\n2,1,", b"\n2,1,1,", "line 3: not the 6 cells of the step after that of line 2"),
        (b"\n2,1,", b"\n7,1,", "line 3: not the 6 cells of the step after that of line 2"),
        (b"\n2,1,", b"\n\xff\xfe,1,", "line 3: invalid literal for int"),
        (b"\n2,1,", b"\n\0,1,", "line 3: invalid literal for int"),
        (b"\n2,1,", b"\n\n2,1,", "line 3: list index out of range"),
        (b"\n2,1,", b"\n" + b"2" * 200_000 + b",1,", "field larger than field limit"),
        (b"\n4,", b"\n", "line 5: not the 6 cells"),
    ],
)
def test_damaged_tables_are_told_and_left_alone(tmp_path: Path, old: bytes, new: bytes, reason: str) -> None:
    path = tmp_path / "m.csv"
    damaged = written(path, range(1, 6)).replace(b"\r\n", b"\n").replace(old, new)
    path.write_bytes(damaged)
    with pytest.raises(TrainingError, match=rf"m\.csv is damaged \({re.escape(reason)}.*\): mend it, or remove it"):
        MetricsLog(path, ["loss"], steps=4)
    assert path.read_bytes() == damaged


def test_rows_that_are_missing_are_told(tmp_path: Path) -> None:
    written(tmp_path / "m.csv", range(1, 6))
    with pytest.raises(TrainingError, match=r"m\.csv is damaged \(the row of step 9 is missing\)"):
        MetricsLog(tmp_path / "m.csv", ["loss"], steps=9)
