"""A run that was killed or interrupted ends in the same bits as one that was not."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from threadpoolctl import threadpool_info  # type: ignore[import-untyped]

import fastopt
from fastopt.training import loop
from fastopt.training.checkpoint import Checkpoint
from fastopt.training.config import Config
from fastopt.training.data import Batch
from fastopt.training.errors import TrainingError
from fastopt.training.job import Job
from fastopt.training.loop import Model
from fastopt.training.session import CHECKPOINT, run_session

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills and interrupts with POSIX signals")

QUIET = Console(quiet=True)

# The command line with checkpoints so often that a run of a second has many.
COMMAND = """
from fastopt.training import loop
from fastopt.__main__ import main
loop.CHECKPOINT_SECONDS = 0.02
main()
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    samples = generator.normal(size=(203, 6))
    np.savez(tmp_path / "t.npz", X=samples, y=np.argmax(samples[:, :3] + generator.normal(size=(203, 3)), axis=1))
    return tmp_path / "t.npz"


def options(table: Path) -> list[str]:
    return ["--data", str(table), "--hidden", "16", "--batch-size", "10", "--epochs", "300", "--threads", "1"]


def start(out: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COMMAND, "train", "--out", str(out), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return output


def wait_until_it_trains(out: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 30
    while not (out / CHECKPOINT).exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)


def assert_same_bits(out: Path, expected: Path, *files: str) -> None:
    found, reference = (Checkpoint.load(directory / CHECKPOINT) for directory in (out, expected))
    assert found.tensors.keys() == reference.tensors.keys()
    for name, values in reference.tensors.items():
        np.testing.assert_array_equal(found.tensors[name], values)
    assert found.metadata == reference.metadata
    for file in files:
        assert (out / file).read_bytes() == (expected / file).read_bytes()


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path, table: Path) -> None:
    finish(start(tmp_path / "whole", *options(table)))
    out = tmp_path / "killed"
    moments = random.Random(1)
    steps = []
    process = start(out, *options(table))
    for _ in range(8):
        wait_until_it_trains(out, process)
        time.sleep(moments.uniform(0, 0.8))
        process.kill()
        process.communicate()
        steps.append(Checkpoint.load(out / CHECKPOINT).metadata["step"])
        process = start(out, "--resume")
    finish(process)
    assert len(set(steps)) > 1
    assert_same_bits(out, tmp_path / "whole", "metrics.csv", "config.json")
    assert (out / "training.png").read_bytes().startswith(b"\x89PNG")


def test_interrupted_in_the_middle_of_an_epoch(tmp_path: Path, table: Path) -> None:
    finish(start(tmp_path / "whole", *options(table)))
    out = tmp_path / "interrupted"
    process = start(out, *options(table))
    wait_until_it_trains(out, process)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")
    assert f"fastopt train --resume --out {out}" in output
    metadata = Checkpoint.load(out / CHECKPOINT).metadata
    assert f"Stopped after step {metadata['step']:,} of 5,100" in output
    assert 0 < metadata["step"] < 5100
    output = finish(start(out, "--resume"))
    assert f"resumed    after step {metadata['step']:,} of 5,100" in output
    assert_same_bits(out, tmp_path / "whole", "metrics.csv", "config.json")


def new_job(table: Path, optimizer: str = "adamw", task: str = "classification") -> Job:
    return Job(
        Config(
            data=str(table),
            target=None,
            task=task,  # type: ignore[arg-type]
            hidden=(8,),
            optimizer=optimizer,
            lr=0.01,
            schedule="warmup-cosine",
            warmup="3",
            weight_decay=None,
            clip_norm=1.0,
            batch_size=50,
            epochs=3,
            seed=0,
            dtype="float32",
            threads=1,
        )
    )


def run_whole(directory: Path, job: Job) -> Path:
    directory.mkdir()
    assert run_session(job, directory, QUIET)
    return directory


@pytest.mark.parametrize(("optimizer", "task"), [("adamw", "classification"), ("nesterov", "regression")])
def test_interrupted_in_every_step(tmp_path: Path, table: Path, optimizer: str, task: str) -> None:
    whole = run_whole(tmp_path / "whole", new_job(table, optimizer, task))
    out = tmp_path / "stopped"
    out.mkdir()
    job = new_job(table, optimizer, task)
    for step in range(1, job.run.total_steps):
        job.run.model = InterruptedModel(job.run.model)
        assert not run_session(job, out, QUIET)
        job = Job.resume(out / CHECKPOINT, {})
        assert job.run.step == step
    assert run_session(job, out, QUIET)
    assert_same_bits(out, whole, "metrics.csv")


class InterruptedModel:
    """A model with a user who presses Ctrl-C during every step."""

    def __init__(self, model: Model[Batch]) -> None:
        self.parameters, self.gradients, self.seconds = model.parameters, model.gradients, model.seconds
        self.model = model

    def forward_backward(self, batch: Batch) -> float:
        signal.raise_signal(signal.SIGINT)
        return self.model.forward_backward(batch)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("saves", [1, 2, 3])
def test_killed_between_metrics_and_checkpoint(
    tmp_path: Path, table: Path, saves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_whole(tmp_path / "whole", new_job(table))
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    out = tmp_path / "killed"
    out.mkdir()
    job = new_job(table)
    job.checkpoint().save(out / CHECKPOINT)
    left = iter(range(saves))

    def save_or_be_killed(checkpoint: Checkpoint, path: Path) -> None:
        if next(left, None) is None:
            raise Killed
        save(checkpoint, path)

    save = Checkpoint.save
    monkeypatch.setattr(Checkpoint, "save", save_or_be_killed)
    with pytest.raises(Killed):
        run_session(job, out, QUIET)
    monkeypatch.setattr(Checkpoint, "save", save)
    rows = len((out / "metrics.csv").read_text().splitlines()) - 1
    job = Job.resume(out / CHECKPOINT, {})
    assert job.run.step < rows
    assert run_session(job, out, QUIET)
    assert_same_bits(out, whole, "metrics.csv")


def test_resuming_a_complete_run_changes_nothing(tmp_path: Path, table: Path) -> None:
    whole = run_whole(tmp_path / "whole", new_job(table))
    before = {file: (whole / file).read_bytes() for file in (CHECKPOINT, "metrics.csv", "training.png")}
    assert run_session(Job.resume(whole / CHECKPOINT, {}), whole, QUIET)
    assert {file: (whole / file).read_bytes() for file in before} == before


def test_changed_data_is_refused(tmp_path: Path, table: Path) -> None:
    new_job(table).checkpoint().save(tmp_path / CHECKPOINT)
    with np.load(table) as arrays:
        changed = arrays["X"].copy()
        changed[17, 3] += 1e-9
        np.savez(table, X=changed, y=arrays["y"])
    with pytest.raises(TrainingError, match=r"t\.npz has changed since the run was started"):
        Job.resume(tmp_path / CHECKPOINT, {})


def test_contradicting_options_are_refused(tmp_path: Path, table: Path) -> None:
    new_job(table).checkpoint().save(tmp_path / CHECKPOINT)
    assert Job.resume(tmp_path / CHECKPOINT, {"hidden": (8,), "epochs": 3}).run.step == 0
    with pytest.raises(TrainingError, match=r"--hidden 8,8 contradicts the run to resume, which was started with 8"):
        Job.resume(tmp_path / CHECKPOINT, {"epochs": 3, "hidden": (8, 8)})
    with pytest.raises(TrainingError, match=r"--batch-size full contradicts the run .* with 50"):
        Job.resume(tmp_path / CHECKPOINT, {"batch_size": "full"})


@pytest.mark.parametrize(("threads", "expected"), [(None, {"fastopt": 3, "blas": 1}), (2, {"fastopt": 2, "blas": 2})])
def test_threads_while_it_trains(tmp_path: Path, table: Path, threads: int | None, expected: dict[str, int]) -> None:
    seen = {}
    job = Job(replace(new_job(table).config, threads=threads, epochs=1))
    evaluate = job.run.evaluate

    def look_and_evaluate() -> dict[str, float]:
        seen["fastopt"] = fastopt.get_num_threads()
        seen["blas"] = max(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return evaluate()

    job.run.evaluate = look_and_evaluate
    before = fastopt.get_num_threads()
    fastopt.set_num_threads(3)
    try:
        run_session(job, tmp_path, QUIET)
        assert fastopt.get_num_threads() == 3
    finally:
        fastopt.set_num_threads(before)
    assert seen == expected
