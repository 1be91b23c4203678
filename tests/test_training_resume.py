"""A run that was killed or interrupted ends in the same bits as one that was not."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file
from threadpoolctl import threadpool_info  # type: ignore[import-untyped]
from typer.testing import CliRunner

import fastopt
from fastopt.cli import app
from fastopt.training import loop
from fastopt.training.batches import Batch
from fastopt.training.checkpoint import Checkpoint
from fastopt.training.errors import TrainingError
from fastopt.training.job import Job
from fastopt.training.loop import Model
from fastopt.training.prediction import load
from fastopt.training.recipes import configure
from fastopt.training.session import CHECKPOINT, Outcome, run_session

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
    return written_table(tmp_path)


def written_table(directory: Path) -> Path:
    generator = np.random.default_rng(0)
    samples = generator.normal(size=(203, 6))
    np.savez(directory / "t.npz", X=samples, y=np.argmax(samples[:, :3] + generator.normal(size=(203, 3)), axis=1))
    return directory / "t.npz"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "t.txt").write_text("".join(np.random.default_rng(0).choice(list("abcde "), 2000)))
    return tmp_path / "t.txt"


@pytest.fixture
def data(request: pytest.FixtureRequest) -> Path:
    """The table or the text, whichever the test asks for."""
    if request.param == "text":
        pytest.importorskip("torch")
    path: Path = request.getfixturevalue(request.param)
    return path


STEPS = {".npz": 5100, ".txt": 560}


def options(data: Path) -> list[str]:
    if data.suffix == ".txt":
        return [f"--text={data}", "--model=transformer", "--layers=1", "--width=32", "--context=8", "--epochs=10"]
    return [f"--data={data}", "--hidden=16", "--batch-size=10", "--epochs=300", "--threads=1"]


def run_here(out: Path, *arguments: str) -> None:
    result = CliRunner().invoke(app, ["train", "--out", str(out), *arguments])
    assert result.exit_code in (0, 3), result.output  # (so short a training may have learned nothing)


def start(out: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COMMAND, "train", "--out", str(out), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=60)
    assert process.returncode in (0, 3), errors  # (so short a training may have learned nothing)
    return output


def start_and_wait(out: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a run and return when it has saved its first step."""
    path = out / CHECKPOINT
    before = path.stat().st_mtime_ns if path.exists() else None
    process = start(out, *arguments)
    wait_for_save(process, path, before)
    return process


def wait_for_save(process: subprocess.Popen[str], path: Path, before: int | None) -> None:
    """Return when a run has saved another checkpoint than the one of that time."""
    deadline = time.monotonic() + 60
    while not path.exists() or path.stat().st_mtime_ns == before:
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
@pytest.mark.parametrize("data", ["table", "text"], indirect=True)
def test_killed_at_random_moments(tmp_path: Path, data: Path) -> None:
    run_here(tmp_path / "whole", *options(data))
    out = tmp_path / "killed"
    moments = random.Random(1)
    steps = []
    process = start_and_wait(out, *options(data))
    for attempt in range(8):
        if attempt % 3 == 0:  # (a step later at least, however slow the machine is)
            wait_for_save(process, out / CHECKPOINT, (out / CHECKPOINT).stat().st_mtime_ns)
        time.sleep(moments.uniform(0, 0.2))
        process.kill()
        process.communicate()
        steps.append(Checkpoint.load(out / CHECKPOINT).metadata["step"])
        process = start_and_wait(out, "--resume")
    finish(process)
    assert len(set(steps)) > 1
    assert_same_bits(out, tmp_path / "whole", "metrics.csv", "config.json")
    assert (out / "training.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("data", ["table", "text"], indirect=True)
def test_interrupted_in_the_middle_of_an_epoch(tmp_path: Path, data: Path) -> None:
    total = STEPS[data.suffix]
    run_here(tmp_path / "whole", *options(data))
    out = tmp_path / "interrupted"
    process = start_and_wait(out, *options(data))
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")
    assert f"fastopt train --resume --out {out}" in output
    metadata = Checkpoint.load(out / CHECKPOINT).metadata
    assert f"Stopped after step {metadata['step']:,} of {total:,}" in " ".join(output.split()), output
    assert 0 < metadata["step"] < total
    output = finish(start(out, "--resume"))
    assert f"resumed    after step {metadata['step']:,} of {total:,}" in output
    assert_same_bits(out, tmp_path / "whole", "metrics.csv", "config.json")


def new_job(data: Path, optimizer: str = "adamw", task: str = "classification", accumulate: int = 1) -> Job:
    if data.suffix == ".txt":
        sizes = {"layers": 1, "width": 32, "context": 8, "batch_size": 32, "accumulate": accumulate, "epochs": 2}
        return Job(configure("transformer", {"text": str(data), "optimizer": optimizer, **sizes}))
    return Job(
        configure(
            "mlp",
            {
                "data": str(data),
                "task": task,
                "hidden": (8,),
                "optimizer": optimizer,
                "lr": 0.01,
                "warmup": "3",
                "batch_size": 50,
                "accumulate": accumulate,
                "epochs": 3,
                "threads": 1,
            },
        )
    )


def run_whole(directory: Path, job: Job) -> Path:
    directory.mkdir()
    assert run_session(job, directory, QUIET) is not Outcome.STOPPED
    return directory


@pytest.mark.parametrize(
    ("data", "optimizer", "task", "accumulate"),
    [
        ("table", "adamw", "classification", 1),
        ("table", "adamw", "classification", 3),  # of 4 batches in an epoch
        ("table", "nesterov", "regression", 1),
        *(("text", name, "", 1) for name in ("adamw", "nesterov", "torch:adamw", "torch:nesterov")),
        *(("text", name, "", 3) for name in ("adamw", "torch:adamw")),
    ],
    indirect=["data"],
)
def test_interrupted_in_every_step(tmp_path: Path, data: Path, optimizer: str, task: str, accumulate: int) -> None:
    whole = run_whole(tmp_path / "whole", new_job(data, optimizer, task, accumulate))
    out = tmp_path / "stopped"
    out.mkdir()
    job = new_job(data, optimizer, task, accumulate)
    for step in range(1, job.run.total_steps):
        job.run.model = InterruptedModel(job.run.model)
        assert run_session(job, out, QUIET) is Outcome.STOPPED
        job = Job.resume(out / CHECKPOINT, {})
        assert job.run.step == step
    assert run_session(job, out, QUIET) is not Outcome.STOPPED
    assert_same_bits(out, whole, "metrics.csv", *(["sample.txt"] if data.suffix == ".txt" else []))


class InterruptedModel:
    """A model with a user who presses Ctrl-C in its first step."""

    def __init__(self, model: Model[Batch]) -> None:
        self.parameters, self.seconds = model.parameters, model.seconds
        self.model = model
        self.is_interrupted = False

    def forward_backward(self, batch: Batch) -> float:
        if not self.is_interrupted:
            self.is_interrupted = True
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
    assert run_session(job, out, QUIET) is not Outcome.STOPPED
    assert_same_bits(out, whole, "metrics.csv")


@pytest.mark.parametrize("accumulate", [1, 3])
def test_resuming_a_complete_run_changes_nothing(tmp_path: Path, table: Path, accumulate: int) -> None:
    whole = run_whole(tmp_path / "whole", new_job(table, accumulate=accumulate))
    before = {file: (whole / file).read_bytes() for file in (CHECKPOINT, "metrics.csv", "training.png")}
    assert run_session(Job.resume(whole / CHECKPOINT, {}), whole, QUIET) is not Outcome.STOPPED
    assert {file: (whole / file).read_bytes() for file in before} == before


def test_changed_text_is_refused(tmp_path: Path, text: Path) -> None:
    pytest.importorskip("torch")
    new_job(text).checkpoint().save(tmp_path / CHECKPOINT)
    text.write_text(text.read_text()[:-1] + "x")
    with pytest.raises(TrainingError, match=r"t\.txt has changed since the run was started"):
        Job.resume(tmp_path / CHECKPOINT, {})


def test_changed_table_is_refused(tmp_path: Path, table: Path) -> None:
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
    with pytest.raises(TrainingError, match=r"--model transformer contradicts the run .* with mlp"):
        Job.resume(tmp_path / CHECKPOINT, {"model": "transformer", "layers": 2})
    with pytest.raises(TrainingError, match=r"--layers is for --model transformer, but the model is mlp"):
        Job.resume(tmp_path / CHECKPOINT, {"layers": 2})
    with pytest.raises(TrainingError, match=r"--batch-size full contradicts the run .* with 50"):
        Job.resume(tmp_path / CHECKPOINT, {"batch_size": "full"})


@pytest.fixture(scope="module")
def complete_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("complete")
    return run_whole(directory / "run", new_job(written_table(directory)))


@pytest.fixture
def complete(complete_run: Path, tmp_path: Path) -> Path:
    """A complete run of a table, which a test may change."""
    return shutil.copytree(complete_run, tmp_path / "run")


def edited(path: Path, edit: Callable[[dict[str, np.ndarray], dict[str, Any]], object], checksum: bool) -> None:
    """Change the tensors and the metadata of a checkpoint; without a checksum it is as older versions wrote them."""
    tensors, metadata = Checkpoint.load(path)
    tensors = dict(tensors)
    edit(tensors, metadata)
    if checksum:
        Checkpoint(tensors, metadata).save(path)
    else:
        save_file(tensors, path, metadata={"fastopt": json.dumps(metadata)})


WEIGHT, BIAS = "param.layers.0.weight", "param.layers.0.bias"

EDITS: dict[str, tuple[Callable[[dict[str, np.ndarray], dict[str, Any]], object], str]] = {
    "no metadata": (lambda t, m: m.clear(), "expected int 'step', got None"),
    "no settings": (lambda t, m: m.pop("config"), "expected dict 'config', got None"),
    "settings of another type": (lambda t, m: m.update(config=[]), r"expected dict 'config', got \[\]"),
    "no such model": (lambda t, m: m["config"].update(model="cnn"), "another version of fastopt"),
    "no such setting": (lambda t, m: m["config"].update(novelty=1), "another version of fastopt"),
    "a setting less": (lambda t, m: m["config"].pop("optimizer"), r"config, optimizer: expected \"adamw\", got none"),
    "epochs in words": (lambda t, m: m["config"].update(epochs="many"), "--epochs: expected a whole number"),
    "hidden units in words": (lambda t, m: m["config"].update(hidden="many"), "--hidden: expected numbers of units"),
    "a step in words": (lambda t, m: m.update(step="12"), "expected int 'step', got '12'"),
    "a step beyond the run": (lambda t, m: m.update(step=13), "damaged .step 13, epoch 3 of a run of 12 steps"),
    "a step below 0": (lambda t, m: m.update(step=-1, epoch=-1), "damaged .step -1"),
    "another step": (lambda t, m: m.update(step=9, epoch=2), "weight, step: expected the number of steps, got 12"),
    "another epoch": (lambda t, m: m.update(epoch=7), "damaged .step 12, epoch 7"),
    "another version": (lambda t, m: m["versions"].update(numpy="1.0"), "written with numpy 1.0, but here is"),
    "no version": (lambda t, m: m["versions"].clear(), "written with fastopt None, but here is"),
    "one more library": (lambda t, m: m["versions"].update(jax="1"), 'versions, jax: expected none, got "1"'),
    "other data": (lambda t, m: m["data"].update(sha256="0"), r"t\.npz has changed since the run was started"),
    "no state": (lambda t, m: m["state"].clear(), "weight, step: expected .*, got none"),
    "a state of no number": (lambda t, m: m["state"].update({"layers.0.bias": 3}), r"state of layers.0.bias"),
    "a count in words": (lambda t, m: m["state"]["layers.0.bias"].update(step="12"), "step: expected .*, got '12'"),
    "one more count": (lambda t, m: m["state"]["layers.0.bias"].update(more=1), "more: expected none, got int"),
    "a weight of one row": (lambda t, m: t.update({WEIGHT: t[WEIGHT][:1]}), r"got float32 \(1, 6\)"),
    "a bias to be broadcast": (lambda t, m: t.update({BIAS: t[BIAS][:1]}), r"got float32 \(1,\)"),
    "another dtype": (lambda t, m: t.update({BIAS: t[BIAS].astype("f8")}), r"got float64 \(8,\)"),
    "a tensor less": (lambda t, m: t.pop(BIAS), rf"tensor {BIAS}: expected float32 \(8,\), got none"),
    "a tensor more": (lambda t, m: t.update(more=t[BIAS]), r"tensor more: expected none, got float32 \(8,\)"),
    "a state less": (lambda t, m: t.pop("state.layers.0.bias.exp_avg"), r"exp_avg: expected float32 \(8,\), got none"),
    "a state of another shape": (
        lambda t, m: t.update({"state.layers.0.bias.exp_avg": np.zeros(1, "f4")}),
        r"exp_avg: expected float32 \(8,\), got float32 \(1,\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("edit", EDITS)
def test_damaged_checkpoints_are_told_before_anything_is_written(complete: Path, edit: str, checksum: bool) -> None:
    change, message = EDITS[edit]
    edited(complete / CHECKPOINT, change, checksum)
    before = {path.name: path.read_bytes() for path in complete.iterdir()}
    result = CliRunner().invoke(app, ["train", "--resume", "--out", str(complete)])
    assert result.exit_code == 2
    assert re.search(message, result.stderr)
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert {path.name: path.read_bytes() for path in complete.iterdir()} == before


def test_checkpoints_without_a_checksum_are_resumed(complete: Path) -> None:
    edited(complete / CHECKPOINT, lambda tensors, metadata: None, checksum=False)
    assert Job.resume(complete / CHECKPOINT, {}).run.is_complete


def test_checkpoints_from_before_tables_had_texts_are_resumed(complete: Path) -> None:
    def as_then(tensors: dict[str, np.ndarray], metadata: dict[str, Any]) -> None:
        for name in ("drop", "keep", "separator", "accumulate"):
            del metadata["config"][name]
        for name in ("columns", "target", "left_out"):
            del metadata["data"][name]

    edited(complete / CHECKPOINT, as_then, checksum=True)
    before = (complete / CHECKPOINT).read_bytes()
    with pytest.raises(TrainingError, match=r"written before runs kept what predictions need; .* --resume --out"):
        load(complete)
    assert run_session(Job.resume(complete / CHECKPOINT, {}), complete, QUIET) is not Outcome.STOPPED
    assert (complete / CHECKPOINT).read_bytes() != before
    assert load(complete).features == tuple("012345")


def test_flipped_bits_are_noticed(complete: Path) -> None:
    path = complete / CHECKPOINT
    whole = path.read_bytes()
    content = Checkpoint.load(path).checksum
    told = 0
    for bit in range(0, 8 * len(whole), 211):  # of the header and of the data
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            Job.resume(path, {})
        except TrainingError:
            told += 1
        else:
            assert Checkpoint.load(path).checksum == content, "such as 1E-08 for 1e-08"
    assert told > 8 * len(whole) / 211 - 5


def test_resuming_counts_no_step_of_its_own(complete: Path) -> None:
    job = Job.resume(complete / CHECKPOINT, {})
    assert (job.run.new_steps, job.run.new_samples, job.run.step_seconds) == (0, 0, 0.0)


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
